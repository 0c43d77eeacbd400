"""POSIX ACLs: what they grant, what they deny, how they are inherited."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.posix.rooms import Room, fails_with, furniture
from tests.support.acl import ACCESS, DEFAULT, encode
from tests.support.users import as_user

GRANT = encode(6, 0, 0, users={1000: 6})
DENY = encode(6, 4, 4, users={1000: 0})
INHERITED = encode(7, 5, 0, users={1000: 7})


def with_acls(room: Path) -> None:
    (room / "granted").write_bytes(b"granted\n")
    os.chmod(room / "granted", 0o600)
    os.setxattr(room / "granted", ACCESS, GRANT)
    (room / "denied").write_bytes(b"denied\n")
    os.setxattr(room / "denied", ACCESS, DENY)
    (room / "heirs").mkdir()
    os.chmod(room / "heirs", 0o777)
    os.setxattr(room / "heirs", DEFAULT, INHERITED)
    (room / "closed").mkdir()
    (room / "closed" / "file").write_bytes(b"inside\n")
    os.setxattr(room / "closed", ACCESS, encode(7, 5, 5, users={1000: 0}))


def mode_of(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


@furniture(with_acls)
def test_an_acl_grants_what_the_mode_does_not(room: Room) -> None:
    assert as_user((room / "granted").read_bytes) == b"granted\n"
    as_user(lambda: (room / "granted").write_bytes(b"changed\n"))
    with fails_with(errno.EACCES):
        as_user((room / "granted").read_bytes, uid=1001)
    assert (room / "granted").read_bytes() == b"changed\n"


@furniture(with_acls)
def test_an_acl_denies_what_the_mode_grants(room: Room) -> None:
    with fails_with(errno.EACCES):
        as_user((room / "denied").read_bytes)
    assert as_user((room / "denied").read_bytes, uid=1001) == b"denied\n"


@furniture(with_acls)
def test_an_acl_closes_a_directory_to_one_user(room: Room) -> None:
    with fails_with(errno.EACCES):
        as_user((room / "closed" / "file").read_bytes)
    with fails_with(errno.EACCES):
        as_user(lambda: os.listdir(room / "closed"))
    assert as_user((room / "closed" / "file").read_bytes, uid=1001) == b"inside\n"


@furniture(with_acls)
def test_old_acls_are_shown_and_survive_a_copy_up(room: Room) -> None:
    assert os.getxattr(room / "granted", ACCESS) == GRANT
    os.utime(room / "granted")
    os.chown(room / "denied", 1001, 1001)
    (room / "heirs" / "new").write_bytes(b"")
    assert os.getxattr(room / "granted", ACCESS) == GRANT and os.getxattr(room / "denied", ACCESS) == DENY
    assert os.getxattr(room / "heirs", DEFAULT) == INHERITED
    with fails_with(errno.EACCES):
        as_user((room / "denied").read_bytes)
    assert as_user((room / "granted").read_bytes) == b"granted\n"


def test_a_new_acl_holds_at_once(room: Room) -> None:
    assert as_user((room / "file").read_bytes)
    os.setxattr(room / "file", ACCESS, DENY)
    with fails_with(errno.EACCES):
        as_user((room / "file").read_bytes)
    os.removexattr(room / "file", ACCESS)
    assert as_user((room / "file").read_bytes)


def test_setting_an_acl_sets_the_mode_with_its_mask(room: Room) -> None:
    os.setxattr(room / "file", ACCESS, encode(7, 4, 1, users={1000: 6}, mask=6))
    assert mode_of(room / "file") == 0o761
    os.setxattr(room / "file", ACCESS, encode(6, 2, 0))
    assert mode_of(room / "file") == 0o620
    with fails_with(errno.ENODATA):
        os.getxattr(room / "file", ACCESS)  # it says no more than the mode


def test_chmod_changes_the_mask_of_an_acl(room: Room) -> None:
    os.setxattr(room / "file", ACCESS, encode(6, 4, 4, users={1000: 6}, mask=6))
    os.chmod(room / "file", 0o614)
    assert os.getxattr(room / "file", ACCESS) == encode(6, 4, 4, users={1000: 6}, mask=1)
    with fails_with(errno.EACCES):
        as_user((room / "file").read_bytes)
    os.chmod(room / "file", 0o640)
    assert as_user((room / "file").read_bytes)


def test_a_named_group_is_granted_through_the_mask(room: Room) -> None:
    os.setxattr(room / "secret", ACCESS, encode(6, 0, 0, groups={1002: 7}, mask=4))
    assert as_user((room / "secret").read_bytes, groups=[1002]) == b"secret\n"
    with fails_with(errno.EACCES):
        as_user(lambda: os.open(room / "secret", os.O_WRONLY), groups=[1002])
    with fails_with(errno.EACCES):
        as_user((room / "secret").read_bytes)


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)


@furniture(with_acls)
def test_files_and_directories_inherit_the_default_acl(room: Room) -> None:
    with umask(0):
        (room / "heirs" / "file").write_bytes(b"x")
        os.mkdir(room / "heirs" / "directory")
        os.mkfifo(room / "heirs" / "fifo")
    # The mode that was asked for bounds owner, mask and others.
    assert os.getxattr(room / "heirs" / "file", ACCESS) == encode(6, 5, 0, users={1000: 7}, mask=6)
    assert os.getxattr(room / "heirs" / "directory", ACCESS) == INHERITED
    assert os.getxattr(room / "heirs" / "directory", DEFAULT) == INHERITED
    assert os.getxattr(room / "heirs" / "fifo", ACCESS) == encode(6, 5, 0, users={1000: 7}, mask=6)
    assert mode_of(room / "heirs" / "file") == 0o660 and mode_of(room / "heirs" / "directory") == 0o770


def modes_of_heirs(room: Room) -> tuple[int, int]:
    """Of a file and a directory that are made below a default ACL with a umask that leaves the owner alone."""
    with umask(0o077):
        os.close(os.open(room / "heirs" / "file", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(room / "heirs" / "directory", 0o777)
    return mode_of(room / "heirs" / "file"), mode_of(room / "heirs" / "directory")


@pytest.mark.beyond_pyfuse3
@furniture(with_acls)
def test_the_umask_is_not_applied_below_a_default_acl(room: Room) -> None:
    assert modes_of_heirs(room) == (0o660, 0o770)


@furniture(with_acls)
def test_symlinks_inherit_nothing(room: Room) -> None:
    os.symlink("x", room / "heirs" / "link")
    assert os.listxattr(room / "heirs" / "link", follow_symlinks=False) == []


def test_a_default_acl_works_at_every_depth(room: Room) -> None:
    os.setxattr(room / "directory", DEFAULT, INHERITED)
    os.makedirs(room / "directory" / "a" / "b")
    (room / "directory" / "a" / "b" / "file").write_bytes(b"deep\n")
    assert os.getxattr(room / "directory" / "a" / "b", DEFAULT) == INHERITED
    assert as_user((room / "directory" / "a" / "b" / "file").read_bytes) == b"deep\n"
    with fails_with(errno.EACCES):
        as_user((room / "directory" / "a" / "b" / "file").read_bytes, uid=1001)


def test_a_default_acl_belongs_on_directories_only(room: Room) -> None:
    with fails_with(errno.EACCES):
        os.setxattr(room / "file", DEFAULT, INHERITED)
    os.setxattr(room / "directory", DEFAULT, INHERITED)
    os.removexattr(room / "directory", DEFAULT)
    with fails_with(errno.ENODATA):
        os.getxattr(room / "directory", DEFAULT)


def test_only_the_owner_may_set_an_acl(room: Room) -> None:
    as_user(lambda: os.setxattr(room / "mine", ACCESS, encode(6, 4, 0, users={1001: 6})))
    as_user(lambda: (room / "mine").write_bytes(b"by another\n"), uid=1001)
    with fails_with(errno.EPERM):
        as_user(lambda: os.setxattr(room / "file", ACCESS, GRANT))
    with fails_with(errno.EPERM):
        as_user(lambda: os.removexattr(room / "file", ACCESS))


def test_malformed_acls_are_refused(room: Room) -> None:
    with fails_with(errno.EINVAL):
        os.setxattr(room / "file", ACCESS, b"\x02\0\0\0\x01\0")
    with fails_with(errno.EINVAL):
        os.setxattr(room / "file", ACCESS, GRANT[:-8])  # without "others"
    with fails_with(errno.EOPNOTSUPP):
        os.setxattr(room / "file", ACCESS, b"\x01" + GRANT[1:])  # another version


def test_symlinks_have_no_acls(room: Room) -> None:
    with fails_with(errno.EOPNOTSUPP):
        os.setxattr(room / "link", ACCESS, GRANT, follow_symlinks=False)


@furniture(with_acls)
def test_acls_are_listed_among_the_attributes(room: Room) -> None:
    assert ACCESS in os.listxattr(room / "granted") and DEFAULT in os.listxattr(room / "heirs")
    assert os.listxattr(room / "file") == []
