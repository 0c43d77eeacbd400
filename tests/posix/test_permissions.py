"""What an ordinary user may do, sticky and setgid directories, and the bits that writing takes away."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.posix.rooms import CONTENT, Room, fails_with, furniture
from tests.support.users import as_user

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def private(room: Path) -> None:
    """Directories that ordinary users may search but not read, read but not search, or neither."""
    for name, mode in (("closed", 0o700), ("unreadable", 0o711), ("unsearchable", 0o744)):
        (room / name).mkdir()
        (room / name / "file").write_bytes(b"inside")
        (room / name).chmod(mode)
    (room / "group").write_bytes(b"for the group\n")
    os.chown(room / "group", 0, 1002)
    (room / "group").chmod(0o640)


def with_capability(room: Path) -> None:
    os.setxattr(room / "program", "security.capability", CAPABILITY)


def test_a_user_reads_what_others_may_read_and_not_what_they_may_not(room: Room) -> None:
    assert as_user((room / "file").read_bytes) == CONTENT
    with fails_with(errno.EACCES):
        as_user((room / "secret").read_bytes)


def test_a_user_writes_his_own_files_only(room: Room) -> None:
    as_user(lambda: (room / "mine").write_bytes(b"changed"))
    assert (room / "mine").read_bytes() == b"changed"
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
        with fails_with(errno.EACCES):
            as_user(lambda flags=flags: os.open(room / "file", flags))  # type: ignore[misc]
    with fails_with(errno.EACCES):
        as_user(lambda: os.truncate(room / "file", 0))
    assert (room / "file").read_bytes() == CONTENT


@furniture(private)
def test_a_supplementary_group_gives_its_permission(room: Room) -> None:
    with fails_with(errno.EACCES):
        as_user((room / "group").read_bytes)
    assert as_user((room / "group").read_bytes, groups=[1002]) == b"for the group\n"


@furniture(private)
def test_directories_need_read_to_list_and_execute_to_enter(room: Room) -> None:
    for name in ("closed", "unreadable"):
        with fails_with(errno.EACCES):
            as_user(lambda name=name: os.listdir(room / name))  # type: ignore[misc]
    for name in ("closed", "unsearchable"):
        with fails_with(errno.EACCES):
            as_user((room / name / "file").read_bytes)
    assert as_user((room / "unreadable" / "file").read_bytes) == b"inside"
    assert as_user(lambda: os.listdir(room / "unsearchable")) == ["file"]


def test_a_user_makes_and_removes_names_only_where_he_may_write(room: Room) -> None:
    inside = room / "directory"
    for operation in (lambda: os.mkdir(inside / "new"), lambda: os.mkfifo(inside / "new"),
                      lambda: os.symlink("x", inside / "new"), lambda: os.unlink(inside / "one"),
                      lambda: os.rmdir(inside / "sub"), lambda: os.rename(inside / "one", inside / "new"),
                      lambda: os.rename(room / "mine", inside / "new"), lambda: os.link(room / "mine", inside / "new"),
                      lambda: os.close(os.open(inside / "new", os.O_CREAT | os.O_WRONLY))):
        with fails_with(errno.EACCES):
            as_user(operation)
    assert len(os.listdir(inside)) == 5


def test_what_a_user_makes_is_his(room: Room) -> None:
    def make() -> None:
        (room / "new").write_bytes(b"x")
        os.mkdir(room / "new_directory")
        os.symlink("x", room / "new_link")
        os.mkfifo(room / "new_fifo")
        (room / "new_directory" / "inside").write_bytes(b"y")

    as_user(make, groups=[1002])
    for name in ("new", "new_directory", "new_link", "new_fifo", "new_directory/inside"):
        found = os.lstat(room / name)
        assert (found.st_uid, found.st_gid) == (1000, 1000), name


def test_a_user_removes_files_of_others_from_his_own_directory(room: Room) -> None:
    as_user(lambda: os.unlink(room / "users" / "roots"))
    assert os.listdir(room / "users") == []
    as_user(lambda: os.rmdir(room / "users"))
    assert not (room / "users").exists()


def test_a_sticky_directory_lets_users_remove_their_own_files_only(room: Room) -> None:
    for name in ("roots", "others"):
        with fails_with(errno.EPERM):
            as_user(lambda name=name: os.unlink(room / "sticky" / name))  # type: ignore[misc]
        with fails_with(errno.EPERM):
            as_user(lambda name=name: os.rename(room / "sticky" / name, room / "sticky" / "x"))  # type: ignore[misc]
    with fails_with(errno.EPERM):
        as_user(lambda: os.rename(room / "sticky" / "users", room / "sticky" / "others"))
    as_user(lambda: os.unlink(room / "sticky" / "users"))
    assert set(os.listdir(room / "sticky")) == {"roots", "others"}


def test_what_is_made_in_a_setgid_directory_gets_its_group(room: Room) -> None:
    def make() -> None:
        (room / "setgid" / "file").write_bytes(b"x")
        os.mkdir(room / "setgid" / "directory")
        os.makedirs(room / "setgid" / "directory" / "deeper")
        os.symlink("x", room / "setgid" / "link")
        os.mkfifo(room / "setgid" / "fifo")

    as_user(make)
    for name in ("file", "directory", "directory/deeper", "link", "fifo"):
        found = os.lstat(room / "setgid" / name)
        assert (found.st_uid, found.st_gid) == (1000, 1002), name
    assert mode_of(room / "setgid" / "directory") & stat.S_ISGID
    assert not mode_of(room / "setgid" / "file") & stat.S_ISGID


def test_a_user_outside_the_group_cannot_make_setgid_files_in_a_setgid_directory(room: Room) -> None:
    def make() -> None:
        os.umask(0)
        os.close(os.open(room / "setgid" / "file", os.O_CREAT | os.O_WRONLY, 0o2775))

    as_user(make)
    assert mode_of(room / "setgid" / "file") == 0o775


def test_writing_drops_suid_and_sgid_for_a_user(room: Room) -> None:
    as_user(lambda: (room / "suid").open("ab").close())
    assert mode_of(room / "suid") == 0o6777

    def write() -> None:
        with open(room / "suid", "ab") as file:
            file.write(b"x")

    as_user(write)
    assert mode_of(room / "suid") == 0o777


def test_truncating_drops_suid_and_sgid_for_a_user(room: Room) -> None:
    as_user(lambda: os.truncate(room / "suid", 1))
    assert mode_of(room / "suid") == 0o777


def test_opening_with_trunc_drops_suid_and_sgid_for_a_user(room: Room) -> None:
    as_user(lambda: os.close(os.open(room / "suid", os.O_WRONLY | os.O_TRUNC)))
    assert mode_of(room / "suid") == 0o777


@pytest.mark.root
def test_writing_as_root_keeps_suid(room: Room) -> None:
    with open(room / "suid", "ab") as file:
        file.write(b"x")
    assert mode_of(room / "suid") == 0o6777


def test_chown_drops_suid_and_sgid_even_for_root(room: Room) -> None:
    os.chown(room / "suid", 1000, 1000)
    assert mode_of(room / "suid") == 0o777


def test_chown_by_the_owner_drops_suid_and_sgid(room: Room) -> None:
    as_user(lambda: os.chown(room / "suid_of_user", -1, 1002), groups=[1002])
    assert mode_of(room / "suid_of_user") == 0o755


def test_chown_of_a_directory_keeps_setgid(room: Room) -> None:
    os.chown(room / "setgid", 1000, 1000)
    assert mode_of(room / "setgid") == 0o2777


@furniture(with_capability)
def test_writing_removes_file_capabilities(room: Room) -> None:
    assert os.getxattr(room / "program", "security.capability") == CAPABILITY
    with open(room / "program", "ab") as file:
        file.write(b"#\n")
    with fails_with(errno.ENODATA):
        os.getxattr(room / "program", "security.capability")


@furniture(with_capability)
def test_chmod_keeps_file_capabilities_and_chown_removes_them(room: Room) -> None:
    os.chmod(room / "program", 0o711)
    assert os.getxattr(room / "program", "security.capability") == CAPABILITY
    os.chown(room / "program", 1000, 1000)
    with fails_with(errno.ENODATA):
        os.getxattr(room / "program", "security.capability")


def test_only_the_owner_may_chmod(room: Room) -> None:
    as_user(lambda: os.chmod(room / "mine", 0o600))
    assert mode_of(room / "mine") == 0o600
    with fails_with(errno.EPERM):
        as_user(lambda: os.chmod(room / "file", 0o777))


def test_chmod_by_an_owner_outside_the_group_drops_setgid(room: Room) -> None:
    os.chown(room / "mine", 1000, 1002)
    as_user(lambda: os.chmod(room / "mine", 0o2755))
    assert mode_of(room / "mine") == 0o755
    as_user(lambda: os.chmod(room / "mine", 0o2755), groups=[1002])
    assert mode_of(room / "mine") == 0o2755


def test_a_user_may_give_his_file_to_his_groups_only_and_to_nobody_else(room: Room) -> None:
    as_user(lambda: os.chown(room / "mine", -1, 1002), groups=[1002])
    assert os.stat(room / "mine").st_gid == 1002
    with fails_with(errno.EPERM):
        as_user(lambda: os.chown(room / "mine", -1, 0))
    with fails_with(errno.EPERM):
        as_user(lambda: os.chown(room / "mine", 1001, -1))
    with fails_with(errno.EPERM):
        as_user(lambda: os.chown(room / "file", 1000, -1))


def test_setting_times_needs_ownership_and_touching_write_permission(room: Room) -> None:
    as_user(lambda: os.utime(room / "mine", ns=(1, 1)))
    assert os.stat(room / "mine").st_mtime_ns == 1
    with fails_with(errno.EPERM):
        as_user(lambda: os.utime(room / "file", ns=(1, 1)))
    with fails_with(errno.EACCES):
        as_user(lambda: os.utime(room / "file"))
    os.chmod(room / "file", 0o666)
    as_user(lambda: os.utime(room / "file"))
    with fails_with(errno.EPERM):
        as_user(lambda: os.utime(room / "file", ns=(1, 1)))


def test_a_user_makes_no_device_nodes_but_root_does(room: Room) -> None:
    with fails_with(errno.EPERM):
        as_user(lambda: os.mknod(room / "new", stat.S_IFCHR | 0o666, os.makedev(1, 3)))
    as_user(lambda: os.mknod(room / "new", stat.S_IFIFO | 0o666))


def test_access_answers_by_the_users_permissions(room: Room) -> None:
    def answers() -> list[bool]:
        return [os.access(room / "file", os.R_OK), os.access(room / "file", os.W_OK),
                os.access(room / "file", os.X_OK), os.access(room / "program", os.X_OK),
                os.access(room / "secret", os.R_OK), os.access(room / "secret", os.F_OK),
                os.access(room / "mine", os.R_OK | os.W_OK), os.access(room / "missing", os.F_OK)]

    assert as_user(answers) == [True, False, False, True, False, True, True, False]


def test_a_user_executes_what_he_may(room: Room) -> None:
    assert as_user(lambda: os.spawnv(os.P_WAIT, room / "program", ["program"])) == 7
    os.chmod(room / "program", 0o744)
    with fails_with(errno.EACCES):
        as_user(lambda: os.execv(room / "program", ["program"]))


def test_a_suid_program_runs_as_its_owner(room: Room) -> None:
    with open("/usr/bin/id", "rb") as source:
        (room / "id").write_bytes(source.read())
    os.chown(room / "id", 1001, 1001)
    os.chmod(room / "id", 0o4755)

    def effective_user() -> bytes:
        reader, writer = os.pipe()
        if (pid := os.fork()) == 0:
            os.dup2(writer, 1)
            os.execv(room / "id", ["id", "-u"])
        os.close(writer)
        with os.fdopen(reader, "rb") as output:
            data = output.read()
        os.waitpid(pid, 0)
        return data

    assert as_user(effective_user) == b"1001\n"


def test_root_is_not_bound_by_permissions(room: Room) -> None:
    os.chmod(room / "mine", 0)
    assert (room / "mine").read_bytes() == b"mine\n"
    os.chmod(room / "users", 0)
    (room / "users" / "new").write_bytes(b"x")
    assert set(os.listdir(room / "users")) == {"roots", "new"}


def test_a_changed_permission_holds_at_once(room: Room) -> None:
    os.chmod(room / "file", 0o600)
    with fails_with(errno.EACCES):
        as_user((room / "file").read_bytes)
    os.chmod(room / "file", 0o604)
    assert as_user((room / "file").read_bytes) == CONTENT
    os.chmod(room / "directory", 0o700)
    with fails_with(errno.EACCES):
        as_user((room / "directory" / "one").read_bytes)


def test_an_open_descriptor_keeps_what_it_was_granted(room: Room) -> None:
    fd = os.open(room / "mine", os.O_RDWR)
    os.chmod(room / "mine", 0)
    os.fchown(fd, 0, 0)

    def use() -> bytes:
        os.pwrite(fd, b"M", 0)
        return os.pread(fd, 4, 0)

    assert as_user(use) == b"Mine"
    os.close(fd)
