"""Files and directories that are open while their names go."""

from __future__ import annotations

import errno
import mmap
import os
import stat

import pytest

from tests.posix.rooms import CONTENT, Room, fails_with

FLAGS = (os.O_RDONLY, os.O_RDWR)


def test_an_unlinked_file_can_be_read(room: Room) -> None:
    fd = os.open(room / "file", os.O_RDONLY)
    os.unlink(room / "file")
    assert os.pread(fd, 100, 0) == CONTENT
    os.close(fd)


def test_an_unlinked_file_can_be_written_and_read_back(room: Room) -> None:
    fd = os.open(room / "file", os.O_RDWR)
    os.unlink(room / "file")
    os.pwrite(fd, b"THE", 0)
    os.pwrite(fd, b"end", 10_000)
    assert os.pread(fd, 7, 0) == b"THE con" and os.pread(fd, 10, 10_000) == b"end"
    assert os.fstat(fd).st_size == 10_003
    os.close(fd)


def test_an_unlinked_file_has_no_links(room: Room) -> None:
    fd = os.open(room / "file", os.O_RDWR)
    before = os.fstat(fd)
    os.unlink(room / "file")
    after = os.fstat(fd)
    assert (before.st_nlink, after.st_nlink) == (1, 0) and after.st_ino == before.st_ino
    assert after.st_size == len(CONTENT) and stat.S_IMODE(after.st_mode) == 0o644
    os.close(fd)


def test_a_new_file_has_no_links_once_it_is_unlinked(room: Room) -> None:
    fd = os.open(room / "new", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"new")
    os.unlink(room / "new")
    assert os.fstat(fd).st_nlink == 0 and os.pread(fd, 10, 0) == b"new"
    os.close(fd)


def test_an_unlinked_file_can_be_truncated_and_grown(room: Room) -> None:
    fd = os.open(room / "file", os.O_RDWR)
    os.unlink(room / "file")
    os.ftruncate(fd, 3)
    os.ftruncate(fd, 5)
    assert os.pread(fd, 10, 0) == b"the\0\0" and os.fstat(fd).st_size == 5
    os.close(fd)


def test_an_unlinked_file_takes_mode_owner_times_and_xattrs(room: Room) -> None:
    fd = os.open(room / "file", os.O_RDWR)
    os.unlink(room / "file")
    os.fchmod(fd, 0o600)
    os.fchown(fd, 1000, 1000)
    os.utime(fd, ns=(1, 2))
    os.setxattr(fd, "user.x", b"y")
    found = os.fstat(fd)
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_mtime_ns) == (0o600, 1000, 2)
    assert os.getxattr(fd, "user.x") == b"y" and "user.x" in os.listxattr(fd)
    os.close(fd)


def test_an_unlinked_file_can_be_synced_and_mapped(room: Room) -> None:
    fd = os.open(room / "file", os.O_RDWR)
    os.unlink(room / "file")
    with mmap.mmap(fd, 0) as mapping:
        mapping[:3] = b"THE"
        mapping.flush()
        os.fsync(fd)
    assert os.pread(fd, 3, 0) == b"THE"
    os.close(fd)


def test_a_new_file_of_the_same_name_is_another_file(room: Room) -> None:
    fd = os.open(room / "file", os.O_RDWR)
    os.unlink(room / "file")
    (room / "file").write_bytes(b"another")
    os.pwrite(fd, b"???", 0)
    assert (room / "file").read_bytes() == b"another" and os.pread(fd, 3, 0) == b"???"
    assert os.stat(room / "file").st_ino != os.fstat(fd).st_ino
    os.close(fd)


def test_a_file_with_another_link_shows_it_after_unlink(room: Room) -> None:
    os.link(room / "file", room / "new")
    fd = os.open(room / "file", os.O_RDWR)
    os.unlink(room / "file")
    assert os.fstat(fd).st_nlink == 1
    os.pwrite(fd, b"THE", 0)
    os.close(fd)
    assert (room / "new").read_bytes() == b"THE" + CONTENT[3:]


def test_an_unlinked_file_can_be_reached_through_proc(room: Room) -> None:
    fd = os.open(room / "file", os.O_RDWR)
    os.unlink(room / "file")
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    os.pwrite(again, b"THE", 0)
    assert os.pread(fd, 3, 0) == b"THE"
    os.close(again)
    os.close(fd)


@pytest.mark.parametrize("flags", FLAGS)
def test_many_files_can_be_unlinked_while_they_are_open(room: Room, flags: int) -> None:
    for number in range(50):
        (room / f"new{number}").write_bytes(b"%d" % number)
    opened = [os.open(room / f"new{number}", flags) for number in range(50)]
    for number in range(50):
        os.unlink(room / f"new{number}")
    assert [os.pread(fd, 10, 0) for fd in opened] == [b"%d" % number for number in range(50)]
    for fd in opened:
        os.close(fd)
    assert not [name for name in os.listdir(room.path) if name.startswith("new")]


def test_an_open_directory_that_was_removed_is_empty_and_takes_no_more_names(room: Room) -> None:
    fd = os.open(room / "hollow", os.O_RDONLY | os.O_DIRECTORY)
    os.rmdir(room / "hollow")
    assert os.listdir(fd) == []
    with fails_with(errno.ENOENT):
        os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    with fails_with(errno.ENOENT):
        os.mkdir("new", dir_fd=fd)
    with fails_with(errno.ENOENT):
        os.stat("new", dir_fd=fd)
    assert stat.S_ISDIR(os.fstat(fd).st_mode)
    os.close(fd)


def test_a_removed_directory_is_not_the_one_made_in_its_place(room: Room) -> None:
    fd = os.open(room / "hollow", os.O_RDONLY | os.O_DIRECTORY)
    os.rmdir(room / "hollow")
    os.mkdir(room / "hollow")
    (room / "hollow" / "new").write_bytes(b"x")
    assert os.listdir(fd) == [] and os.listdir(room / "hollow") == ["new"]
    os.close(fd)
