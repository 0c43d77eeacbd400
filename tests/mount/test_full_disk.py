"""An upper on a full filesystem: what does not fit changes nothing, and its space is given back."""

from __future__ import annotations

import errno
import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.mount.test_kill_with_all_features import OPTIONS, Steps, fill, outcome, seen, uncounted
from tests.support import system, tree
from tests.support.mounts import Layers, Mount, Mounts

SEED = int(os.environ.get("UNIONFS_SEED", "1"))
STEPS = int(os.environ.get("UNIONFS_STEPS", "500"))
USERXATTR = "userxattr,rename_copy_limit=64m"


@contextmanager
def filesystem(kind: str, place: Path, size: int) -> Iterator[None]:
    """A filesystem of so many megabytes at *place*."""
    place.mkdir()
    if kind == "tmpfs":
        system.mount("tmpfs", place, "tmpfs", data=f"size={size}m")
    else:
        image = place.with_suffix(".img")
        with open(image, "wb") as file:
            file.truncate(size << 20)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True, timeout=30)
        subprocess.run(["mount", "-o", "loop", image, place], check=True, timeout=30)
    try:
        yield
    finally:
        system.unmount(place, system.MNT_DETACH)


def shown(top: Path) -> tree.Snapshot:
    """Without times: a write that fails sets them on some filesystems."""
    return {path: replace(entry, mtime="") for path, entry in uncounted(seen(top)).items()}


def squeeze(place: Path, left: int) -> None:
    """Leave so many bytes on the filesystem at *place*."""
    with open(place / "filler", "wb") as file:
        room = os.fstatvfs(file.fileno())
        size = room.f_bavail * room.f_frsize - left
        while size > 0:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
                return
            except OSError:
                size -= 4096


@pytest.mark.timeout(120)
@pytest.mark.parametrize("options", [OPTIONS, USERXATTR])
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_what_does_not_fit_changes_nothing(mounts: Mounts, scratch: Path, kind: str, options: str) -> None:
    if kind == "ext4" and not Path("/dev/loop-control").exists():
        pytest.skip("needs loop devices")
    rng = random.Random(SEED)
    lowers = (scratch / "top", scratch / "bottom")
    for lower in lowers:
        lower.mkdir(mode=0o755)
    fill(lowers, rng, links=options == OPTIONS)
    with filesystem(kind, scratch / "small", 64):
        layers = Layers(lowers, scratch / "small" / "upper", scratch / "small" / "work")
        for name in ("upper", "work"):
            (scratch / "small" / name).mkdir(mode=0o755)
        mount = mounts.ours(layers, "-o", options)
        mirror = scratch / "mirror"
        subprocess.run(["cp", "-a", str(mount.target), str(mirror)], check=True, timeout=60)
        failed = work_in_little_room(mount, mirror, rng)
        assert len(failed) > 3
        assert mount.unmount() == []
        mount = mounts.ours(layers, "-o", options)
        assert tree.difference(shown(mount.target), shown(mirror), ("ours", "the mirror")) == "", failed[-5:]
        assert mount.unmount() == []


def work_in_little_room(mount: Mount, mirror: Path, rng: random.Random) -> list[str]:
    """Change the union and the mirror in step, half of the time with next to nothing free; the changes that failed."""
    small, failed = mirror.parent / "small", []
    for number, (name, step) in enumerate(Steps(rng, mirror)):
        if number == STEPS:
            break
        if number % 10 == 0:
            (small / "filler").write_bytes(b"")
        elif number % 10 == 4:
            squeeze(small, rng.choice((0, 0, 4096, 8192, 16384, 65536, 1 << 20)))
        ours = outcome(step, mount.target)
        if ours not in (errno.ENOSPC, errno.EXDEV):  # no room for a redirect is EXDEV (ovl_set_redirect)
            assert ours == outcome(step, mirror), f"{name}: error {ours} is not the plain directory's"
            continue
        failed.append(name)
        assert os.listdir(small / "work" / "work") == [], name
        if len(failed) % 4 == 1:
            assert tree.difference(shown(mount.target), shown(mirror), ("ours", "the mirror")) == "", name
    return failed
