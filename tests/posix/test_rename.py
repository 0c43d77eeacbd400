"""rename and renameat2."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from tests.posix.rooms import CONTENT, OLD_NS, Room, fails_with
from tests.support.tree import snapshot

NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
_libc = ctypes.CDLL(None, use_errno=True)


def rename(old: Path, new: Path, flags: int = 0) -> None:
    if _libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def test_a_renamed_file_keeps_everything_but_its_name(room: Room) -> None:
    os.setxattr(room / "file", "user.x", b"y")
    before = os.stat(room / "file")
    rename(room / "file", room / "new")
    after = os.stat(room / "new")
    assert not (room / "file").exists() and (room / "new").read_bytes() == CONTENT
    assert os.getxattr(room / "new", "user.x") == b"y"
    assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (before.st_ino, before.st_mode, OLD_NS)


def test_a_file_can_move_to_another_directory(room: Room) -> None:
    rename(room / "file", room / "directory" / "sub" / "moved")
    assert (room / "directory" / "sub" / "moved").read_bytes() == CONTENT
    assert "file" not in os.listdir(room.path) and os.listdir(room / "directory" / "sub") == ["moved"]


def test_a_rename_replaces_an_existing_file(room: Room) -> None:
    rename(room / "file", room / "other")
    assert (room / "other").read_bytes() == CONTENT and not (room / "file").exists()
    assert os.listdir(room.path).count("other") == 1


def test_a_new_file_replaces_an_old_one(room: Room) -> None:
    (room / "new").write_bytes(b"new")
    rename(room / "new", room / "file")
    assert (room / "file").read_bytes() == b"new" and not (room / "new").exists()


def test_symlinks_fifos_and_devices_can_be_renamed(room: Room) -> None:
    for name in ("link", "dangling", "fifo", "null"):
        before = os.lstat(room / name)
        rename(room / name, room / f"{name}_new")
        assert os.lstat(room / f"{name}_new").st_mode == before.st_mode and not os.path.lexists(room / name)
    assert os.readlink(room / "link_new") == "file"


def test_a_rename_does_not_follow_symlinks(room: Room) -> None:
    rename(room / "file", room / "link_to_directory")
    assert (room / "link_to_directory").read_bytes() == CONTENT and not (room / "link_to_directory").is_symlink()
    assert (room / "directory" / "one").exists()


def test_renaming_a_file_to_itself_or_its_other_link_changes_nothing(room: Room) -> None:
    rename(room / "file", room / "file")
    os.link(room / "file", room / "new")
    if not room.of_users_kernel:  # there the two are not known to be one file: ESTALE
        rename(room / "file", room / "new")
    assert (room / "file").read_bytes() == (room / "new").read_bytes() == CONTENT


def test_a_new_directory_can_be_renamed_with_all_its_contents(room: Room) -> None:
    os.makedirs(room / "new" / "sub")
    (room / "new" / "sub" / "file").write_bytes(b"x")
    rename(room / "new", room / "newer")
    assert (room / "newer" / "sub" / "file").read_bytes() == b"x" and not (room / "new").exists()
    rename(room / "newer", room / "directory" / "moved")
    assert (room / "directory" / "moved" / "sub" / "file").read_bytes() == b"x"


def test_a_directory_can_be_renamed_wherever_it_comes_from(room: Room) -> None:
    if room.of_users_kernel:
        with fails_with(errno.EXDEV):
            rename(room / "directory", room / "new")
        return
    before = snapshot(os.fsencode(room / "directory"))
    rename(room / "directory", room / "new")
    assert snapshot(os.fsencode(room / "new")) == before and not (room / "directory").exists()
    os.mkdir(room / "directory")
    assert os.listdir(room / "directory") == []
    rename(room / "new", room / "directory" / "moved")
    assert len(os.listdir(room / "directory" / "moved")) == 5


def test_a_directory_replaces_only_an_empty_directory(room: Room) -> None:
    os.mkdir(room / "new")
    (room / "new" / "inside").write_bytes(b"x")
    with fails_with(errno.ENOTEMPTY):
        rename(room / "new", room / "directory")
    rename(room / "new", room / "hollow")
    assert os.listdir(room / "hollow") == ["inside"] and not (room / "new").exists()


def test_a_directory_that_replaces_an_emptied_one_shows_nothing_of_it(room: Room) -> None:
    for name in ("one", "two", "three", "four"):
        os.unlink(room / "directory" / name)
    os.rmdir(room / "directory" / "sub")
    os.mkdir(room / "new")
    (room / "new" / "inside").write_bytes(b"x")
    rename(room / "new", room / "directory")
    assert os.listdir(room / "directory") == ["inside"]


def test_file_and_directory_do_not_replace_each_other(room: Room) -> None:
    os.mkdir(room / "new")
    with fails_with(errno.EISDIR):
        rename(room / "file", room / "new")
    with fails_with(errno.ENOTDIR):
        rename(room / "new", room / "file")


def test_a_directory_cannot_move_below_itself(room: Room) -> None:
    os.makedirs(room / "new" / "sub")
    with fails_with(errno.EINVAL):
        rename(room / "new", room / "new" / "sub" / "below")
    with fails_with(errno.ENOTEMPTY):
        rename(room / "new" / "sub", room / "new")


def test_renaming_what_is_missing_fails_with_enoent(room: Room) -> None:
    with fails_with(errno.ENOENT):
        rename(room / "missing", room / "new")
    with fails_with(errno.ENOENT):
        rename(room / "file", room / "missing" / "new")
    with fails_with(errno.ENOTDIR):
        rename(room / "file", room / "other" / "new")


def test_noreplace_refuses_an_existing_name_and_renames_to_a_free_one(room: Room) -> None:
    with fails_with(errno.EEXIST):
        rename(room / "file", room / "other", NOREPLACE)
    with fails_with(errno.EEXIST):
        rename(room / "file", room / "dangling", NOREPLACE)
    rename(room / "file", room / "new", NOREPLACE)
    assert (room / "new").read_bytes() == CONTENT


def test_noreplace_sees_that_a_removed_name_is_free(room: Room) -> None:
    os.unlink(room / "other")
    rename(room / "file", room / "other", NOREPLACE)
    assert (room / "other").read_bytes() == CONTENT


def test_exchange_swaps_two_files(room: Room) -> None:
    before = os.stat(room / "file").st_ino, os.stat(room / "other").st_ino
    rename(room / "file", room / "other", EXCHANGE)
    assert (room / "file").read_bytes() == b"other\n" and (room / "other").read_bytes() == CONTENT
    assert (os.stat(room / "other").st_ino, os.stat(room / "file").st_ino) == before


def test_exchange_swaps_a_file_and_a_new_directory(room: Room) -> None:
    os.mkdir(room / "new")
    (room / "new" / "inside").write_bytes(b"x")
    rename(room / "file", room / "new", EXCHANGE)
    assert (room / "new").read_bytes() == CONTENT and os.listdir(room / "file") == ["inside"]


def test_exchange_needs_both_names(room: Room) -> None:
    with fails_with(errno.ENOENT):
        rename(room / "file", room / "missing", EXCHANGE)
    with fails_with(errno.ENOENT):
        rename(room / "missing", room / "file", EXCHANGE)


def test_contradictory_or_unknown_flags_fail_with_einval(room: Room) -> None:
    for flags in (NOREPLACE | EXCHANGE, 1 << 10):
        with fails_with(errno.EINVAL):
            rename(room / "file", room / "other", flags)


def test_an_open_file_that_is_replaced_stays_readable_and_writable(room: Room) -> None:
    fd = os.open(room / "other", os.O_RDWR)
    rename(room / "file", room / "other")
    assert os.pread(fd, 100, 0) == b"other\n"
    assert os.pwrite(fd, b"OTHER", 0) == 5 and os.pread(fd, 100, 0) == b"OTHER\n"
    assert os.fstat(fd).st_nlink == 0
    os.close(fd)
    assert (room / "other").read_bytes() == CONTENT


def test_an_open_file_that_is_renamed_stays_the_same_file(room: Room) -> None:
    fd = os.open(room / "file", os.O_RDWR)
    rename(room / "file", room / "new")
    os.pwrite(fd, b"THE", 0)
    os.close(fd)
    assert (room / "new").read_bytes() == b"THE" + CONTENT[3:]


def test_a_working_directory_follows_its_rename(room: Room) -> None:
    os.makedirs(room / "new" / "sub")
    fd = os.open(room / "new" / "sub", os.O_RDONLY | os.O_DIRECTORY)
    rename(room / "new", room / "newer")
    inside = os.open("inside", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    os.write(inside, b"x")
    os.close(inside)
    os.close(fd)
    assert (room / "newer" / "sub" / "inside").read_bytes() == b"x"


def test_a_name_can_go_round_in_circles(room: Room) -> None:
    for _ in range(3):
        rename(room / "file", room / "a")
        rename(room / "other", room / "file")
        rename(room / "a", room / "other")
    assert (room / "file").read_bytes() == b"other\n" and (room / "other").read_bytes() == CONTENT


def test_renaming_changes_the_time_of_both_directories_only(room: Room) -> None:
    rename(room / "directory" / "one", room / "hollow" / "one")
    assert os.stat(room / "directory").st_mtime_ns > OLD_NS and os.stat(room / "hollow").st_mtime_ns > OLD_NS
    assert os.stat(room / "hollow" / "one").st_mtime_ns == OLD_NS
    assert os.stat(room.path).st_mtime_ns == OLD_NS
