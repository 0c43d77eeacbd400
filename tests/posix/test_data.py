"""Reading, writing, sizes, mappings, holes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
from pathlib import Path

from tests.posix.rooms import CONTENT, OLD_NS, Room, fails_with, furniture
from tests.support.users import in_child

MEGABYTE = 1 << 20
BIG = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(12_345))  # 395,040 bytes, no whole pages


def big(room: Path) -> None:
    (room / "big").write_bytes(BIG)


def sparse(room: Path) -> None:
    """One megabyte of hole, 64 KiB of data, holes up to 4 MiB with one byte of data at the end."""
    with open(room / "sparse", "wb") as file:
        file.seek(MEGABYTE)
        file.write(b"d" * 65_536)
        file.seek(4 * MEGABYTE - 1)
        file.write(b"e")


def test_a_write_in_the_middle_changes_only_that(room: Room) -> None:
    with open(room / "file", "r+b") as file:
        file.seek(4)
        file.write(b"CONTENT")
    assert (room / "file").read_bytes() == b"the CONTENT of file\n"
    assert os.stat(room / "file").st_mtime_ns > OLD_NS


def test_a_write_beyond_the_end_leaves_zeros_between(room: Room) -> None:
    fd = os.open(room / "file", os.O_WRONLY)
    os.pwrite(fd, b"end", 10_000)
    os.close(fd)
    data = (room / "file").read_bytes()
    assert data == CONTENT + b"\0" * (10_000 - len(CONTENT)) + b"end"


def test_a_read_at_or_beyond_the_end_returns_nothing(room: Room) -> None:
    fd = os.open(room / "file", os.O_RDONLY)
    assert os.pread(fd, 10, len(CONTENT)) == b"" and os.pread(fd, 10, 10**9) == b""
    assert os.pread(fd, 100, len(CONTENT) - 3) == CONTENT[-3:]
    os.close(fd)


def test_an_empty_write_changes_nothing(room: Room) -> None:
    fd = os.open(room / "file", os.O_WRONLY)
    assert os.write(fd, b"") == 0
    os.close(fd)
    assert (room / "file").read_bytes() == CONTENT and os.stat(room / "file").st_mtime_ns == OLD_NS


@furniture(big)
def test_a_big_file_reads_back_whole_and_in_pieces(room: Room) -> None:
    assert (room / "big").read_bytes() == BIG
    fd = os.open(room / "big", os.O_RDONLY)
    assert b"".join(os.pread(fd, 7_919, offset) for offset in range(0, len(BIG), 7_919)) == BIG
    os.close(fd)


@furniture(big)
def test_a_byte_changed_in_a_big_file_leaves_the_rest(room: Room) -> None:
    fd = os.open(room / "big", os.O_RDWR)
    os.pwrite(fd, b"!", 200_000)
    os.close(fd)
    assert (room / "big").read_bytes() == BIG[:200_000] + b"!" + BIG[200_001:]


def test_three_megabytes_written_at_once_read_back(room: Room) -> None:
    data = BIG * 8
    (room / "new").write_bytes(data)
    assert hashlib.sha256((room / "new").read_bytes()).digest() == hashlib.sha256(data).digest()


def test_truncate_shortens_and_lengthens_with_zeros(room: Room) -> None:
    os.truncate(room / "file", 3)
    assert (room / "file").read_bytes() == b"the"
    os.truncate(room / "file", 6)
    assert (room / "file").read_bytes() == b"the\0\0\0"
    os.truncate(room / "empty", 5_000)
    assert (room / "empty").read_bytes() == b"\0" * 5_000


def test_what_was_truncated_away_does_not_come_back(room: Room) -> None:
    with open(room / "file", "r+b") as file:
        file.truncate(5)
        file.truncate(len(CONTENT))
    assert (room / "file").read_bytes() == CONTENT[:5] + b"\0" * (len(CONTENT) - 5)


def test_truncate_to_the_same_size_is_still_a_change_of_time(room: Room) -> None:
    os.truncate(room / "file", len(CONTENT))
    if room.io == "writeback":  # the kernel believes its own times only, and cuts nothing here
        assert os.stat(room / "file").st_mtime_ns == OLD_NS
        return
    assert (room / "file").read_bytes() == CONTENT and os.stat(room / "file").st_mtime_ns > OLD_NS


def test_truncate_fails_on_directories_missing_files_and_negative_sizes(room: Room) -> None:
    with fails_with(errno.EISDIR):
        os.truncate(room / "directory", 0)
    with fails_with(errno.ENOENT):
        os.truncate(room / "missing", 0)
    with fails_with(errno.EINVAL):
        os.truncate(room / "file", -1)


def test_a_shared_mapping_shows_the_file_and_changes_it(room: Room) -> None:
    with open(room / "file", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        assert mapping[:] == CONTENT
        mapping[:3] = b"THE"
        mapping.flush()
        assert os.pread(file.fileno(), 3, 0) == b"THE"
        os.pwrite(file.fileno(), b"???", 4)
        assert mapping[4:7] == b"???"
    assert (room / "file").read_bytes() == b"THE ???tent of file\n"


def test_a_change_through_a_mapping_outlives_it(room: Room) -> None:
    with open(room / "file", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[-5:] = b"FILE\n"
    assert (room / "file").read_bytes() == b"the content of FILE\n"
    assert os.stat(room / "file").st_mtime_ns > OLD_NS


def test_two_processes_share_a_mapping(room: Room) -> None:
    with open(room / "file", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:

        def change() -> None:
            with open(room / "file", "r+b") as own, mmap.mmap(own.fileno(), 0) as view:
                view[:5] = b"child"

        in_child(change)
        assert mapping[:5] == b"child"


def test_a_private_mapping_does_not_change_the_file(room: Room) -> None:
    with open(room / "file", "rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as mapping:
        mapping[:3] = b"THE"
    assert (room / "file").read_bytes() == CONTENT


@furniture(big)
def test_a_mapping_of_many_pages_reads_and_writes_them_all(room: Room) -> None:
    with open(room / "big", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        assert mapping[:] == BIG
        for offset in range(0, len(BIG), 4096):
            mapping[offset] = 0x21
    data = (room / "big").read_bytes()
    assert data[::4096] == b"!" * len(range(0, len(BIG), 4096)) and data[1:4096] == BIG[1:4096]


@furniture(sparse)
def test_holes_read_as_zeros(room: Room) -> None:
    data = (room / "sparse").read_bytes()
    assert len(data) == 4 * MEGABYTE and data[:MEGABYTE].count(0) == MEGABYTE
    assert data[MEGABYTE:MEGABYTE + 65_536] == b"d" * 65_536 and data[-2:] == b"\0e"


@furniture(sparse)
def test_holes_stay_holes_when_a_byte_is_changed(room: Room) -> None:
    fd = os.open(room / "sparse", os.O_WRONLY)
    os.pwrite(fd, b"D", MEGABYTE)
    os.fsync(fd)
    os.close(fd)
    on_disk = os.open(room.in_upper / "sparse", os.O_RDONLY)
    found = os.fstat(on_disk)
    assert found.st_size == 4 * MEGABYTE and found.st_blocks * 512 < 2 * MEGABYTE
    assert os.lseek(on_disk, 0, os.SEEK_DATA) == MEGABYTE
    if room.kind != "kernel":  # which copies by the megabyte
        assert os.lseek(on_disk, MEGABYTE, os.SEEK_HOLE) == MEGABYTE + 65_536
        assert found.st_blocks * 512 < MEGABYTE
    os.close(on_disk)
    data = (room / "sparse").read_bytes()
    assert data[MEGABYTE:MEGABYTE + 2] == b"Dd" and data[-1:] == b"e"


@furniture(sparse)
def test_block_counts_tell_that_a_file_is_sparse(room: Room) -> None:
    assert os.stat(room / "sparse").st_blocks * 512 < MEGABYTE
    os.chmod(room / "sparse", 0o600)
    assert os.stat(room / "sparse").st_blocks * 512 < 2 * MEGABYTE


def test_seeking_to_data_and_holes_never_misses_data(room: Room) -> None:
    fd = os.open(room / "file", os.O_RDONLY)
    assert os.lseek(fd, 0, os.SEEK_DATA) == 0
    assert os.lseek(fd, 0, os.SEEK_HOLE) == len(CONTENT)
    with fails_with(errno.ENXIO):
        os.lseek(fd, len(CONTENT) + 1, os.SEEK_DATA)
    os.close(fd)


def test_fsync_and_fdatasync_succeed_on_files_and_directories(room: Room) -> None:
    for name, flags in (("file", os.O_RDWR), ("file", os.O_RDONLY), ("directory", os.O_RDONLY)):
        fd = os.open(room / name, flags)
        os.fsync(fd)
        os.fdatasync(fd)
        os.close(fd)


def test_what_was_fsynced_is_on_the_disk_below(room: Room) -> None:
    fd = os.open(room / "file", os.O_WRONLY | os.O_TRUNC)
    os.write(fd, b"synced")
    os.fsync(fd)
    assert (room.in_upper / "file").read_bytes() == b"synced"
    os.close(fd)


def test_what_was_written_is_in_the_upper_after_close(room: Room) -> None:
    (room / "directory" / "one").write_bytes(b"changed")
    (room / "directory" / "new").write_bytes(b"new")
    assert (room.in_upper / "directory" / "one").read_bytes() == b"changed"
    assert (room.in_upper / "directory" / "new").read_bytes() == b"new"


def test_copy_file_range_and_sendfile_copy_the_bytes(room: Room) -> None:
    source, target = os.open(room / "file", os.O_RDONLY), os.open(room / "new", os.O_CREAT | os.O_RDWR)
    copied = 0
    while got := os.copy_file_range(source, target, 4096):
        copied += got
    assert copied == len(CONTENT) and os.pread(target, 100, 0) == CONTENT
    assert os.sendfile(target, source, 0, 100) == len(CONTENT)
    assert os.pread(target, 100, 0) == CONTENT * 2
    os.close(source)
    os.close(target)


def test_direct_io_reads_and_writes_whole_blocks(room: Room) -> None:
    with mmap.mmap(-1, 4096) as block:
        block[:] = b"b" * 4096
        fd = os.open(room / "new", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
        assert os.writev(fd, [block]) == 4096
        block[:] = b"\0" * 4096
        assert os.preadv(fd, [block], 0) == 4096 and block[:] == b"b" * 4096
        os.close(fd)
    assert (room / "new").read_bytes() == b"b" * 4096


def test_two_writers_of_one_file_see_each_other(room: Room) -> None:
    first, second = os.open(room / "file", os.O_RDWR), os.open(room / "file", os.O_RDWR)
    os.pwrite(first, b"one", 0)
    os.pwrite(second, b"two", 3)
    assert os.pread(first, 6, 0) == os.pread(second, 6, 0) == b"onetwo"
    os.close(first)
    os.close(second)
    assert (room / "file").read_bytes() == b"onetwo" + CONTENT[6:]


def test_locks_keep_other_processes_out(room: Room) -> None:
    with open(room / "file", "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.lockf(file, fcntl.LOCK_EX)

        def try_both() -> list[bool]:
            taken = []
            for lock in (fcntl.flock, fcntl.lockf):
                with open(room / "file", "r+b") as own:
                    try:
                        lock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        taken.append(True)
                    except BlockingIOError:
                        taken.append(False)
            return taken

        assert in_child(try_both) == [False, False]
    assert in_child(try_both) == [True, True]
