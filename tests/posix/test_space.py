"""Holes, space, ranges, files without a name, attributes of chattr, the time of birth: what each verb does on a plain directory."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.posix.rooms import CONTENT, Room, fails_with, furniture
from tests.support.users import as_user

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
SPARSE = 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def fallocate(path: Path, mode: int, offset: int, length: int) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        if _libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)):
            raise OSError(ctypes.get_errno(), "fallocate")
    finally:
        os.close(fd)


def with_holes(room: Path) -> None:
    with (room / "sparse").open("wb") as file:
        file.truncate(SPARSE)
        os.pwrite(file.fileno(), b"data", SPARSE // 2)


@pytest.mark.beyond_pyfuse3
@furniture(with_holes)
def test_holes_are_seen_and_kept(room: Room) -> None:
    fd = os.open(room / "sparse", os.O_RDONLY)
    try:
        assert os.lseek(fd, 0, os.SEEK_DATA) == SPARSE // 2
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
        assert os.lseek(fd, SPARSE // 2, os.SEEK_HOLE) == SPARSE // 2 + 4096
        with fails_with(errno.ENXIO):
            os.lseek(fd, SPARSE, os.SEEK_DATA)
    finally:
        os.close(fd)
    with (room / "sparse").open("ab") as file:
        file.write(b"end")
    assert (room / "sparse").stat().st_blocks * 512 < SPARSE


@pytest.mark.beyond_pyfuse3
@pytest.mark.parametrize("mode", [0, KEEP_SIZE, KEEP_SIZE | PUNCH_HOLE, ZERO_RANGE])
def test_space_is_made_and_given_back(room: Room, mode: int) -> None:
    (room / "wide").write_bytes(b"x" * 65536)
    for name in ("wide", "file"):
        fallocate(room / name, mode, 4096, 131072)
    size = {0: 135168, ZERO_RANGE: 135168}.get(mode)
    assert (room / "wide").stat().st_size == (size or 65536) and (room / "file").stat().st_size == (size or len(CONTENT))
    kept = 65536 if mode in (0, KEEP_SIZE) else 4096
    assert (room / "wide").read_bytes() == b"x" * kept + bytes((size or 65536) - kept)
    assert (room / "file").read_bytes()[: len(CONTENT)] == CONTENT
    if mode == KEEP_SIZE:
        assert (room / "file").stat().st_blocks * 512 >= 131072


def test_ranges_are_copied_between_files_and_within_one(room: Room) -> None:
    source, target = os.open(room / "file", os.O_RDONLY), os.open(room / "other", os.O_RDWR)
    try:
        assert os.copy_file_range(source, target, 7, 4, 1) == 7
        assert os.copy_file_range(source, target, 100, len(CONTENT), 0) == 0
        assert os.copy_file_range(target, target, 3, 0, 20) == 3
        assert os.pread(target, 100, 0) == b"o" + CONTENT[4:11] + bytes(12) + b"o" + CONTENT[4:6]
    finally:
        os.close(source)
        os.close(target)


@pytest.mark.beyond_pyfuse3
def test_a_file_without_a_name_can_be_given_one(room: Room) -> None:
    fd = os.open(room / "directory", os.O_TMPFILE | os.O_RDWR, 0o640)
    try:
        os.write(fd, b"nameless")
        assert os.fstat(fd).st_nlink == 0 and sorted(os.listdir(room / "directory")) == ["four", "one", "sub", "three", "two"]
        flag, here = 0x400, -100
        assert _libc.linkat(here, f"/proc/self/fd/{fd}".encode(), here, os.fsencode(room / "directory" / "named"), flag) == 0
        assert os.fstat(fd).st_nlink == 1 and os.path.samestat(os.fstat(fd), (room / "directory" / "named").stat())
        os.write(fd, b" no more")
    finally:
        os.close(fd)
    assert (room / "directory" / "named").read_bytes() == b"nameless no more"
    assert (room / "directory" / "named").stat().st_mode & 0o7777 == 0o640 & ~_umask()


@pytest.mark.beyond_pyfuse3
def test_a_file_without_a_name_belongs_to_who_made_it(room: Room) -> None:
    def make() -> tuple[int, int]:
        fd = os.open(room / "users", os.O_TMPFILE | os.O_WRONLY, 0o600)
        try:
            return os.fstat(fd).st_uid, os.fstat(fd).st_gid
        finally:
            os.close(fd)

    assert as_user(make) == (1000, 1000)
    with fails_with(errno.EACCES):
        as_user(lambda: os.open(room / "directory", os.O_TMPFILE | os.O_WRONLY, 0o600))


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return done.stdout if done.returncode == 0 else "refused"


@pytest.mark.beyond_pyfuse3
@pytest.mark.root
@pytest.mark.parametrize("name", ["file", "directory"])
@pytest.mark.parametrize("letter", ["A", "d", "i", "a"])
def test_chattr_sets_what_lsattr_shows(room: Room, name: str, letter: str) -> None:
    at = room / name
    try:
        assert run("chattr", f"+{letter}", at) == ""
        assert letter in run("lsattr", "-d", at).split()[0]
        changes: list[Callable[[], object]] = [lambda: at.chmod(0o700), lambda: at.rename(room / "moved")]
        for change in changes if letter in "ia" else []:
            with fails_with(errno.EPERM):
                change()
    finally:
        assert run("chattr", f"-{letter}", at) == ""
    assert letter not in run("lsattr", "-d", at).split()[0]
    at.rename(room / "moved")


@pytest.mark.beyond_pyfuse3
@pytest.mark.root
def test_chattr_is_for_the_owner_and_immutable_for_root(room: Room) -> None:
    assert as_user(lambda: run("chattr", "+d", room / "file")) == "refused"
    assert as_user(lambda: run("chattr", "+d", room / "mine")) == ""
    assert as_user(lambda: run("chattr", "+i", room / "mine")) == "refused"
    (room / "mine").write_bytes(b"not immutable")


@pytest.mark.beyond_pyfuse3
def test_a_file_tells_when_it_was_born(room: Room) -> None:
    (room / "new").touch()
    told = run("stat", "-c", "%W", room / "new")
    assert abs(int(told) - (room / "new").stat().st_ctime) < 5


def test_what_is_no_terminal_says_so(room: Room) -> None:
    with (room / "file").open() as file:
        assert not file.isatty()
