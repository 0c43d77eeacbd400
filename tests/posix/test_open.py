"""The flags of open."""

from __future__ import annotations

import errno
import os
import stat

from tests.posix.rooms import CONTENT, OLD_NS, Room, fails_with
from unionfs.linux.process import may_use_trusted_xattrs


def test_reading_changes_nothing_on_disk(room: Room) -> None:
    assert (room / "file").read_bytes() == CONTENT
    assert os.stat(room / "file").st_mtime_ns == OLD_NS
    assert os.path.lexists(room.in_upper / "file") == (room.place in ("plain", "upper"))


def test_opening_a_missing_file_fails_with_enoent(room: Room) -> None:
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_TRUNC):
        with fails_with(errno.ENOENT):
            os.open(room / "missing", flags)


def test_excl_refuses_every_existing_name(room: Room) -> None:
    for name in ("file", "directory", "link", "dangling", "loop", "fifo"):
        with fails_with(errno.EEXIST):
            os.open(room / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)


def test_excl_makes_a_name_that_was_removed(room: Room) -> None:
    os.unlink(room / "file")
    fd = os.open(room / "file", os.O_CREAT | os.O_EXCL | os.O_RDWR)
    assert os.read(fd, 10) == b""
    os.close(fd)


def test_creat_opens_an_existing_file_as_it_is(room: Room) -> None:
    fd = os.open(room / "file", os.O_CREAT | os.O_RDWR, 0o600)
    assert os.read(fd, 100) == CONTENT and stat.S_IMODE(os.fstat(fd).st_mode) == 0o644
    os.close(fd)


def test_creat_through_a_dangling_symlink_makes_its_target(room: Room) -> None:
    os.close(os.open(room / "dangling", os.O_CREAT | os.O_WRONLY))
    assert (room / "nowhere").read_bytes() == b""


def test_a_file_created_without_any_permission_is_writable_through_its_descriptor(room: Room) -> None:
    fd = os.open(room / "new", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0)
    assert os.write(fd, b"x") == 1 and stat.S_IMODE(os.fstat(fd).st_mode) == 0
    os.close(fd)


def test_the_umask_applies_to_what_is_created(room: Room) -> None:
    old = os.umask(0o027)
    try:
        os.close(os.open(room / "new", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(room / "new_directory", 0o777)
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat(room / "new").st_mode) == 0o640
    assert stat.S_IMODE(os.stat(room / "new_directory").st_mode) == 0o750


def test_trunc_empties_the_file_at_open(room: Room) -> None:
    fd = os.open(room / "file", os.O_WRONLY | os.O_TRUNC)
    assert os.fstat(fd).st_size == 0 and os.stat(room / "file").st_size == 0
    os.write(fd, b"abc")
    os.close(fd)
    assert (room / "file").read_bytes() == b"abc" and os.stat(room / "file").st_mtime_ns > OLD_NS


def test_trunc_of_an_open_file_is_seen_by_its_readers(room: Room) -> None:
    reader = os.open(room / "file", os.O_RDWR)
    os.close(os.open(room / "file", os.O_WRONLY | os.O_TRUNC))
    assert os.fstat(reader).st_size == 0 and os.read(reader, 10) == b""
    os.close(reader)


def test_trunc_and_creat_together_replace_the_content(room: Room) -> None:
    (room / "file").write_bytes(b"short")
    assert (room / "file").read_bytes() == b"short"
    (room / "file").write_bytes(b"")
    assert os.stat(room / "file").st_size == 0


def test_append_always_writes_at_the_end(room: Room) -> None:
    fd = os.open(room / "file", os.O_WRONLY | os.O_APPEND)
    os.lseek(fd, 0, os.SEEK_SET)
    os.write(fd, b"one")
    os.lseek(fd, 2, os.SEEK_SET)
    os.write(fd, b"two")
    os.close(fd)
    assert (room / "file").read_bytes() == CONTENT + b"onetwo"


def test_two_appending_descriptors_do_not_overwrite_each_other(room: Room) -> None:
    first = os.open(room / "file", os.O_WRONLY | os.O_APPEND)
    second = os.open(room / "file", os.O_WRONLY | os.O_APPEND)
    for number in range(50):
        os.write(first, b"a%02d" % number)
        os.write(second, b"b%02d" % number)
    os.close(first)
    os.close(second)
    expected = b"".join(b"a%02db%02d" % (number, number) for number in range(50))
    assert (room / "file").read_bytes() == CONTENT + expected


def test_appending_and_truncating_alternate(room: Room) -> None:
    fd = os.open(room / "file", os.O_RDWR | os.O_APPEND)
    os.ftruncate(fd, 3)
    os.write(fd, b"X")
    os.truncate(room / "file", 1)
    os.write(fd, b"Y")
    assert os.pread(fd, 10, 0) == b"tY"
    os.close(fd)


def test_a_read_only_descriptor_cannot_write_nor_a_write_only_one_read(room: Room) -> None:
    reader, writer = os.open(room / "file", os.O_RDONLY), os.open(room / "file", os.O_WRONLY)
    with fails_with(errno.EBADF):
        os.write(reader, b"x")
    with fails_with(errno.EBADF):
        os.read(writer, 1)
    with fails_with(errno.EINVAL):
        os.ftruncate(reader, 0)
    os.close(reader)
    os.close(writer)


def test_a_directory_cannot_be_opened_for_writing(room: Room) -> None:
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_CREAT, os.O_RDWR | os.O_TRUNC):
        with fails_with(errno.EISDIR):
            os.open(room / "directory", flags)


