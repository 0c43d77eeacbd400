"""Fixtures of the tests of the union without a mount."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import system
from tests.support.tree import fingerprint
from tests.unit.overlay.world import World
from unionfs.linux.process import may_use_trusted_xattrs


@pytest.fixture(autouse=True)
def no_umask() -> Iterator[None]:
    """Modes are given in full, as a server of the kernel gets them."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def root() -> None:
    """For what only root may do: devices, trusted.* attributes, other owners, mounts."""
    if not may_use_trusted_xattrs():
        pytest.skip("needs root: devices, owners, trusted.* attributes or mounts")


@pytest.fixture
def world(scratch: Path) -> Iterator[World]:
    """Two lowers, an upper and a work directory. Whatever the test does, the lowers must be the same afterwards."""
    made = World(scratch)
    yield made
    made.close_all()


@pytest.fixture
def lowers_untouched(world: World) -> Iterator[Callable[[], None]]:
    """Call once the lowers are filled: after the test they must be as they were."""
    before: list[str] = []
    yield lambda: before.extend(fingerprint(lower) for lower in world.lowers)
    assert before, "the test never said that its lowers were ready"
    assert [fingerprint(lower) for lower in world.lowers] == before


@pytest.fixture
def tmpfs(root: None, scratch: Path) -> Iterator[Callable[[str, str], Path]]:
    """Mounts a tmpfs: tmpfs(name, options) is its directory."""
    made: list[Path] = []

    def mount(name: str, options: str = "") -> Path:
        path = scratch / name
        path.mkdir(exist_ok=True)
        system.mount("tmpfs", path, "tmpfs", data=options)
        path.chmod(0o755)
        made.append(path)
        return path

    yield mount
    for path in reversed(made):
        system.unmount(path, system.MNT_DETACH)


@pytest.fixture
def overlayfs(root: None, scratch: Path) -> Iterator[Callable[[], Path]]:
    """Mounts a writable kernel overlayfs over an empty lower: its directory."""
    made: list[Path] = []

    def mount() -> Path:
        where = scratch / f"overlayfs{len(made)}"
        for name in ("lower", "upper", "work", "mnt"):
            (where / name).mkdir(parents=True)
        system.mount("overlay", where / "mnt", "overlay", data=f"lowerdir={where}/lower,upperdir={where}/upper,workdir={where}/work")
        made.append(where / "mnt")
        return where / "mnt"

    yield mount
    for path in reversed(made):
        system.unmount(path, system.MNT_DETACH)
