"""Owners of a union: mapped, squashed, kept in attributes."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from pathlib import Path

import pytest

from tests.support import acl
from tests.support.users import as_user
from tests.unit.overlay.world import View, World, put, whiteout
from unionfs.errors import LayerError
from unionfs.overlay.make import Caller
from unionfs.overlay.owners import CONTAINERS_STAT, PRIVILEGED_STAT, STAT_NAMES, USER_STAT, Ids, Owners
from unionfs.overlay.union import Change

pytestmark = pytest.mark.usefixtures("root")

#: Stored 0 to 99 is shown as 1000 to 1099, groups as 2000 to 2099.
MAPPED = Owners(Ids(((0, 1000, 100),)), Ids(((0, 2000, 100),)))
ACCESS, DEFAULT = acl.ACCESS.encode(), acl.DEFAULT.encode()


def own(path: Path, uid: int, gid: int) -> Path:
    os.chown(path, uid, gid, follow_symlinks=False)
    return path


def owner(st: os.stat_result) -> tuple[int, int]:
    return st.st_uid, st.st_gid


def on_disk(path: Path) -> tuple[int, int]:
    return owner(path.lstat())


# ---- mapped ----


def test_every_way_to_attributes_shows_the_same_owner(world: World) -> None:
    own(put(world.lowers[0] / "file"), 5, 6)
    own(world.upper, 7, 8)
    view = world.open(owners=MAPPED)
    found = view.union.lookup(1, b"file")
    assert found is not None
    listed = {name: view.union.entry_node(1, name, what)[1] for name, _, what in view.union.entries(1, 2)}  # type: ignore[arg-type]
    assert [owner(st) for st in (found[1], listed[b"file"], view.stat(b"file"), view.stat(b""))] == [(1005, 2006)] * 3 + [(1007, 2008)]
    assert owner(view.change(b"file", Change(mode=0o600))) == (1005, 2006)
    assert owner(view.union.link(view.ino(b"file"), 1, b"second")[1]) == (1005, 2006)


@pytest.mark.parametrize("hidden", [False, True], ids=["anew", "over a whiteout"])
def test_what_is_made_is_stored_as_its_makers(world: World, hidden: bool) -> None:
    names = [b"file", b"directory", b"link", b"pipe"]
    if hidden:
        for name in names:
            put(world.lowers[0] / name.decode())
            whiteout(world.upper / name.decode())
    view, caller = world.open(owners=MAPPED), Caller(1003, 2004)
    made = [view.union.make_file(1, b"file", 0o644, caller), view.union.make_directory(1, b"directory", 0o755, caller),
            view.union.make_symlink(1, b"link", b"x", caller), view.union.make_special(1, b"pipe", stat.S_IFIFO | 0o644, 0, caller)]
    assert [owner(st) for _, st in made] == [(1003, 2004)] * 4
    assert [on_disk(world.upper / name.decode()) for name in names] == [(3, 4)] * 4


def test_the_user_who_is_stored_as_we_are_needs_no_chown(world: World) -> None:
    view = world.open(owners=MAPPED)
    view.make_file(b"file", caller=Caller(1000, 2000))
    assert (owner(view.stat(b"file")), on_disk(world.upper / "file")) == ((1000, 2000), (0, 0))


def test_who_is_in_no_range_is_the_overflow_user_both_ways(world: World) -> None:
    own(put(world.lowers[0] / "strange"), 500, 600)
    view = world.open(owners=MAPPED)
    assert owner(view.stat(b"strange")) == (65534, 65534)
    view.make_file(b"file", caller=Caller(0, 0))
    assert (owner(view.stat(b"file")), on_disk(world.upper / "file")) == ((65534, 65534), (65534, 65534))
    view.change(b"file", Change(uid=1001))
    assert (owner(view.stat(b"file")), on_disk(world.upper / "file")) == ((1001, 65534), (1, 65534))


def test_copy_up_keeps_the_stored_owner_whoever_it_is(world: World) -> None:
    own(put(world.lowers[0] / "directory" / "strange"), 500, 600)
    own(world.lowers[0] / "directory", 5, 6)
    view = world.open(owners=MAPPED)
    view.chmod(b"directory/strange", 0o600)
    assert (on_disk(world.upper / "directory"), on_disk(world.upper / "directory/strange")) == ((5, 6), (500, 600))
    assert owner(view.stat(b"directory/strange")) == (65534, 65534)


def test_chown_stores_the_one_id_it_names(world: World) -> None:
    own(put(world.lowers[0] / "file"), 5, 6)
    view = world.open(owners=MAPPED)
    view.change(b"file", Change(gid=2009))
    assert (owner(view.stat(b"file")), on_disk(world.upper / "file")) == ((1005, 2009), (5, 9))


def test_without_the_mapping_the_stored_ids_show_again(world: World) -> None:
    view = world.open(owners=MAPPED)
    view.make_file(b"file", caller=Caller(1003, 2004))
    world.close(view)
    assert owner(world.open().stat(b"file")) == (3, 4)


def shared(world: World) -> None:
    (world.lowers[0] / "shared").mkdir()
    own(world.lowers[0] / "shared", 0, 9).chmod(0o2777)


def test_a_setgid_directory_gives_its_own_group(world: World) -> None:
    shared(world)
    view = world.open(owners=MAPPED)
    view.make_file(b"shared/file", caller=Caller(1003, 2004))
    view.mkdir(b"shared/directory", caller=Caller(1003, 2004))
    assert [on_disk(world.upper / "shared" / name) for name in ("file", "directory")] == [(3, 9)] * 2
    assert view.stat(b"shared/directory").st_mode & stat.S_ISGID


@pytest.mark.parametrize(("groups", "kept"), [((2009,), True), ((9,), False), ((), False)])
def test_who_may_make_a_setgid_file_is_told_by_the_shown_group(world: World, groups: tuple[int, ...], kept: bool) -> None:
    shared(world)
    view = world.open(owners=MAPPED)
    view.make_file(b"shared/file", mode=0o2755, caller=Caller(1003, 2004, groups.__contains__))
    assert bool(view.stat(b"shared/file").st_mode & stat.S_ISGID) is kept


def test_acls_name_the_users_of_the_mount(world: World) -> None:
    file = put(world.lowers[0] / "file")
    os.setxattr(file, ACCESS, acl.encode(6, 4, 0, users={7: 6, 700: 6}, groups={8: 5}))
    view = world.open(owners=MAPPED)
    ino = view.ino(b"file")
    assert view.union.getxattr(ino, ACCESS) == acl.encode(6, 4, 0, users={1007: 6}, groups={2008: 5})
    view.chmod(b"file", 0o660)
    assert os.getxattr(world.upper / "file", ACCESS) == acl.encode(6, 4, 0, users={7: 6, 700: 6}, groups={8: 5}, mask=6)
    view.union.setxattr(ino, ACCESS, acl.encode(7, 4, 0, users={1009: 6}))
    assert os.getxattr(world.upper / "file", ACCESS) == acl.encode(7, 4, 0, users={9: 6})


def test_an_acl_for_who_is_not_in_the_mount_is_refused_before_anything_is_copied_up(world: World) -> None:
    put(world.lowers[0] / "file")
    view = world.open(owners=MAPPED)
    with pytest.raises(OSError, match="Invalid argument"):
        view.union.setxattr(view.ino(b"file"), ACCESS, acl.encode(7, 4, 0, users={9: 6}))
    assert not (world.upper / "file").exists()


def test_what_is_made_inherits_a_default_acl_as_it_is_stored(world: World) -> None:
    (world.lowers[0] / "directory").mkdir()
    os.setxattr(world.lowers[0] / "directory", DEFAULT, acl.encode(7, 5, 5, users={7: 6}))
    view = world.open(owners=MAPPED)
    view.make_file(b"directory/file", mode=0o666, caller=Caller(1003, 2004))
    assert os.getxattr(world.upper / "directory/file", ACCESS) == acl.encode(6, 5, 4, users={7: 6}, mask=6)
    assert view.xattrs(b"directory/file") == {ACCESS: acl.encode(6, 5, 4, users={1007: 6}, mask=6)}


def capability(root: int) -> bytes:
    return struct.pack("<6I", 0x03000001, 1 << 13, 0, 0, 0, root)


def test_a_capability_counts_where_its_root_is_root(world: World) -> None:
    for name, root in (("file", 50), ("strange", 500)):
        os.setxattr(put(world.lowers[0] / name), "security.capability", capability(root))
    view = world.open(owners=MAPPED)
    assert view.union.getxattr(view.ino(b"file"), b"security.capability") == capability(1050)
    with pytest.raises(OSError) as caught:
        view.union.getxattr(view.ino(b"strange"), b"security.capability")
    assert caught.value.errno == errno.ENODATA
    assert (list(view.xattrs(b"file")), list(view.xattrs(b"strange"))) == ([b"security.capability"], [])
    view.union.setxattr(view.ino(b"file"), b"security.capability", capability(1060))
    assert os.getxattr(world.upper / "file", "security.capability") == capability(60)


# ---- squashed ----


def test_squashed_owners_are_all_the_same_and_stored_as_they_are(world: World) -> None:
    own(put(world.lowers[0] / "file"), 5, 6)
    view = world.open(owners=Owners(Ids(squash=0), Ids(squash=42)))
    view.make_file(b"new", caller=Caller(3, 4))
    assert [owner(view.stat(name)) for name in (b"file", b"new", b"")] == [(0, 42)] * 3
    assert owner(view.change(b"file", Change(uid=77, gid=78))) == (0, 42)
    assert [on_disk(world.upper / name) for name in ("file", "new")] == [(77, 78), (3, 4)]


def squash_as_a_user(world: World, owners: Owners | None) -> list[tuple[int, int]]:
    """As a user who may not chown: make what belongs to root, copy up and chown."""
    view = world.open(userxattr=True, owners=owners)
    view.make_file(b"new", caller=Caller(0, 0))
    view.mkdir(b"directory", caller=Caller(0, 0))
    view.symlink(b"x", b"link", caller=Caller(0, 0))
    view.change(b"file", Change(uid=5, gid=5, mode=0o640))
    found = [owner(view.stat(name)) for name in (b"new", b"directory", b"link", b"file")]
    view.union.close()
    return found


def test_squashed_owners_need_no_right_to_chown(world: World) -> None:
    put(world.lowers[0] / "file", b"data")
    for path in (world.upper, world.work):
        own(path, 1000, 1000)
    assert as_user(lambda: squash_as_a_user(world, Owners(Ids(squash=0), Ids(squash=0)))) == [(0, 0)] * 4
    assert [on_disk(world.upper / name) for name in ("new", "directory", "link", "file")] == [(1000, 1000)] * 4
    assert (world.upper / "file").read_bytes() == b"data"


def test_without_squashing_the_same_is_an_error_and_leaves_nothing(world: World) -> None:
    for path in (world.upper, world.work):
        own(path, 1000, 1000)
    with pytest.raises(PermissionError):
        as_user(lambda: squash_as_a_user(world, None))
    assert (os.listdir(world.upper), os.listdir(world.building)) == ([], [])


# ---- kept in attributes ----


def declared(path: Path, attribute: bytes = CONTAINERS_STAT) -> str:
    return os.getxattr(path, attribute, follow_symlinks=False).decode()


def shown(view: View, path: bytes) -> tuple[str, int, int]:
    st = view.stat(path)
    return stat.filemode(st.st_mode), st.st_uid, st.st_gid


@pytest.mark.parametrize("attribute", STAT_NAMES)
def test_owner_mode_and_type_of_what_is_made_are_in_the_attribute(world: World, attribute: bytes) -> None:
    view, caller = world.open(stat_attribute=attribute), Caller(3, 4)
    view.make_file(b"file", mode=0o4600, caller=caller)
    view.mkdir(b"directory", mode=0o1700, caller=caller)
    view.mknod(b"pipe", stat.S_IFIFO | 0o640, caller=caller)
    view.mknod(b"socket", stat.S_IFSOCK | 0o600, caller=caller)
    view.mknod(b"device", stat.S_IFCHR | 0o666, os.makedev(1, 3), caller=caller)
    expected = {b"file": ("-rwS------", "3:4:4600"), b"directory": ("drwx-----T", "3:4:1700"), b"pipe": ("prw-r-----", "3:4:640:pipe"),
                b"socket": ("srw-------", "3:4:600:socket"), b"device": ("crw-rw-rw-", "3:4:666:char-1-3")}
    for _ in range(2):
        assert {name: (shown(view, name), declared(world.upper / name.decode(), attribute)) for name in expected} == {
            name: ((mode, 3, 4), value) for name, (mode, value) in expected.items()}
        assert view.stat(b"device").st_rdev == os.makedev(1, 3)
        view = world.reopen(view)  # now only the attributes say so
    for name in expected:
        st = (world.upper / name.decode()).lstat()
        assert (stat.S_ISDIR(st.st_mode) or stat.S_ISREG(st.st_mode), stat.S_IMODE(st.st_mode), owner(st)) == (True, 0o755, (0, 0))


@pytest.mark.parametrize(("attribute", "value"), [(CONTAINERS_STAT, None), (PRIVILEGED_STAT, "3:4:777")])
def test_a_symlink_has_the_attribute_where_it_can_and_else_the_owner_itself(world: World, attribute: bytes, value: str | None) -> None:
    view = world.open(stat_attribute=attribute)
    view.symlink(b"x", b"link", caller=Caller(3, 4))
    assert shown(view, b"link") == ("lrwxrwxrwx", 3, 4)
    if value is None:
        assert on_disk(world.upper / "link") == (3, 4)
    else:
        assert (on_disk(world.upper / "link"), declared(world.upper / "link", attribute)) == ((0, 0), value)


def test_chmod_and_chown_change_the_attribute_alone(world: World) -> None:
    view = world.open(stat_attribute=CONTAINERS_STAT)
    view.make_file(b"file", mode=0o644)
    view.change(b"file", Change(uid=7))
    view.change(b"file", Change(gid=8))
    view.change(b"file", Change(mode=0o6711))
    assert (shown(view, b"file"), declared(world.upper / "file")) == (("-rws--s--x", 7, 8), "7:8:6711")
    view.change(b"file", Change(uid=9))
    assert declared(world.upper / "file") == "9:8:711", "chown takes suid and sgid away"
    view.change(b"file", Change(uid=9, mode=0o4711))
    assert declared(world.upper / "file") == "9:8:4711"
    view.union.open(view.ino(b"file"), os.O_WRONLY | os.O_TRUNC, drop_suid=Caller(3, 8))
    assert declared(world.upper / "file") == "9:8:711"
    assert (on_disk(world.upper / "file"), (world.upper / "file").stat().st_mode) == ((0, 0), stat.S_IFREG | 0o755)


def test_chown_leaves_setgid_on_a_directory(world: World) -> None:
    view = world.open(stat_attribute=CONTAINERS_STAT)
    view.mkdir(b"directory", mode=0o2755)
    view.change(b"directory", Change(uid=7, gid=8))
    view.make_file(b"directory/file", caller=Caller(3, 4))
    view.mkdir(b"directory/inner", caller=Caller(3, 4))
    assert declared(world.upper / "directory") == "7:8:2755"
    assert declared(world.upper / "directory/file") == "3:8:644"
    assert declared(world.upper / "directory/inner") == "3:8:2755"


def test_an_object_without_the_attribute_is_what_its_inode_says(world: World) -> None:
    own(put(world.upper / "file", mode=0o640), 5, 6)
    view = world.open(stat_attribute=CONTAINERS_STAT)
    assert shown(view, b"file") == ("-rw-r-----", 5, 6)
    view.chmod(b"file", 0o600)
    assert declared(world.upper / "file") == "5:6:600"


@pytest.mark.parametrize("attribute", [CONTAINERS_STAT, PRIVILEGED_STAT])
def test_a_pipe_that_is_one_has_owner_and_mode_wherever_it_can(world: World, attribute: bytes) -> None:
    os.mkfifo(world.upper / "pipe", 0o644)
    view = world.open(stat_attribute=attribute)
    view.change(b"pipe", Change(uid=3, gid=4, mode=0o600))
    assert shown(view, b"pipe") == ("prw-------", 3, 4)
    view.chmod(b"pipe", 0o640)
    assert shown(view, b"pipe") == ("prw-r-----", 3, 4)
    st = (world.upper / "pipe").lstat()
    assert (owner(st), st.st_mode) == (((3, 4), stat.S_IFIFO | 0o640) if attribute == CONTAINERS_STAT else ((0, 0), stat.S_IFIFO | 0o644))


def kept_lower(world: World) -> None:
    """A lower that keeps owners in attributes, with a device and a file of two names each."""
    lower = world.lowers[0]
    os.setxattr(lower, CONTAINERS_STAT, b"0:0:755")
    for name, data, value in (("file", b"data", b"3:4:4750"), ("device", b"", b"5:6:640:char-1-3")):
        os.setxattr(put(lower / name, data, 0o755), CONTAINERS_STAT, value)
        os.link(lower / name, lower / f"{name}2")


@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("attribute", [None, CONTAINERS_STAT, PRIVILEGED_STAT])
def test_metacopies_and_lower_links_keep_what_attributes_say(world: World, attribute: bytes | None, index: bool) -> None:
    kept_lower(world)
    view = world.open(stat_attribute=attribute, metacopy=True, index=index)
    for name in (b"file", b"device"):
        view.change(name, Change(gid=9))
    changed = ("-rwxr-x---", 3, 9), ("crw-r-----", 5, 9)
    other = changed if index else (("-rwsr-x---", 3, 4), ("crw-r-----", 5, 6))  # the other name is the same file, or not
    for _ in range(2):
        assert (shown(view, b"file"), shown(view, b"device")) == changed
        assert view.stat(b"device").st_rdev == os.makedev(1, 3)
        assert view.read(b"file") == b"data"
        assert (shown(view, b"file2"), shown(view, b"device2")) == other
        world.close(view)
        view = world.open(stat_attribute=attribute, metacopy=True, index=index)
    view.write(b"file", b"DATA")
    assert (view.read(b"file"), shown(view, b"file")) == (b"DATA", ("-rwxr-x---", 3, 9))
    assert view.read(b"file2") == (b"DATA" if index else b"data")


def test_the_root_of_an_upper_gets_the_attribute_that_says_what_it_is(world: World) -> None:
    own(world.upper, 5, 6).chmod(0o1711)
    view = world.open(stat_attribute=CONTAINERS_STAT)
    assert (declared(world.upper), shown(view, b"")) == ("5:6:1711", ("drwx--x--t", 5, 6))
    view.change(b"", Change(uid=1, mode=0o755))
    assert (declared(world.upper), on_disk(world.upper)) == ("1:6:755", (5, 6))


def test_a_new_upper_says_of_its_root_what_the_topmost_lower_of_its_kind_says_of_its_own(world: World) -> None:
    os.setxattr(world.lowers[1], PRIVILEGED_STAT, b"7:8:1555")
    view = world.open(stat_attribute=CONTAINERS_STAT)
    assert (declared(world.upper), shown(view, b"")) == ("7:8:1555", ("dr-xr-xr-t", 7, 8))
    view.change(b"", Change(mode=0o700))
    view = world.reopen(view)
    assert shown(view, b"") == ("drwx------", 7, 8), "what it has it keeps"


@pytest.mark.parametrize(
    ("there", "asked", "used"),
    [
        (None, None, None),
        (CONTAINERS_STAT, None, CONTAINERS_STAT),
        (USER_STAT, None, USER_STAT),
        (PRIVILEGED_STAT, None, PRIVILEGED_STAT),
        (USER_STAT, CONTAINERS_STAT, USER_STAT),
        (PRIVILEGED_STAT, CONTAINERS_STAT, CONTAINERS_STAT),
        (CONTAINERS_STAT, PRIVILEGED_STAT, PRIVILEGED_STAT),
    ],
)
def test_the_root_of_upper_or_the_option_says_which_attribute(
    world: World, there: bytes | None, asked: bytes | None, used: bytes | None
) -> None:
    if there is not None:
        os.setxattr(world.upper, there, b"0:0:555")
    view = world.open(stat_attribute=asked)
    view.make_file(b"file", mode=0o600, caller=Caller(3, 4))
    there_now = [name for name in STAT_NAMES if name.decode() in os.listxattr(world.upper / "file")]
    assert there_now == [name for name in STAT_NAMES if name == used]
    assert (on_disk(world.upper / "file") == (3, 4)) is (used is None)


@pytest.mark.parametrize("attribute", STAT_NAMES)
def test_a_lower_whose_root_has_the_attribute_is_read_by_it_and_only_that(world: World, attribute: bytes) -> None:
    top, base = world.lowers
    os.setxattr(top, attribute, b"0:0:555")
    for lower in (top, base):
        os.setxattr(put(lower / f"in_{lower.name}", mode=0o755), attribute, b"7:8:4711")
    view = world.open()
    assert shown(view, b"in_lower0") == ("-rws--x--x", 7, 8)
    assert shown(view, b"in_lower1") == ("-rwxr-xr-x", 0, 0)


KINDS = (b"file", b"directory", b"link", b"pipe", b"device", b"socket")


def kinds(lower: Path) -> None:
    """One of each kind, as a layer without attributes has them."""
    put(lower / "file", b"data", 0o4640)
    (lower / "directory").mkdir(mode=0o1770)
    (lower / "link").symlink_to("x")
    os.mkfifo(lower / "pipe", 0o620)
    os.mknod(lower / "device", stat.S_IFCHR | 0o602, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(lower / "socket"))
    for name in KINDS:
        own(lower / name.decode(), 5, 6)
    (lower / "file").chmod(0o4640)
    os.setxattr(lower / "file", ACCESS, acl.encode(6, 0, 0, users={7: 6}, mask=4))


@pytest.mark.parametrize("lower_attribute", [None, CONTAINERS_STAT, PRIVILEGED_STAT])
@pytest.mark.parametrize("upper_attribute", [None, CONTAINERS_STAT, PRIVILEGED_STAT])
def test_copy_up_between_layers_of_any_kind_changes_nothing_that_is_shown(
    world: World, lower_attribute: bytes | None, upper_attribute: bytes | None
) -> None:
    if lower_attribute is None:
        kinds(world.lowers[0])
    else:  # a layer that was an upper
        source = world.root / "source"
        source.mkdir()
        kinds(source)
        _as_upper(world, source, lower_attribute)
    view = world.open(stat_attribute=upper_attribute)
    before = view.snapshot()
    assert before[b"file"].mode == "4640" and before[b"device"].rdev == (1, 3)
    for name in KINDS:
        if name == b"directory":
            view.change(name, Change(mtime_ns=view.stat(name).st_mtime_ns))
        else:
            view.rename(name, name + b"2")
    after = {name.rstrip(b"2"): entry for name, entry in world.reopen(view).snapshot().items()}
    for name in before.keys() - {b"."}:
        assert after[name] == before[name], name
    inodes = {entry.name: stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode) for entry in os.scandir(world.upper)}
    special = (stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK) if upper_attribute is None else (stat.S_IFREG,) * 3
    assert tuple(inodes[name] for name in ("pipe2", "device2", "socket2")) == special
    assert inodes.keys() >= {"file2", "directory", "link2"}


def _as_upper(world: World, source: Path, attribute: bytes) -> None:
    """Make the top lower what a union over *source* whose upper keeps owners in *attribute* leaves there."""
    lowers, upper = world.lowers, world.upper
    world.lowers, world.upper = [source], lowers[0]
    view = world.open(stat_attribute=attribute)
    for name in KINDS:
        view.change(name, Change(mtime_ns=view.stat(name).st_mtime_ns))
    world.close(view)
    world.lowers, world.upper = lowers, upper


def test_an_acl_and_the_mode_in_the_attribute_say_the_same(world: World) -> None:
    view = world.open(stat_attribute=CONTAINERS_STAT)
    ino = view.make_file(b"file", mode=0o640, caller=Caller(3, 4)).ino
    view.union.setxattr(ino, ACCESS, acl.encode(6, 4, 1, users={7: 6}, mask=6))
    assert (shown(view, b"file"), declared(world.upper / "file")) == (("-rw-rw---x", 3, 4), "3:4:661")
    view.chmod(b"file", 0o4704)
    assert view.union.getxattr(ino, ACCESS) == acl.encode(7, 4, 4, users={7: 6}, mask=0)
    assert declared(world.upper / "file") == "3:4:4704"
    view.union.setxattr(ino, ACCESS, acl.encode(6, 4, 0))
    assert (view.xattrs(b"file"), declared(world.upper / "file")) == ({}, "3:4:4640")


def test_a_default_acl_is_inherited_where_modes_are_in_attributes(world: World) -> None:
    view = world.open(stat_attribute=CONTAINERS_STAT)
    view.mkdir(b"directory", mode=0o755)
    view.union.setxattr(view.ino(b"directory"), DEFAULT, acl.encode(7, 5, 0, users={7: 6}))
    view.make_file(b"directory/file", mode=0o646)
    view.mkdir(b"directory/inner", mode=0o777)
    assert view.xattrs(b"directory/file") == {ACCESS: acl.encode(6, 5, 0, users={7: 6}, mask=4)}
    assert declared(world.upper / "directory/file") == "0:0:640"
    assert view.xattrs(b"directory/inner")[DEFAULT] == acl.encode(7, 5, 0, users={7: 6})
    assert declared(world.upper / "directory/inner") == "0:0:770"


def test_a_user_cannot_reach_or_forge_what_the_layer_says_of_his_file(world: World) -> None:
    view = world.open(stat_attribute=CONTAINERS_STAT)
    ino = view.make_file(b"file", mode=0o644, caller=Caller(3, 4)).ino
    assert view.union.listxattr(ino) == []
    with pytest.raises(OSError) as caught:
        view.union.getxattr(ino, CONTAINERS_STAT)
    assert caught.value.errno == errno.ENODATA
    view.union.setxattr(ino, CONTAINERS_STAT, b"0:0:4755")
    view.union.setxattr(ino, b"user.containers.override_security.capability", b"forged")
    assert (shown(view, b"file"), declared(world.upper / "file")) == (("-rw-r--r--", 3, 4), "3:4:644")
    assert view.xattrs(b"file") == {CONTAINERS_STAT: b"0:0:4755", b"user.containers.override_security.capability": b"forged"}
    view.union.removexattr(ino, CONTAINERS_STAT)
    assert declared(world.upper / "file") == "3:4:644"


def test_security_attributes_are_kept_where_nobody_privileged_is_needed(world: World) -> None:
    value = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
    os.setxattr(put(world.lowers[0] / "file"), "security.capability", value)
    view = world.open(stat_attribute=CONTAINERS_STAT)
    view.chmod(b"file", 0o711)
    assert view.xattrs(b"file") == {b"security.capability": value}
    assert os.getxattr(world.upper / "file", "user.containers.override_security.capability") == value
    assert "security.capability" not in os.listxattr(world.upper / "file")


def test_a_broken_attribute_neither_hides_the_object_nor_opens_it(world: World) -> None:
    os.setxattr(world.upper, CONTAINERS_STAT, b"0:0:755")
    os.setxattr(put(world.upper / "file", mode=0o777), CONTAINERS_STAT, b"0:0:dir")
    view = world.open()
    assert (view.names(), shown(view, b"file")) == ([b"file"], ("----------", 65534, 65534))
    view.change(b"file", Change(uid=3, gid=4, mode=0o640))
    assert shown(view, b"file") == ("-rw-r-----", 3, 4)


def test_owners_in_attributes_are_mapped_as_others(world: World) -> None:
    view = world.open(stat_attribute=CONTAINERS_STAT, owners=MAPPED)
    view.make_file(b"file", caller=Caller(1003, 2004))
    assert (owner(view.stat(b"file")), declared(world.upper / "file")) == ((1003, 2004), "3:4:644")


def test_a_deleted_file_keeps_its_declared_owner(world: World) -> None:
    view = world.open(stat_attribute=CONTAINERS_STAT)
    ino = view.make_file(b"file", mode=0o600, caller=Caller(3, 4)).ino
    view.unlink(b"file")
    st = view.union.getattr(ino)[1]
    assert (owner(st), stat.S_IMODE(st.st_mode)) == ((3, 4), 0o600)
    assert owner(view.union.setattr(ino, Change(uid=9))[1]) == (9, 4)


def keep_as_a_user(world: World) -> list[tuple[str, int, int]]:
    view = world.open(userxattr=True, stat_attribute=CONTAINERS_STAT)
    view.make_file(b"new", mode=0o4000, caller=Caller(0, 0))
    view.mkdir(b"directory", mode=0, caller=Caller(5, 6))
    view.make_file(b"directory/inner", caller=Caller(5, 6))
    view.symlink(b"x", b"link", caller=Caller(0, 0))
    view.mknod(b"device", stat.S_IFBLK | 0o600, os.makedev(8, 1), caller=Caller(0, 6))
    view.change(b"file", Change(uid=5, gid=6, mode=0o600))
    view.write(b"new", b"data")
    found = [shown(view, name) for name in (b"new", b"directory", b"link", b"device", b"file")]
    view.union.close()
    return found


def test_an_ordinary_user_keeps_any_owner_mode_and_device_in_attributes(world: World) -> None:
    put(world.lowers[0] / "file", b"data")
    for path in (world.upper, world.work):
        own(path, 1000, 1000)
    assert as_user(lambda: keep_as_a_user(world)) == [
        ("---S------", 0, 0), ("d---------", 5, 6), ("lrwxrwxrwx", 1000, 1000), ("brw-------", 0, 6), ("-rw-------", 5, 6)]


def look_as_a_user(world: World) -> list[tuple[str, int, int]]:
    view = world.open(userxattr=True)
    found = [shown(view, name) for name in (b"", b"secret", b"open")]
    view.union.close()
    return found


def test_what_a_user_may_not_read_of_an_attribute_lets_nobody_in(world: World) -> None:
    lower = world.lowers[0]
    os.setxattr(lower, CONTAINERS_STAT, b"7:8:755")
    for name, mode in (("secret", 0o600), ("open", 0o644)):
        os.setxattr(put(lower / name, mode=mode), CONTAINERS_STAT, b"7:8:4755")
    for path in (world.upper, world.work):
        own(path, 1000, 1000)
    assert as_user(lambda: look_as_a_user(world)) == [("drwxr-xr-x", 1000, 1000), ("----------", 65534, 65534), ("-rwsr-xr-x", 7, 8)]


def test_a_lower_that_a_user_may_enter_and_not_read_has_no_attributes(world: World) -> None:
    os.setxattr(world.lowers[0], CONTAINERS_STAT, b"7:8:755")
    world.lowers[0].chmod(0o711)
    put(world.lowers[1] / "secret")
    put(world.lowers[1] / "open")

    def read_only() -> list[tuple[str, int, int]]:
        view = world.open(writable=False, userxattr=True)
        found = shown(view, b"")
        view.union.close()
        return [found]

    assert as_user(read_only) == [("drwx--x--x", 0, 0)]


def test_an_upper_that_cannot_hold_the_attribute_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "setxattr", refuse)
    with pytest.raises(LayerError, match="cannot hold user.containers.override_stat"):
        world.open(stat_attribute=CONTAINERS_STAT)
