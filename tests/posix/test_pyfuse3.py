"""What the engine pyfuse3 does where libfuse cannot pass on what the kernel asks for: an error programs know, or the next best thing."""

from __future__ import annotations

import errno
import os
import subprocess

import pytest

from tests.posix.rooms import CONTENT, Room, fails_with, furniture
from tests.posix.test_acls import modes_of_heirs, with_acls
from tests.posix.test_space import SPARSE, fallocate, run, with_holes

pytestmark = pytest.mark.of_pyfuse3


@furniture(with_acls)
def test_the_umask_is_applied_below_a_default_acl(room: Room) -> None:
    """It cannot negotiate FUSE_DONT_MASK: the kernel applies it before we are asked."""
    assert modes_of_heirs(room) == (0o600, 0o700)


@furniture(with_holes)
def test_no_holes_are_seen_and_they_are_kept(room: Room) -> None:
    fd = os.open(room / "sparse", os.O_RDONLY)
    try:
        assert (os.lseek(fd, 0, os.SEEK_DATA), os.lseek(fd, 0, os.SEEK_HOLE)) == (0, SPARSE)
    finally:
        os.close(fd)
    with (room / "sparse").open("ab") as file:
        file.write(b"end")
    assert (room / "sparse").stat().st_blocks * 512 < SPARSE


@pytest.mark.parametrize("mode", [0, 3])
def test_space_cannot_be_asked_for(room: Room, mode: int) -> None:
    with fails_with(errno.EOPNOTSUPP):
        fallocate(room / "file", mode, 0, 65536)
    assert (room / "file").read_bytes() == CONTENT
    fd = os.open(room / "file", os.O_RDWR)
    try:
        os.posix_fallocate(fd, 0, 65536)  # libc writes instead
    finally:
        os.close(fd)
    assert (room / "file").read_bytes() == CONTENT + bytes(65536 - len(CONTENT))


def test_every_file_has_a_name(room: Room) -> None:
    with fails_with(errno.EOPNOTSUPP):
        os.open(room / "directory", os.O_TMPFILE | os.O_RDWR, 0o640)


def test_there_are_no_file_attributes(room: Room) -> None:
    done = subprocess.run(["lsattr", "-d", room / "file"], capture_output=True, text=True, timeout=20, check=False)
    assert "Inappropriate ioctl" in done.stderr or "not supported" in done.stderr
    assert run("chattr", "+d", room / "file") == "refused"


def test_no_time_of_birth_is_known(room: Room) -> None:
    assert run("stat", "-c", "%W", room / "file") == "0\n"
