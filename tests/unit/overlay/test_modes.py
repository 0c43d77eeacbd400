"""The modes that come out: umask and default ACLs on what is made, suid and sgid where somebody writes. As in a plain directory.

What the kernel's overlayfs does is what the filesystem below it does, which these tests ask instead.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.posix.rooms import fails_with
from tests.support import acl, chattr
from tests.support.users import GROUP, USER, as_user
from tests.unit.overlay.world import ME, View, World, mark, put
from unionfs.linux import xattrs
from unionfs.overlay.make import Caller
from unionfs.overlay.owners import CONTAINERS_STAT, Ids, Owners
from unionfs.overlay.union import Change

pytestmark = pytest.mark.usefixtures("root")

ACCESS, DEFAULT = acl.ACCESS.encode(), acl.DEFAULT.encode()
DEFAULTS = {
    "no default ACL": None,
    "one that modes can say": acl.encode(7, 5, 1),
    "one with users": acl.encode(7, 7, 5, users={1234: 7}, mask=6),
}
UMASKS = (0, 0o022, 0o077)
#: What it takes to tell how an object came out: its mode and its ACLs.
Made = tuple[int, bytes | None, bytes | None]


def looked_at(path: Path) -> Made:
    place = os.fsencode(path)
    return path.lstat().st_mode, xattrs.find(place, ACCESS), xattrs.find(place, DEFAULT)


def seen(view: View, path: bytes) -> Made:
    found = view.xattrs(path)
    return view.stat(path).st_mode, found.get(ACCESS), found.get(DEFAULT)


def made_below(directory: Path, umask: int) -> dict[str, Made]:
    def make() -> None:
        os.umask(umask)
        os.close(os.open(directory / "file", os.O_CREAT | os.O_WRONLY, 0o666))
        (directory / "directory").mkdir(0o777)
        os.mkfifo(directory / "pipe", 0o666)
        (directory / "link").symlink_to("x")

    as_user(make)
    return {name: looked_at(directory / name) for name in ("file", "directory", "pipe", "link")}


def make_all(view: View, caller: Caller) -> dict[str, Made]:
    view.make_file(b"dir/file", b"", 0o666, caller)
    view.mkdir(b"dir/directory", 0o777, caller)
    view.mknod(b"dir/pipe", stat.S_IFIFO | 0o666, caller=caller)
    view.symlink(b"x", b"dir/link", caller)
    return {name: seen(view, b"dir/" + name.encode()) for name in ("file", "directory", "pipe", "link")}


@pytest.mark.parametrize("umask", UMASKS, ids=oct)
@pytest.mark.parametrize("default", DEFAULTS.values(), ids=DEFAULTS.keys())
@pytest.mark.parametrize("owner", [ME.uid, USER], ids=["in place", "in work"])
@pytest.mark.parametrize("layer", ["lower", "upper"])
def test_what_is_made_has_the_mode_it_has_in_a_plain_directory(
    world: World, scratch: Path, umask: int, default: bytes | None, owner: int, layer: str
) -> None:
    plain, ours = scratch / "plain", (world.upper if layer == "upper" else world.lowers[0]) / "dir"
    for directory in (plain, ours):
        directory.mkdir()
        directory.chmod(0o777)
        if default is not None:
            os.setxattr(directory, DEFAULT, default)
    assert make_all(world.open(), Caller(owner, owner, umask=umask)) == made_below(plain, umask)


@pytest.mark.parametrize("owner", [ME.uid, USER], ids=["in place", "in work"])
def test_the_umask_counts_as_soon_as_the_default_acl_is_gone_and_no_longer_once_it_is_there(world: World, owner: int) -> None:
    caller = Caller(owner, owner, umask=0o077)
    view = world.open()
    view.mkdir(b"dir", 0o777)

    def mode_of_next(name: bytes) -> str:
        view.make_file(b"dir/" + name, b"", 0o666, caller)
        return view.entry(b"dir/" + name).mode

    assert mode_of_next(b"before") == "0600"
    view.union.setxattr(view.ino(b"dir"), DEFAULT, acl.encode(7, 7, 7))
    assert mode_of_next(b"with") == "0666"
    view.mkdir(b"dir/below", 0o777, caller)
    view.make_file(b"dir/below/file", b"", 0o666, caller)
    assert view.entry(b"dir/below/file").mode == "0666"
    view.union.removexattr(view.ino(b"dir"), DEFAULT)
    assert mode_of_next(b"after") == "0600"


def test_under_noacl_the_umask_counts_whatever_there_is_on_disk(world: World) -> None:
    (world.upper / "dir").mkdir()
    os.setxattr(world.upper / "dir", DEFAULT, acl.encode(7, 7, 7))
    view = world.open(acl=False)
    view.make_file(b"dir/file", b"", 0o666, Caller(ME.uid, ME.gid, umask=0o027))
    assert view.entry(b"dir/file").mode == "0640"


# ---- suid and sgid ----

MODES = (0o6777, 0o4666, 0o2767, 0o2777, 0o6767, 0o0777)
FILE_GROUP = 777


def _write(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(fd, b"more", 1)
    finally:
        os.close(fd)


#: What is done to a plain file, and to ours.
SUID_VERBS: dict[str, tuple[Callable[[Path], None], Callable[[View, int, Caller], object]]] = {
    "write": (_write, lambda view, ino, caller: view.union.write(ino, 1, b"more", drop_suid=caller)),
    "truncate": (lambda path: os.truncate(path, 1), lambda view, ino, caller: view.union.setattr(ino, Change(size=1), drop_suid=caller)),
    "open to truncate": (
        lambda path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)),
        lambda view, ino, caller: view.union.open(ino, os.O_WRONLY | os.O_TRUNC, drop_suid=caller),
    ),
    "chown": (
        lambda path: os.chown(path, USER, GROUP),
        lambda view, ino, caller: view.union.setattr(ino, Change(uid=USER, gid=GROUP), drop_suid=caller),
    ),
}


@pytest.mark.parametrize("who", ["member", "stranger", "root"])
@pytest.mark.parametrize("verb", SUID_VERBS)
@pytest.mark.parametrize("layer", ["lower", "upper", "upper that keeps modes in an attribute"])
def test_suid_and_sgid_go_as_from_a_plain_file(world: World, scratch: Path, layer: str, verb: str, who: str) -> None:
    on_plain, on_ours = SUID_VERBS[verb]
    groups = (FILE_GROUP,) if who == "member" else ()
    caller = Caller(0, 0) if who == "root" else Caller(USER, GROUP, lambda gid: gid in groups)
    # told only of callers without CAP_FSETID, but for chown
    drop_suid = None if who == "root" and verb != "chown" else caller
    for mode in MODES:
        for path in (scratch / f"plain {mode:o}", (world.lowers[0] if layer == "lower" else world.upper) / f"{mode:o}"):
            put(path, b"text")
            os.chown(path, USER, FILE_GROUP)
            path.chmod(mode)
    view = world.open(stat_attribute=CONTAINERS_STAT if "attribute" in layer else None)
    for mode in MODES:
        plain = scratch / f"plain {mode:o}"
        if who == "root":
            on_plain(plain)
        else:
            as_user(lambda path=plain: on_plain(path), groups=groups)  # type: ignore[misc]
        on_ours(view, view.ino(b"%o" % mode), drop_suid)  # type: ignore[arg-type]
        assert view.entry(b"%o" % mode).mode == f"{stat.S_IMODE(plain.stat().st_mode):04o}", oct(mode)


def test_the_group_that_counts_is_the_one_that_is_shown(world: World) -> None:
    for name in ("one", "other"):
        os.chown(put(world.upper / name, mode=0o2767), 5, 6)
        (world.upper / name).chmod(0o2767)
    view = world.open(owners=Owners(Ids(((0, 1000, 100),)), Ids(((0, 2000, 100),))))
    view.union.write(view.ino(b"one"), 0, b"x", drop_suid=Caller(1001, 2006))
    view.union.write(view.ino(b"other"), 0, b"x", drop_suid=Caller(1001, 6))
    assert [view.entry(name).mode for name in (b"one", b"other")] == ["2767", "0767"]


def test_a_directory_keeps_its_setgid_bit_when_it_is_given_away(world: World) -> None:
    view = world.open()
    view.mkdir(b"dir")
    view.chmod(b"dir", 0o2777)
    view.union.setattr(view.ino(b"dir"), Change(uid=USER, gid=GROUP), drop_suid=Caller(USER, GROUP))
    assert view.entry(b"dir").mode == "2777"


@pytest.mark.parametrize("groups", [(FILE_GROUP,), ()], ids=["member", "stranger"])
@pytest.mark.parametrize("layer", ["lower", "upper", "upper that keeps modes in an attribute"])
def test_an_acl_set_by_a_stranger_takes_sgid_away(world: World, scratch: Path, layer: str, groups: tuple[int, ...]) -> None:
    value = acl.encode(7, 5, 5, users={1234: 7}, mask=7)
    plain = scratch / "plain"
    for path in (plain, (world.lowers[0] if layer == "lower" else world.upper) / "file"):
        put(path)
        os.chown(path, USER, FILE_GROUP)
        path.chmod(0o6755)
    as_user(lambda: os.setxattr(plain, ACCESS, value), groups=groups)
    view = world.open(stat_attribute=CONTAINERS_STAT if "attribute" in layer else None)
    view.union.setxattr(view.ino(b"file"), ACCESS, value, kill_sgid=not groups)
    assert view.stat(b"file").st_mode == plain.stat().st_mode
    assert view.xattrs(b"file")[ACCESS] == value


# ---- file attributes, where nobody asked at open ----

@pytest.fixture(params=["lower", "upper", "kept in upper"])
def protect(request: pytest.FixtureRequest, world: World) -> Callable[[str, int], View]:
    """A union over a file of four bytes that has the file attribute: protect("file", IMMUTABLE)."""
    place = str(request.param)
    if place != "kept in upper" and not chattr.are_possible(world.upper):
        pytest.skip("the filesystem of the scratch directory has no file attributes")

    def make(name: str, flag: int) -> View:
        path = put((world.lowers[0] if place == "lower" else world.upper) / name, b"text")
        if place == "kept in upper":
            mark(path, "protattr", b"i" if flag == chattr.IMMUTABLE else b"a")
        else:
            chattr.set_flags(path, flag)
            request.addfinalizer(lambda: chattr.set_flags(path, 0))
        return world.open()

    return make


def test_an_immutable_file_is_not_written_and_not_copied_up(world: World, protect: Callable[[str, int], View]) -> None:
    view = protect("file", chattr.IMMUTABLE)
    ino = view.ino(b"file")
    for offset in (0, 4):
        with fails_with(errno.EPERM):
            view.union.write(ino, offset, b"more")
    with fails_with(errno.EPERM):
        view.union.setattr(ino, Change(size=0))
    assert view.read(b"file") == b"text"
    view.union.setattr(ino, Change())  # that the kernel asks before a write of an ordinary user


def test_an_append_only_file_is_written_behind_its_end_only(protect: Callable[[str, int], View]) -> None:
    view = protect("file", chattr.APPEND)
    ino = view.ino(b"file")
    with fails_with(errno.EPERM):
        view.union.write(ino, 3, b"more")
    assert view.union.write(ino, 4, b" and more") == 9
    with fails_with(errno.EPERM):
        view.union.write(ino, 4, b"more")
    with fails_with(errno.EPERM):
        view.union.setattr(ino, Change(size=20))
    assert view.read(b"file") == b"text and more"