def test_o_directory_refuses_what_is_none(room: Room) -> None:
    for name in ("file", "fifo", "link"):
        with fails_with(errno.ENOTDIR):
            os.open(room / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK)
    os.close(os.open(room / "link_to_directory", os.O_RDONLY | os.O_DIRECTORY))


def test_o_nofollow_refuses_symlinks(room: Room) -> None:
    with fails_with(errno.ELOOP):
        os.open(room / "link", os.O_RDONLY | os.O_NOFOLLOW)
    with fails_with(errno.ENOTDIR):
        os.open(room / "link_to_directory", os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)


def test_an_o_path_descriptor_leads_to_the_file(room: Room) -> None:
    fd = os.open(room / "file", os.O_PATH)
    assert os.fstat(fd).st_size == len(CONTENT)
    with open(f"/proc/self/fd/{fd}", "rb") as file:
        assert file.read() == CONTENT
    with fails_with(errno.EBADF):
        os.read(fd, 1)
    os.close(fd)


def test_a_socket_cannot_be_opened(room: Room) -> None:
    os.mknod(room / "socket", stat.S_IFSOCK | 0o600)
    with fails_with(errno.ENXIO):
        os.open(room / "socket", os.O_RDONLY)


def test_a_writer_on_a_fifo_without_reader_gets_enxio(room: Room) -> None:
    with fails_with(errno.ENXIO):
        os.open(room / "fifo", os.O_WRONLY | os.O_NONBLOCK)


def test_a_program_can_be_executed_but_not_while_it_is_written(room: Room) -> None:
    status = os.spawnv(os.P_WAIT, room / "program", ["program"])
    assert status == 7


def test_files_opened_through_a_directory_descriptor_are_the_same(room: Room) -> None:
    directory = os.open(room / "directory", os.O_RDONLY | os.O_DIRECTORY)
    fd = os.open("one", os.O_RDWR | os.O_APPEND, dir_fd=directory)
    os.write(fd, b" more")
    os.close(fd)
    os.close(directory)
    assert (room / "directory" / "one").read_bytes() == b"one more"


def test_a_reader_sees_what_is_written_after_it_opened_the_file(room: Room) -> None:
    reader = os.open(room / "file", os.O_RDONLY)
    writer = os.open(room / "file", os.O_WRONLY)
    os.pwrite(writer, b"THE", 0)
    seen = os.pread(reader, 3, 0)
    os.close(reader)
    os.close(writer)
    if room.kind == "kernel" and seen == b"the":
        return  # older kernels go on reading the lower file through a descriptor that is older than the copy-up
    if room.io == "passthrough" and may_use_trusted_xattrs():  # others are served from the cache
        assert seen == b"the"  # the kernel keeps to what was opened
        return
    assert seen == b"THE"
