"""Which ids are shown and stored, and owners kept in attributes: values alone."""

from __future__ import annotations

import os
import stat
import struct

import pytest

from unionfs.overlay.owners import (
    CONTAINERS_STAT,
    PRIVILEGED_STAT,
    USER_STAT,
    Ids,
    Owners,
    changed,
    declaration,
    declared,
    shown_name,
    stored_name,
)

#: What podman --userns=keep-id passes for user 1001.
KEEP_ID = ((0, 1, 1001), (1001, 0, 1), (1002, 1002, 64535))
NOBODY = 65534


def a_stat(mode: int, uid: int = 10, gid: int = 20, rdev: int = 0) -> os.stat_result:
    return changed(os.stat("/"), st_mode=mode, st_uid=uid, st_gid=gid, st_rdev=rdev)


@pytest.mark.parametrize(
    ("stored", "shown"),
    [(0, 1), (1, 2), (1000, 1001), (1001, 0), (1002, 1002), (65536, 65536)],
)
def test_a_mapping_shows_stored_ids_and_stores_shown_ones(stored: int, shown: int) -> None:
    ids = Ids(KEEP_ID)
    assert (ids.shown(stored), ids.stored(shown)) == (shown, stored)


def test_what_no_range_covers_is_the_overflow_id_both_ways() -> None:
    ids = Ids(((0, 100, 10),), overflow=4711)
    assert [ids.shown(9), ids.shown(10)] == [109, 4711]
    assert [ids.stored(99), ids.stored(100), ids.stored(110)] == [4711, 0, 4711]
    assert (ids.find_shown(10), ids.find_stored(99)) == (None, None)


def test_without_ranges_an_id_is_itself() -> None:
    assert (Ids().shown(7), Ids().stored(7), Ids().find_shown(7), Ids().find_stored(7)) == (7, 7, 7, 7)


def test_squashing_changes_what_is_shown_and_not_what_is_stored() -> None:
    ids = Ids(((0, 100, 10),), squash=3)
    assert (ids.shown(5), ids.shown(5000), ids.stored(105)) == (3, 3, 5)
    assert (Owners(users=ids).squashed, Owners(groups=ids).squashed, Owners(users=Ids(KEEP_ID)).squashed) == (True, True, False)


def test_only_the_owner_of_a_stat_changes() -> None:
    st = os.stat("/dev/null")
    shown = Owners(Ids(((st.st_uid, 5, 1),)), Ids(((st.st_gid, 6, 1),))).shown(st)
    fields = [name for name in dir(st) if name.startswith("st_") and name not in ("st_uid", "st_gid")]
    assert {name: getattr(shown, name) for name in fields} == {name: getattr(st, name) for name in fields}
    assert (shown.st_uid, shown.st_gid) == (5, 6)
    assert tuple(changed(st)) == tuple(st)


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NONE = 0xFFFFFFFF
BASE = ((0x01, 6, NONE), (0x04, 4, NONE), (0x10, 7, NONE), (0x20, 0, NONE))


def test_named_users_and_groups_of_an_acl_are_mapped_each_by_its_kind() -> None:
    owners = Owners(Ids(((0, 100, 10),)), Ids(((0, 200, 10),)))
    stored, shown = acl(*BASE, (0x02, 7, 3), (0x08, 5, 3)), acl(*BASE, (0x02, 7, 103), (0x08, 5, 203))
    assert owners.shown_acl(stored) == shown
    assert owners.stored_acl(shown) == stored


def test_an_acl_shows_no_entry_for_who_is_not_in_the_mount_and_takes_none() -> None:
    owners = Owners(Ids(((0, 100, 10),)), Ids(((0, 200, 10),)))
    assert owners.shown_acl(acl(*BASE, (0x02, 7, 10), (0x08, 7, 11))) == acl(*BASE)
    with pytest.raises(OSError, match="Invalid argument"):
        owners.stored_acl(acl(*BASE, (0x02, 7, 3)))
    with pytest.raises(OSError, match="Invalid argument"):
        owners.stored_acl(b"no acl")


def test_squashing_leaves_who_an_acl_names() -> None:
    named = acl(*BASE, (0x02, 7, 3))
    assert Owners(Ids(squash=0)).shown_acl(named) == named


def test_a_version_2_capability_is_user_0s() -> None:
    value = struct.pack("<5I", 0x02000001, 0x2000, 0, 0x30, 0)
    of_five = struct.pack("<6I", 0x03000001, 0x2000, 0, 0x30, 0, 5)
    moved = Owners(Ids(((0, 5, 1), (9, 0, 1))))
    assert moved.shown_capability(value) == of_five
    assert moved.stored_capability(value) == of_five[:-4] + struct.pack("<I", 9)
    assert Owners(Ids(((0, 0, 9),))).shown_capability(value) == value
    assert Owners(Ids(((7, 7, 9),))).shown_capability(value) is None


def test_the_root_of_a_version_3_capability_is_a_user() -> None:
    owners = Owners(Ids(((1000, 0, 10),)))
    stored, shown = (struct.pack("<IIIIII", 0x03000001, 0x2000, 0, 0, 0, root) for root in (1003, 3))
    assert owners.shown_capability(stored) == shown
    assert owners.stored_capability(shown) == stored
    assert owners.shown_capability(shown) is None
    with pytest.raises(OSError, match="Invalid argument"):
        owners.stored_capability(stored)


@pytest.mark.parametrize("value", [struct.pack("<5I", 0x03000001, 0, 0, 0, 0), struct.pack("<6I", 0x02000001, 0, 0, 0, 0, 5), b"x"])
def test_what_names_no_root_is_left_alone(value: bytes) -> None:
    owners = Owners(Ids(((1000, 0, 10),)))
    assert (owners.shown_capability(value), owners.stored_capability(value)) == (value, value)


