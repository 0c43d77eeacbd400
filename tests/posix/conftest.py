"""The `room` fixture: every test that takes it runs in each of rooms.PLACES."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.posix.rooms import PLACES, House, Room
from tests.support.mounts import Mounts


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "furniture(extra): what the test's room holds besides the usual")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "room" in metafunc.fixturenames:
        metafunc.parametrize("room", PLACES, indirect=True)


def _number(item: pytest.Item) -> str:
    """The name of an item's room."""
    return f"room{item.session.items.index(item)}"


@pytest.fixture(scope="module")
def houses(request: pytest.FixtureRequest, session_scratch: Path, module_mounts: Mounts) -> Iterator[dict[str, House]]:
    scratch = module_mounts.scratch
    found = {kind: House(kind, scratch, module_mounts) for kind in ("plain", "kernel", "ours")}
    for item in request.session.items:
        if isinstance(item, pytest.Function) and item.module is request.module and hasattr(item, "callspec"):
            kind, _, place = str(item.callspec.params["room"]).partition("-")
            marker = item.get_closest_marker("furniture")
            found[kind].make(_number(item), place or "plain", marker.args[0] if marker else None)
    yield found
    for house in found.values():
        house.tear_down()


@pytest.fixture
def room(request: pytest.FixtureRequest, houses: dict[str, House]) -> Room:
    kind, _, place = str(request.param).partition("-")
    return houses[kind].room(_number(request.node), place or "plain")
