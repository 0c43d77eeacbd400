"""Files without a name (O_TMPFILE), and how they get one."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.posix.rooms import fails_with
from tests.support import acl
from tests.support.users import GROUP, USER, as_user
from tests.unit.overlay.world import ME, View, World, mark, put
from unionfs.linux import files
from unionfs.overlay.make import Caller


def test_an_unnamed_file_is_written_and_read_and_gone_when_it_is_forgotten(world: World) -> None:
    view = world.open()
    before = set(os.listdir(world.building))
    node, st = view.union.make_unnamed(1, 0o640, ME)
    assert (stat.filemode(st.st_mode), view.union.links(node, st)) == ("-rw-r-----", 0)
    assert view.union.write(node.ino, 0, b"text") == 4
    assert view.union.read(node.ino, 0, 10) == b"text"
    assert view.union.getattr(node.ino)[1].st_size == 4
    fd = view.union.sync_fd(node.ino)
    assert fd is None  # the world is volatile
    assert (view.names(), set(os.listdir(world.building))) == ([], before)
    open_before = view.union.tree.orphans.held
    view.union.forget(node.ino, 1)
    assert view.union.tree.nodes.get(node.ino) is None
    assert view.union.tree.orphans.held == open_before - 1


def test_there_is_none_where_the_filesystem_has_none(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    view = world.open()
    really = os.open

    def refusing(path: bytes, flags: int, *arguments: int, **more: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no such thing")
        return really(path, flags, *arguments, **more)

    monkeypatch.setattr(os, "open", refusing)
    with fails_with(errno.EOPNOTSUPP):
        view.union.make_unnamed(1, 0o640, ME)
    assert len(view.union.tree.nodes) == 1


@pytest.fixture(params=["kept by a descriptor", "kept by a name in work"])
def unnamed(request: pytest.FixtureRequest, world: World, monkeypatch: pytest.MonkeyPatch) -> tuple[View, int]:
    """A union with the directory ``dir``, where ``gone`` of a lower was deleted, and the number of an unnamed file in it."""
    put(world.lowers[0] / "dir" / "gone")
    view = world.open()
    view.unlink(b"dir/gone")
    if "work" in request.param:
        view.union.tree.orphans.limit = view.union.tree.orphans.held
    ino = view.union.make_unnamed(view.ino(b"dir"), 0o640, ME)[0].ino
    view.union.write(ino, 0, b"text")
    return view, ino


@pytest.mark.parametrize("name", [b"new", b"gone"], ids=["a free name", "over a whiteout"])
def test_a_link_makes_it_an_ordinary_file(unnamed: tuple[View, int], world: World, name: bytes) -> None:
    view, ino = unnamed
    made, st = view.union.link(ino, view.ino(b"dir"), name)
    assert (made.ino, view.union.links(made, st)) == (ino, 1)
    path = b"dir/" + name
    assert (view.read(path), view.node(path).ino, view.nlink(path)) == (b"text", ino, 1)
    assert (world.upper / "dir" / os.fsdecode(name)).read_bytes() == b"text"
    view.link(path, b"dir/second")
    assert view.nlink(path) == 2
    view.unlink(path)
    view.unlink(b"dir/second")
    assert view.union.read(ino, 0, 10) == b"text"
    with fails_with(errno.ENOENT):  # it had its time
        view.union.link(ino, view.ino(b"dir"), b"again")
    view.union.forget(ino, 3)
    view.forget()
    world.close(view)
    assert os.listdir(world.building) == []


def test_a_link_over_a_whiteout_is_the_kernels(unnamed: tuple[View, int], world: World, root: None, overlayfs: Callable[[], Path]) -> None:
    view, ino = unnamed
    view.union.link(ino, view.ino(b"dir"), b"gone")
    world.close(view)
    reopened = world.open()
    assert (reopened.names(b"dir"), reopened.read(b"dir/gone")) == ([b"gone"], b"text")
    mnt = overlayfs()
    fd = os.open(mnt, os.O_TMPFILE | os.O_RDWR, 0o640)
    os.link(f"/proc/self/fd/{fd}", mnt / "named", dst_dir_fd=fd)  # an absolute path: by linkat, which follows
    theirs = (mnt / "named").lstat()
    os.close(fd)
    ours = reopened.stat(b"dir/gone")
    assert (ours.st_mode, ours.st_nlink) == (theirs.st_mode, theirs.st_nlink)


def test_a_link_that_fails_leaves_it_without_a_name(unnamed: tuple[View, int], monkeypatch: pytest.MonkeyPatch) -> None:
    view, ino = unnamed
    with pytest.MonkeyPatch.context() as patch, fails_with(errno.ENOSPC):
        patch.setattr(files, "renameat2", _full)
        view.union.link(ino, view.ino(b"dir"), b"gone")
    assert view.names(b"dir") == []
    view.union.link(ino, view.ino(b"dir"), b"gone")
    assert view.read(b"dir/gone") == b"text"


def _full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "full")


def test_an_unnamed_file_is_forgotten_with_what_keeps_it(unnamed: tuple[View, int], world: World) -> None:
    view, ino = unnamed
    view.union.forget(ino, 1)
    assert os.listdir(world.building) == []


def test_it_is_linked_where_hard_links_are_kept(world: World, root: None) -> None:
    view = world.open(index=True)
    ino = view.union.make_unnamed(1, 0o640, ME)[0].ino
    view.union.link(ino, 1, b"new")
    view.link(b"new", b"second")
    assert (view.nlink(b"new"), view.ino(b"second")) == (2, ino)


def test_it_is_not_made_in_what_must_not_change(world: World, root: None) -> None:
    (world.upper / "dir").mkdir()
    mark(world.upper / "dir", "protattr", b"i")
    view = world.open()
    with fails_with(errno.EPERM):
        view.union.make_unnamed(view.ino(b"dir"), 0o640, ME)
    gone = view.mkdir(b"gone").ino
    view.rmdir(b"gone")
    with fails_with(errno.ENOENT):
        view.union.make_unnamed(gone, 0o640, ME)
    with fails_with(errno.EROFS):
        world.open(writable=False).union.make_unnamed(1, 0o640, ME)


DEFAULTS = {"no default ACL": None, "minimal": acl.encode(7, 5, 1), "with users": acl.encode(7, 7, 5, users={1234: 7}, mask=6)}


@pytest.mark.parametrize("default", DEFAULTS.values(), ids=DEFAULTS.keys())
@pytest.mark.parametrize("directory_mode", [0o777, 0o2777], ids=["", "setgid"])
@pytest.mark.parametrize("mode", [0o666, 0o2777], ids=oct)
def test_owner_mode_and_acl_are_as_in_a_plain_directory(
    world: World, root: None, scratch: Path, default: bytes | None, directory_mode: int, mode: int
) -> None:
    plain, ours = scratch / "plain", world.lowers[0] / "dir"
    for directory in (plain, ours):
        directory.mkdir()
        os.chown(directory, 0, 777)
        directory.chmod(directory_mode)
        if default is not None:
            os.setxattr(directory, acl.DEFAULT, default)

    def make() -> tuple[int, int, int, bytes | None]:
        os.umask(0o027)
        fd = os.open(plain, os.O_TMPFILE | os.O_RDWR, mode)
        st = os.fstat(fd)
        found = os.getxattr(fd, acl.ACCESS) if acl.ACCESS in os.listxattr(fd) else None
        return st.st_mode, st.st_uid, st.st_gid, found

    view = world.open()
    node, st = view.union.make_unnamed(view.ino(b"dir"), mode, Caller(USER, GROUP, umask=0o027))
    names = view.union.listxattr(node.ino)
    found = view.union.getxattr(node.ino, acl.ACCESS.encode()) if acl.ACCESS.encode() in names else None
    assert (st.st_mode, st.st_uid, st.st_gid, found) == as_user(make)
