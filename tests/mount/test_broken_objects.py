"""Objects of which nothing can be told: they are listed, asking for them is an error, and what is beside them works."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.support.mounts import Layers, Mounts
from tests.unit.overlay.world import mark, put

pytestmark = [pytest.mark.fuse, pytest.mark.root]


def test_a_broken_redirect_and_a_metacopy_without_data_are_listed(scratch: Path, mounts: Mounts) -> None:
    lower, upper, work = (scratch / name for name in ("lower", "upper", "work"))
    for path in (lower, upper, work, upper / "odd"):
        path.mkdir()
    put(lower / "good", b"good")
    put(upper / "empty-handed")
    os.truncate(upper / "empty-handed", 7)
    mark(upper / "odd", "redirect", b"a/b")
    mark(upper / "empty-handed", "metacopy", b"")
    mark(upper, "impure")
    mount = mounts.ours(Layers((lower,), upper, work), "-o", "metacopy=on")
    for _ in range(2):
        assert sorted(os.listdir(mount.target)) == ["empty-handed", "good", "odd"]
        with os.scandir(mount.target) as entries:
            kinds = {entry.name: (entry.is_dir(follow_symlinks=False), entry.inode() != 0) for entry in entries}
        assert kinds == {"empty-handed": (False, True), "good": (False, True), "odd": (True, True)}
        for name, code in (("odd", errno.EINVAL), ("empty-handed", errno.EIO)):
            with pytest.raises(OSError) as caught:
                os.lstat(mount.target / name)
            assert caught.value.errno == code
        assert (mount.target / "good").read_bytes() == b"good"
