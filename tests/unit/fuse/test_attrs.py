"""Attributes between stat and pyfuse3."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pyfuse3
import pytest

from unionfs.fuse import attrs
from unionfs.linux import memory


def test_times_keep_their_nanoseconds(scratch: Path) -> None:
    path = scratch / "file"
    path.touch()
    os.utime(path, ns=(1_234_567_890_123_456_789, 987_654_321_012_345_678))
    entry = attrs.entry(5, 5, 1, path.stat(), 1.5)
    assert (entry.st_atime_ns, entry.st_mtime_ns) == (1_234_567_890_123_456_789, 987_654_321_012_345_678)
    assert (entry.entry_timeout, entry.attr_timeout) == (1.5, 1.5)


def test_numbers_of_64_bits_pass(scratch: Path) -> None:
    st = scratch.stat()
    ours = (1 << 62) + 12345
    assert attrs.entry(ours, ours, 1, st, 0).st_ino == ours
    assert attrs.dots(ours).st_ino == ours


def test_what_is_shown_may_differ_from_the_number_of_the_node() -> None:
    st = os.stat("/dev/null")
    same, other = attrs.entry(0x123456789, 0x123456789, 1, st, 0), attrs.entry(0x123456789, 0x987654321, 1, st, 0)
    assert (same.st_ino, other.st_ino) == (0x123456789, 0x123456789)
    assert len(memory.words_equal(same, 0x123456789)) == 2
    (node,), (shown,) = memory.words_equal(other, 0x123456789), memory.words_equal(other, 0x987654321)
    assert node < shown


class _Copies:
    """An EntryAttributes that keeps *count* copies of its number, of which getting it gets number *told*."""

    def __init__(self, count: int, told: int = 0) -> None:
        self._count, self._told = count, told

    st_ino = property(lambda self: self.places[self._told], lambda self, value: setattr(self, "places", [value] * self._count))


@pytest.mark.parametrize(("count", "told"), [(1, 0), (3, 0), (2, 1)])
def test_an_object_of_another_shape_is_left_alone(monkeypatch: pytest.MonkeyPatch, count: int, told: int) -> None:
    monkeypatch.setattr(pyfuse3, "EntryAttributes", lambda: _Copies(count, told))
    monkeypatch.setattr(memory, "words_equal", lambda made, value: tuple(
        8 * place for place, held in enumerate(made.places) if held == value))
    monkeypatch.setattr(memory, "put_word", lambda made, offset, value: made.places.__setitem__(offset // 8, value))
    assert attrs._find_shown() is None
    monkeypatch.setattr(pyfuse3, "EntryAttributes", lambda: _Copies(2))
    assert attrs._find_shown() == 8


def test_dots_are_directories() -> None:
    assert stat.S_ISDIR(attrs.dots(1).st_mode)


def test_a_device_keeps_its_number() -> None:
    st = os.stat("/dev/null")
    entry = attrs.entry(5, 5, 1, st, 0)
    assert (entry.st_rdev, entry.st_mode) == (os.makedev(1, 3), st.st_mode)


def test_nothing_is_number_0_for_as_long_as_told() -> None:
    entry = attrs.absent(7.0)
    assert (entry.st_ino, entry.entry_timeout) == (0, 7.0)


def test_statfs_is_that_of_the_filesystem(scratch: Path) -> None:
    st = os.statvfs(scratch)
    made = attrs.statfs(st)
    assert (made.f_blocks, made.f_bsize, made.f_namemax) == (st.f_blocks, st.f_bsize, st.f_namemax)
