"""The `room` fixture: every test that takes it runs in each of rooms.PLACES."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.posix.rooms import PLACES, SERVED, House, Room
from tests.support.mounts import Mounts


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "furniture(extra): what the test's room holds besides the usual")
    config.addinivalue_line("markers", "beyond_pyfuse3: the engine pyfuse3 cannot do it: test_pyfuse3.py says what it does instead")
    config.addinivalue_line("markers", "of_pyfuse3: of the engine pyfuse3 alone")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "room" in metafunc.fixturenames:
        metafunc.parametrize("room", _places(metafunc.definition), indirect=True)


def _places(item: pytest.Item) -> list[str]:
    alone, not_there = (item.get_closest_marker(name) is not None for name in ("of_pyfuse3", "beyond_pyfuse3"))
    return [place for place in PLACES if not (not_there if place.endswith("-pyfuse3") else alone)]


def _house(param: str) -> tuple[str, str]:
    """(which house, which place in it) an entry of PLACES means."""
    kind, place, io = (*param.split("-"), "", "")[:3]
    return io or kind, place or "plain"


def _number(item: pytest.Item) -> str:
    """The name of an item's room."""
    return f"room{item.session.items.index(item)}"


@pytest.fixture(scope="module")
def houses(request: pytest.FixtureRequest, session_scratch: Path, module_mounts: Mounts) -> Iterator[dict[str, House]]:
    scratch = module_mounts.scratch
    found = {kind: House(kind, scratch, module_mounts) for kind in ("plain", "kernel", "ours")}
    found.update((io, House("ours", scratch, module_mounts, io)) for io in SERVED if io != "cached")
    for item in request.session.items:
        if isinstance(item, pytest.Function) and item.module is request.module and hasattr(item, "callspec"):
            house, place = _house(str(item.callspec.params["room"]))
            marker = item.get_closest_marker("furniture")
            found[house].make(_number(item), place, marker.args[0] if marker else None)
    yield found
    for made in found.values():
        made.tear_down()


@pytest.fixture
def room(request: pytest.FixtureRequest, houses: dict[str, House]) -> Room:
    house, place = _house(str(request.param))
    return houses[house].room(_number(request.node), place)