FILE, DIRECTORY, LINK = stat.S_IFREG | 0o755, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777


@pytest.mark.parametrize(
    ("value", "backing", "mode", "rdev"),
    [
        (b"1:2:4711", FILE, stat.S_IFREG | 0o4711, 0),
        (b"1:2:0644", FILE, stat.S_IFREG | 0o644, 0),  # container engines
        (b"1:2:100644", FILE, stat.S_IFREG | 0o644, 0),  # fuse-overlayfs 1.10
        (b"1:2:40755", DIRECTORY, stat.S_IFDIR | 0o755, 0),
        (b"1:2:700:dir", DIRECTORY, stat.S_IFDIR | 0o700, 0),
        (b"1:2:0644:file", FILE, stat.S_IFREG | 0o644, 0),
        (b"1:2:0:pipe", FILE, stat.S_IFIFO, 0),
        (b"1:2:755:socket", FILE, stat.S_IFSOCK | 0o755, 0),
        (b"1:2:600:block-8-1", FILE, stat.S_IFBLK | 0o600, os.makedev(8, 1)),
        (b"1:2:666:char-1-3", FILE, stat.S_IFCHR | 0o666, os.makedev(1, 3)),
        (b"1:2:777:symlink", LINK, stat.S_IFLNK | 0o777, 0),
        (b"1:2:777", LINK, stat.S_IFLNK | 0o777, 0),
    ],
)
def test_an_attribute_says_owner_mode_and_type(value: bytes, backing: int, mode: int, rdev: int) -> None:
    st = declared(value, a_stat(backing))
    assert (st.st_uid, st.st_gid, oct(st.st_mode), st.st_rdev) == (1, 2, oct(mode), rdev)


@pytest.mark.parametrize(
    ("value", "backing"),
    [
        *((value, FILE) for value in (
            b"", b"1", b"1:2", b"1:2:", b"1:2:9", b"-1:2:644", b"1:2:644:", b"1:2:644:door", b"1:2:644:char", b"1:2:644:char-1",
            b"1:2:644:file-1-3", b"1:2:644:dir", b"1:2:644:symlink", b"4294967295:0:644", b"0:9999999999:644", b"1:2:644\n", b"1_0:2:644",
            b"1:2:644:char-9999999999-1", b"1:2:644:char-0-0", b"1:2:644:file:more", b"\xff\xfe", b"1:2:77777777", b"1 :2:644",
        )),
        (b"1:2:644:file", DIRECTORY), (b"1:2:644:pipe", DIRECTORY), (b"1:2:644:char-1-3", LINK),
    ],
)  # fmt: skip
def test_an_attribute_without_a_meaning_lets_nobody_in_and_changes_no_type(value: bytes, backing: int) -> None:
    st = declared(value, a_stat(backing | 0o7777))
    assert (st.st_uid, st.st_gid, st.st_mode) == (NOBODY, NOBODY, stat.S_IFMT(backing))


@pytest.mark.parametrize(
    ("mode", "rdev", "backing", "value"),
    [
        (stat.S_IFREG | 0o4755, 0, FILE, b"1:2:4755"),
        (stat.S_IFDIR | 0o1777, 0, DIRECTORY, b"1:2:1777"),
        (stat.S_IFIFO | 0o644, 0, FILE, b"1:2:644:pipe"),
        (stat.S_IFSOCK, 0, FILE, b"1:2:0:socket"),
        (stat.S_IFCHR | 0o600, os.makedev(4, 300), FILE, b"1:2:600:char-4-300"),
        (stat.S_IFIFO | 0o644, 0, stat.S_IFIFO, b"1:2:644"),
    ],
)
def test_what_is_declared_reads_back(mode: int, rdev: int, backing: int, value: bytes) -> None:
    assert declaration(1, 2, mode, rdev, backing) == value
    st = declared(value, a_stat(backing))
    assert (st.st_uid, st.st_gid, st.st_mode, st.st_rdev) == (1, 2, mode, rdev)


@pytest.mark.parametrize(
    ("attribute", "name", "stored"),
    [
        (CONTAINERS_STAT, b"user.foo", b"user.foo"),
        (CONTAINERS_STAT, b"security.capability", b"user.containers.override_security.capability"),
        (CONTAINERS_STAT, CONTAINERS_STAT, b"user.containers.override_" + CONTAINERS_STAT),
        (CONTAINERS_STAT, b"user.containers.override_security.x", b"user.containers.override_user.containers.override_security.x"),
        (CONTAINERS_STAT, b"user.containers.override_foo", b"user.containers.override_foo"),
        (PRIVILEGED_STAT, b"security.capability", b"security.capability"),
        (PRIVILEGED_STAT, PRIVILEGED_STAT, b"user.containers.override_" + PRIVILEGED_STAT),
        (USER_STAT, USER_STAT, b"user.containers.override_" + USER_STAT),
        (USER_STAT, CONTAINERS_STAT, CONTAINERS_STAT),
    ],
)
def test_a_user_can_name_anything_and_forge_nothing(attribute: bytes, name: bytes, stored: bytes) -> None:
    assert stored_name(attribute, name) == stored
    assert shown_name(attribute, stored) == name


def test_the_layers_own_attributes_are_not_shown() -> None:
    assert [shown_name(name, name) for name in (CONTAINERS_STAT, PRIVILEGED_STAT, USER_STAT)] == [None, None, None]
    assert shown_name(CONTAINERS_STAT, b"security.selinux") is None
