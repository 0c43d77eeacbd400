"""Mode, owner, times, sizes of filesystems."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable

import pytest

from tests.posix.rooms import CONTENT, OLD_NS, Room, fails_with

NOW = time.time_ns() - 3600 * 10**9  # an hour ago: what is later has been touched by the test


def mode_of(path: os.PathLike[str]) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def test_chmod_sets_every_mode_bit(room: Room) -> None:
    for mode in (0o000, 0o777, 0o4755, 0o2755, 0o1777, 0o7777, 0o644):
        os.chmod(room / "file", mode)
        assert mode_of(room / "file") == mode
        os.chmod(room / "directory", mode)
        assert mode_of(room / "directory") == mode


def test_chmod_changes_neither_content_nor_modification_time(room: Room) -> None:
    ino = os.stat(room / "file").st_ino
    os.chmod(room / "file", 0o600)
    found = os.stat(room / "file")
    assert found.st_mtime_ns == OLD_NS and found.st_ino == ino and (room / "file").read_bytes() == CONTENT


def test_chmod_works_on_fifos_and_devices_and_through_symlinks(room: Room) -> None:
    for name in ("fifo", "null"):
        os.chmod(room / name, 0o600)
        assert mode_of(room / name) == 0o600
    os.chmod(room / "link", 0o600)
    assert mode_of(room / "file") == 0o600 and mode_of(room / "link") == 0o777


def test_fchmod_and_fchown_change_the_open_file(room: Room) -> None:
    fd = os.open(room / "file", os.O_RDONLY)
    os.fchmod(fd, 0o611)
    os.fchown(fd, 1000, 1001)
    found = os.stat(room / "file")
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o611, 1000, 1001)
    os.close(fd)


def test_chown_sets_owner_and_group_apart(room: Room) -> None:
    os.chown(room / "file", 1000, -1)
    assert (os.stat(room / "file").st_uid, os.stat(room / "file").st_gid) == (1000, 0)
    os.chown(room / "file", -1, 1001)
    assert (os.stat(room / "file").st_uid, os.stat(room / "file").st_gid) == (1000, 1001)
    os.chown(room / "directory", 1001, 1002)
    assert (os.stat(room / "directory").st_uid, os.stat(room / "directory").st_gid) == (1001, 1002)


@pytest.mark.root
def test_owners_may_have_any_number(room: Room) -> None:
    os.chown(room / "file", 4_000_000_000, 4_000_000_000)
    assert os.stat(room / "file").st_uid == 4_000_000_000


def test_lchown_changes_the_symlink_itself(room: Room) -> None:
    os.lchown(room / "link", 1000, 1001)
    assert (os.lstat(room / "link").st_uid, os.lstat(room / "link").st_gid) == (1000, 1001)
    assert os.stat(room / "file").st_uid == 0 and os.readlink(room / "link") == "file"
    os.lchown(room / "dangling", 1000, 1001)
    assert os.lstat(room / "dangling").st_uid == 1000


def test_chmod_and_chown_of_a_missing_file_fail_with_enoent(room: Room) -> None:
    for name in ("missing", "dangling"):
        with fails_with(errno.ENOENT):
            os.chmod(room / name, 0o600)
        with fails_with(errno.ENOENT):
            os.chown(room / name, 0, 0)


def test_times_keep_their_nanoseconds(room: Room) -> None:
    for name in ("file", "directory", "fifo"):
        os.utime(room / name, ns=(1_234_567_890_987_654_321, 1_098_765_432_123_456_789))
        found = os.stat(room / name)
        assert (found.st_atime_ns, found.st_mtime_ns) == (1_234_567_890_987_654_321, 1_098_765_432_123_456_789)


def test_times_of_a_symlink_are_its_own(room: Room) -> None:
    os.utime(room / "link", ns=(5, 6), follow_symlinks=False)
    assert (os.lstat(room / "link").st_atime_ns, os.lstat(room / "link").st_mtime_ns) == (5, 6)
    assert os.stat(room / "file").st_mtime_ns == OLD_NS


def test_times_before_1970_and_after_2038_are_kept(room: Room) -> None:
    for moment in (-1_500_000_000, 4_000_000_000 * 10**9 + 7):
        os.utime(room / "file", ns=(moment, moment))
        assert os.stat(room / "file").st_mtime_ns == moment


def test_times_set_to_now_are_now(room: Room) -> None:
    os.utime(room / "file")
    assert os.stat(room / "file").st_mtime_ns > NOW and os.stat(room / "file").st_atime_ns > NOW


def test_old_times_are_shown_to_the_nanosecond(room: Room) -> None:
    for name in ("file", "link", "directory", "fifo", "null"):
        assert os.lstat(room / name).st_mtime_ns == OLD_NS


def test_each_change_updates_the_change_time(room: Room) -> None:
    before = os.stat(room / "file").st_ctime_ns
    changes: tuple[Callable[[], None], ...] = (
        lambda: os.chmod(room / "file", 0o600), lambda: os.chown(room / "file", 1, 1),
        lambda: os.setxattr(room / "file", "user.x", b""), lambda: os.link(room / "file", room / "new"),
        lambda: os.utime(room / "file", ns=(1, 1)), lambda: os.truncate(room / "file", 1))
    for change in changes:
        time.sleep(0.02)
        change()
        after = os.stat(room / "file").st_ctime_ns
        assert after > before
        before = after


def test_writing_updates_the_modification_time_and_reading_does_not(room: Room) -> None:
    (room / "file").read_bytes()
    assert os.stat(room / "file").st_mtime_ns == OLD_NS
    with open(room / "file", "ab") as file:
        file.write(b"x")
    assert os.stat(room / "file").st_mtime_ns > NOW


def test_changing_a_directory_updates_its_modification_time(room: Room) -> None:
    for change in (lambda: (room / "directory" / "new").write_bytes(b""), lambda: os.unlink(room / "directory" / "one"),
                   lambda: os.mkdir(room / "directory" / "new_sub"), lambda: os.rmdir(room / "directory" / "sub"),
                   lambda: os.symlink("x", room / "directory" / "s")):
        os.utime(room / "directory", ns=(OLD_NS, OLD_NS))
        assert os.stat(room / "directory").st_mtime_ns == OLD_NS
        change()
        assert os.stat(room / "directory").st_mtime_ns > NOW


def test_changing_a_file_does_not_change_its_directorys_time(room: Room) -> None:
    os.chmod(room / "directory" / "one", 0o600)
    (room / "directory" / "two").write_bytes(b"changed")
    assert os.stat(room / "directory").st_mtime_ns == OLD_NS
    assert os.stat(room.path).st_mtime_ns == OLD_NS


def test_the_inode_number_survives_every_change(room: Room) -> None:
    ino = os.stat(room / "file").st_ino
    os.chmod(room / "file", 0o600)
    assert os.stat(room / "file").st_ino == ino
    (room / "file").write_bytes(b"changed")
    assert os.stat(room / "file").st_ino == ino
    os.rename(room / "file", room / "new")
    assert os.stat(room / "new").st_ino == ino
    directory = os.stat(room / "directory").st_ino
    (room / "directory" / "new").write_bytes(b"x")
    os.chmod(room / "directory", 0o700)
    assert os.stat(room / "directory").st_ino == directory


def test_symlinks_sizes_are_the_lengths_of_their_targets(room: Room) -> None:
    assert os.lstat(room / "link").st_size == 4 and os.lstat(room / "dangling").st_size == 7


def test_block_counts_follow_the_size(room: Room) -> None:
    (room / "new").write_bytes(b"x" * 100_000)
    fd = os.open(room / "new", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    assert os.stat(room / "new").st_blocks * 512 >= 100_000


def test_statvfs_tells_the_size_of_the_filesystem_below(room: Room) -> None:
    shown, below = os.statvfs(room.path), os.statvfs(room.in_upper.parent)
    assert shown.f_namemax == 255 and shown.f_blocks * shown.f_frsize == below.f_blocks * below.f_frsize
    assert 0 < shown.f_bavail <= shown.f_bfree <= shown.f_blocks and 0 < shown.f_ffree <= shown.f_files
    assert not shown.f_flag & os.ST_RDONLY
    fd = os.open(room / "file", os.O_RDONLY)
    assert os.fstatvfs(fd).f_blocks == shown.f_blocks
    os.close(fd)


def test_pathconf_knows_the_limits(room: Room) -> None:
    assert os.pathconf(room.path, "PC_NAME_MAX") == 255
    assert os.pathconf(room.path, "PC_PATH_MAX") == 4096
