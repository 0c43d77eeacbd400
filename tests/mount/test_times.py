"""Times that change because something was copied up are seen at once, as on the kernel's overlayfs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.mounts import Layers, Mount, Mounts

pytestmark = [pytest.mark.fuse, pytest.mark.overlayfs, pytest.mark.root]


def _times_change(mount: Mount) -> list[bool]:
    """Whether a first stat of the directories after a copy-up differs from the second, after they were listed."""
    directories = [mount.target, mount.target / "a", mount.target / "a" / "b"]
    for directory in directories:
        os.listdir(directory)
        os.lstat(directory)
    os.chmod(mount.target / "a" / "b" / "file", 0o640)
    first = [os.lstat(directory) for directory in directories]
    for directory in directories:
        os.listdir(directory)
    second = [os.lstat(directory) for directory in directories]
    return [(one.st_ctime_ns, one.st_mtime_ns) != (two.st_ctime_ns, two.st_mtime_ns) for one, two in zip(first, second, strict=True)]


def test_no_directory_changes_when_it_is_read_after_a_copy_up(scratch: Path, mounts: Mounts) -> None:
    found = []
    for make in (mounts.kernel, mounts.ours):
        side = scratch / make.__name__
        for name in ("lower/a/b", "upper", "work"):
            (side / name).mkdir(parents=True)
        (side / "lower/a/b/file").write_text("x")
        found.append(_times_change(make(Layers((side / "lower",), side / "upper", side / "work"))))
    assert found == [[False] * 3] * 2
