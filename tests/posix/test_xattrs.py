"""Extended attributes: names, sizes, flags, errors, name spaces."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.posix.rooms import OLD_NS, Room, fails_with, furniture
from tests.support.users import as_user
from unionfs.linux.process import may_use_trusted_xattrs


def tagged(room: Path) -> None:
    os.setxattr(room / "file", "user.old", b"old value")
    os.setxattr(room / "file", "user.empty", b"")
    os.setxattr(room / "file", "trusted.old", b"t")
    os.setxattr(room / "directory", "user.old", b"of the directory")
    os.setxattr(room / "link", "trusted.old", b"of the link", follow_symlinks=False)


@pytest.mark.root
@furniture(tagged)
def test_old_attributes_are_shown(room: Room) -> None:
    assert set(os.listxattr(room / "file")) == {"user.old", "user.empty", "trusted.old"}
    assert os.getxattr(room / "file", "user.old") == b"old value" and os.getxattr(room / "file", "user.empty") == b""
    assert os.getxattr(room / "directory", "user.old") == b"of the directory"
    assert os.getxattr(room / "link", "trusted.old", follow_symlinks=False) == b"of the link"


@pytest.mark.root
@furniture(tagged)
def test_old_attributes_survive_a_copy_up(room: Room) -> None:
    for name in ("file", "directory"):
        os.chmod(room / name, 0o700)
    os.lchown(room / "link", 1, 1)
    assert os.getxattr(room / "file", "user.old") == b"old value" and os.getxattr(room / "file", "trusted.old") == b"t"
    assert set(os.listxattr(room / "file")) == {"user.old", "user.empty", "trusted.old"}
    assert os.listxattr(room / "directory") == ["user.old"]
    assert os.getxattr(room / "link", "trusted.old", follow_symlinks=False) == b"of the link"


@pytest.mark.root
@furniture(tagged)
def test_attributes_can_be_changed_and_removed(room: Room) -> None:
    os.setxattr(room / "file", "user.old", b"new")
    os.removexattr(room / "file", "user.empty")
    assert os.getxattr(room / "file", "user.old") == b"new"
    assert set(os.listxattr(room / "file")) == {"user.old", "trusted.old"}
    with fails_with(errno.ENODATA):
        os.getxattr(room / "file", "user.empty")


def test_attributes_can_be_set_on_files_and_directories(room: Room) -> None:
    for name in ("file", "directory", "empty"):
        os.setxattr(room / name, "user.new", b"\0binary\xff")
        assert os.getxattr(room / name, "user.new") == b"\0binary\xff" and os.listxattr(room / name) == ["user.new"]
    assert os.stat(room / "file").st_mtime_ns == OLD_NS


def test_an_open_files_attributes_can_be_used(room: Room) -> None:
    fd = os.open(room / "file", os.O_RDONLY)
    os.setxattr(fd, "user.new", b"x")
    assert os.getxattr(fd, "user.new") == b"x" and os.listxattr(fd) == ["user.new"]
    os.removexattr(fd, "user.new")
    assert os.listxattr(fd) == []
    os.close(fd)


def test_create_and_replace_flags_are_obeyed(room: Room) -> None:
    with fails_with(errno.ENODATA):
        os.setxattr(room / "file", "user.x", b"", os.XATTR_REPLACE)
    os.setxattr(room / "file", "user.x", b"1", os.XATTR_CREATE)
    with fails_with(errno.EEXIST):
        os.setxattr(room / "file", "user.x", b"2", os.XATTR_CREATE)
    os.setxattr(room / "file", "user.x", b"3", os.XATTR_REPLACE)
    assert os.getxattr(room / "file", "user.x") == b"3"


def test_a_missing_attribute_fails_with_enodata(room: Room) -> None:
    for name in ("user.missing", *(("trusted.missing", "security.missing") if may_use_trusted_xattrs() else ())):
        with fails_with(errno.ENODATA):
            os.getxattr(room / "file", name)
        with fails_with(errno.ENODATA):
            os.removexattr(room / "file", name)


def test_a_missing_file_fails_with_enoent(room: Room) -> None:
    with fails_with(errno.ENOENT):
        os.getxattr(room / "missing", "user.x")
    with fails_with(errno.ENOENT):
        os.setxattr(room / "missing", "user.x", b"")
    with fails_with(errno.ENOENT):
        os.listxattr(room / "missing")


def test_names_outside_the_name_spaces_are_not_supported(room: Room) -> None:
    for name in ("nonsense", "other.name", "system.other"):
        with fails_with(errno.EOPNOTSUPP):
            os.setxattr(room / "file", name, b"")
        with fails_with(errno.EOPNOTSUPP):
            os.getxattr(room / "file", name)


def test_user_attributes_belong_on_files_and_directories_only(room: Room) -> None:
    for name in ("fifo", "null"):
        with fails_with(errno.EPERM):
            os.setxattr(room / name, "user.x", b"")
    with fails_with(errno.EPERM):
        os.setxattr(room / "link", "user.x", b"", follow_symlinks=False)


def test_names_have_at_most_255_bytes(room: Room) -> None:
    longest = "user." + "n" * 250
    os.setxattr(room / "file", longest, b"x")
    assert os.listxattr(room / "file") == [longest]
    with fails_with(errno.ERANGE):
        os.setxattr(room / "file", longest + "n", b"x")


def test_values_have_at_most_64_kibibytes(room: Room) -> None:
    with fails_with(errno.E2BIG):
        os.setxattr(room / "file", "user.x", b"v" * 65_537)
    os.setxattr(room / "file", "user.x", b"v" * 2000)
    assert os.getxattr(room / "file", "user.x") == b"v" * 2000


def test_more_than_the_disk_filesystem_can_hold_is_refused_and_nothing_lost(room: Room) -> None:
    os.setxattr(room / "file", "user.x", b"kept")
    try:
        os.setxattr(room / "file", "user.x", b"v" * 65_536)
    except OSError as error:
        assert error.errno in (errno.ENOSPC, errno.E2BIG)
        assert os.getxattr(room / "file", "user.x") == b"kept"
    else:
        assert os.getxattr(room / "file", "user.x") == b"v" * 65_536


def test_many_attributes_are_all_listed(room: Room) -> None:
    names = {f"user.name{number}" for number in range(40)}
    for name in names:
        os.setxattr(room / "file", name, name.encode())
    assert set(os.listxattr(room / "file")) == names
    assert all(os.getxattr(room / "file", name) == name.encode() for name in names)


@pytest.mark.root
def test_attributes_of_the_union_itself_can_be_set_and_stay_apart(room: Room) -> None:
    for name in ("trusted.overlay.opaque", "trusted.overlay.redirect", "trusted.overlay.whiteout"):
        os.setxattr(room / "directory", name, b"y")
        assert os.getxattr(room / "directory", name) == b"y"
    assert len(os.listxattr(room / "directory")) == 3 and len(os.listdir(room / "directory")) == 5
    os.removexattr(room / "directory", "trusted.overlay.opaque")
    assert set(os.listxattr(room / "directory")) == {"trusted.overlay.redirect", "trusted.overlay.whiteout"}


@pytest.mark.root
@furniture(tagged)
def test_trusted_attributes_are_hidden_from_ordinary_users(room: Room) -> None:
    assert set(as_user(lambda: os.listxattr(room / "file"))) == {"user.old", "user.empty"}
    with fails_with(errno.ENODATA):
        as_user(lambda: os.getxattr(room / "file", "trusted.old"))
    with fails_with(errno.EPERM):
        as_user(lambda: os.setxattr(room / "mine", "trusted.x", b""))


def test_user_attributes_need_permission_for_the_file(room: Room) -> None:
    as_user(lambda: os.setxattr(room / "mine", "user.x", b"y"))
    assert os.getxattr(room / "mine", "user.x") == b"y"
    with fails_with(errno.EACCES):
        as_user(lambda: os.setxattr(room / "file", "user.x", b"y"))
    with fails_with(errno.EACCES):
        as_user(lambda: os.getxattr(room / "secret", "user.x"))


def test_attributes_travel_with_a_rename(room: Room) -> None:
    os.setxattr(room / "file", "user.x", b"y")
    os.rename(room / "file", room / "new")
    assert os.getxattr(room / "new", "user.x") == b"y"
