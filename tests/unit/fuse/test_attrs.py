"""Attributes between stat and pyfuse3."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from unionfs.fuse import attrs


def test_times_keep_their_nanoseconds(scratch: Path) -> None:
    path = scratch / "file"
    path.touch()
    os.utime(path, ns=(1_234_567_890_123_456_789, 987_654_321_012_345_678))
    entry = attrs.entry(5, 1, path.stat(), 1.5)
    assert (entry.st_atime_ns, entry.st_mtime_ns) == (1_234_567_890_123_456_789, 987_654_321_012_345_678)
    assert (entry.entry_timeout, entry.attr_timeout) == (1.5, 1.5)


def test_numbers_of_64_bits_pass(scratch: Path) -> None:
    st = scratch.stat()
    ours = (1 << 62) + 12345
    assert attrs.entry(ours, 1, st, 0).st_ino == ours
    assert attrs.dots(ours).st_ino == ours


def test_dots_are_directories() -> None:
    assert stat.S_ISDIR(attrs.dots(1).st_mode)


def test_a_device_keeps_its_number() -> None:
    st = os.stat("/dev/null")
    entry = attrs.entry(5, 1, st, 0)
    assert (entry.st_rdev, entry.st_mode) == (os.makedev(1, 3), st.st_mode)


def test_nothing_is_number_0_for_as_long_as_told() -> None:
    entry = attrs.absent(7.0)
    assert (entry.st_ino, entry.entry_timeout) == (0, 7.0)


def test_statfs_is_that_of_the_filesystem(scratch: Path) -> None:
    st = os.statvfs(scratch)
    made = attrs.statfs(st)
    assert (made.f_blocks, made.f_bsize, made.f_namemax) == (st.f_blocks, st.f_bsize, st.f_namemax)
