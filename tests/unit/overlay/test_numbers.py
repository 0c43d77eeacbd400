"""Inode numbers: unique among all that is live, and an object's own through copy-up, rename, forget and remount."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.overlay.world import USERXATTR, View, World, marked, put
from unionfs.linux.process import may_use_trusted_xattrs
from unionfs.overlay.union import Change


def every_ino(view: View) -> dict[bytes, int]:
    """The numbers of the whole tree, all of them live at once."""
    found = {b"": view.ino(b"")}
    waiting = [b""]
    while waiting:
        path = waiting.pop()
        for name in view.names(path):
            below = path + b"/" + name if path else name
            found[below] = view.ino(below)
            if view.node(below).directory is not None:
                waiting.append(below)
    return found


def assert_unique(view: View) -> dict[bytes, int]:
    found = every_ino(view)
    assert len(set(found.values())) == len(found)
    for path, ino in found.items():
        assert view.node(path).ino == ino
    return found


def fill(top: Path, mark: str) -> None:
    for name in ("a", "b", f"only-{mark}"):
        put(top / name, mark.encode())
        put(top / "dir" / name, mark.encode())
    (top / "dir" / f"link-{mark}").symlink_to("a")


def test_on_one_filesystem_numbers_are_the_backing_ones(world: World) -> None:
    put(world.lowers[0] / "dir" / "file")
    put(world.upper / "new")
    view = world.open()
    assert view.ino(b"") == 1
    assert view.ino(b"dir") == (world.lowers[0] / "dir").stat().st_ino
    assert view.ino(b"dir/file") == (world.lowers[0] / "dir" / "file").stat().st_ino
    assert view.ino(b"new") == (world.upper / "new").stat().st_ino


def test_they_are_unique_across_several_filesystems(world: World, tmpfs: Callable[..., Path]) -> None:
    memory, other = tmpfs("memory"), tmpfs("other")
    world.lowers = [memory, world.lowers[0], other]
    for number, lower in enumerate(world.lowers):
        fill(lower, str(number))
    assert (memory / "only-0").stat().st_ino == (other / "only-2").stat().st_ino, "the test needs a clash"
    view = world.open()
    before = assert_unique(view)
    for path in (b"a", b"dir/b", b"only-2", b"dir/only-1", b"dir/link-2"):
        view.change(path, Change(mtime_ns=1))
    view.make_file(b"dir/new")
    after = assert_unique(view)
    assert {path: after[path] for path in before} == before
    view.forget()
    assert {path: ino for path, ino in assert_unique(view).items() if path in before} == before
    view = world.reopen(view)
    assert {path: ino for path, ino in assert_unique(view).items() if path in before} == before
    world.close(view)


@pytest.mark.parametrize("nesting", ["same", "parent above child", "child above parent"])
def test_they_are_unique_where_one_object_is_seen_twice(world: World, nesting: str) -> None:
    top = world.lowers[0]
    fill(top, "x")
    world.lowers = {"same": [top, top], "parent above child": [top, top / "dir"],
                    "child above parent": [top / "dir", top]}[nesting]
    view = world.open()
    before = assert_unique(view)
    view.write(b"only-x", b"y")
    view.chmod(b"dir", 0o700)
    assert assert_unique(view) == before


@pytest.fixture
def view(world: World) -> View:
    put(world.lowers[0] / "file", b"x")
    put(world.lowers[1] / "dir" / "deep" / "file", b"x")
    put(world.lowers[0] / "dir" / "other", b"x")
    (world.lowers[0] / "link").symlink_to("file")
    os.mkfifo(world.lowers[0] / "fifo")
    return world.open()


def _skip_what_holds_no_origin(path: bytes) -> None:
    if USERXATTR and path in (b"link", b"fifo"):
        pytest.skip("needs root: user.* attributes, and so an origin, exist on files and directories only")


@pytest.mark.parametrize("path", [b"file", b"dir", b"dir/deep", b"dir/deep/file", b"link", b"fifo"])
class TestAnyObject:
    def test_keeps_its_number_when_it_is_copied_up(self, world: World, view: View, path: bytes) -> None:
        _skip_what_holds_no_origin(path)
        before = view.ino(path)
        view.change(path, Change(mtime_ns=1))
        assert view.ino(path) == before
        view.forget()
        assert view.ino(path) == before
        view = world.reopen(view)
        assert view.ino(path) == before

    def test_keeps_its_number_when_it_is_forgotten_first(self, world: World, view: View, path: bytes) -> None:
        _skip_what_holds_no_origin(path)
        before = view.ino(path)
        view.forget()
        view.change(path, Change(mtime_ns=1))
        view.forget()
        assert view.ino(path) == before


@pytest.fixture
def handles() -> None:
    """What moved is found by its file handle."""
    if not may_use_trusted_xattrs():
        pytest.skip("needs root: only CAP_DAC_READ_SEARCH opens by file handle")


@pytest.mark.usefixtures("handles")
@pytest.mark.parametrize("path", [b"file", b"dir/deep/file", b"link", b"fifo"])
class TestAnObjectThatMoves:
    def test_keeps_its_number_when_it_moves_to_another_directory(self, world: World, view: View, path: bytes) -> None:
        before = view.ino(path)
        view.mkdir(b"elsewhere")
        view.rename(path, b"elsewhere/moved")
        assert view.ino(b"elsewhere/moved") == before
        view.forget()
        assert view.ino(b"elsewhere/moved") == before
        view = world.reopen(view)
        assert view.ino(b"elsewhere/moved") == before

    def test_keeps_its_number_when_it_is_exchanged(self, world: World, view: View, path: bytes) -> None:
        before = view.ino(path)
        view.mkdir(b"elsewhere")
        view.make_file(b"elsewhere/other")
        view.rename(path, b"elsewhere/other", 2)
        view.forget()
        assert view.ino(b"elsewhere/other") == before


def test_a_new_object_has_another_number_than_the_one_it_replaces(world: World) -> None:
    put(world.lowers[0] / "file")
    (world.lowers[0] / "dir").mkdir()
    view = world.open()
    old = view.ino(b"file"), view.ino(b"dir")
    view.unlink(b"file")
    view.rmdir(b"dir")
    new = view.make_file(b"file").ino, view.mkdir(b"dir").ino
    assert not {*old} & {*new}
    view.forget()
    assert (view.ino(b"file"), view.ino(b"dir")) == new


def test_a_hard_link_elsewhere_to_a_copied_file_is_the_same_object(world: World, handles: None) -> None:
    put(world.lowers[0] / "a" / "file", b"content")
    (world.lowers[0] / "b").mkdir()
    view = world.open()
    ino = view.ino(b"a/file")
    view.link(b"a/file", b"b/link")
    assert view.ino(b"b/link") == ino
    view.forget()
    assert view.ino(b"b/link") == view.ino(b"a/file") == ino
    view.write(b"b/link", b"CONTENT")
    assert view.read(b"a/file") == b"CONTENT"
    assert len({id(view.node(path)) for path in (b"a/file", b"b/link")}) == 1


def test_names_of_one_lower_file_are_objects_of_their_own(world: World) -> None:
    put(world.lowers[0] / "one", b"x")
    os.link(world.lowers[0] / "one", world.lowers[0] / "two")
    view = world.open()
    one, two = view.node(b"one"), view.node(b"two")
    assert one.ino != two.ino
    assert one.shown == two.shown == (world.lowers[0] / "one").stat().st_ino
    assert_unique(view)


def test_the_copy_of_one_of_several_names_shows_its_own_number(world: World) -> None:
    put(world.lowers[0] / "one", b"x")
    os.link(world.lowers[0] / "one", world.lowers[0] / "two")
    view = world.open()
    one, two = view.node(b"one"), view.node(b"two")
    view.write(b"two", b"y")
    assert (one.shown, two.shown) == ((world.lowers[0] / "one").stat().st_ino, (world.upper / "two").stat().st_ino)
    assert one.ino == (world.lowers[0] / "one").stat().st_ino
    view.forget()
    assert (view.node(b"one").shown, view.node(b"two").shown) == (one.shown, two.shown)
    assert marked(world.upper / "two", "origin") is None


def test_an_origin_that_got_another_link_gives_no_number(world: World) -> None:
    """The copy may be that of either name, and of both there may be one."""
    put(world.lowers[0] / "dir" / "one", b"x")
    view = world.open()
    view.write(b"dir/one", b"y")
    world.close(view)
    os.link(world.lowers[0] / "dir" / "one", world.lowers[0] / "dir" / "two")
    view = world.open()
    assert view.node(b"dir/one").shown == (world.upper / "dir" / "one").stat().st_ino
    assert view.node(b"dir/two").shown == (world.lowers[0] / "dir" / "two").stat().st_ino


def test_a_directory_seen_twice_shows_two_numbers(world: World) -> None:
    """Else who walks the tree would take it for a loop."""
    (world.lowers[0] / "dir" / "below").mkdir(parents=True)
    world.lowers = [world.lowers[0] / "dir", world.lowers[0]]
    view = world.open()
    assert view.node(b"below").shown != view.node(b"dir/below").shown

def test_the_lower_of_a_moved_copy_does_not_clash_with_it(world: World) -> None:
    """lower1's file shows again as another name of the same lower layer, seen twice, does not."""
    put(world.lowers[0] / "dir" / "file", b"x")
    world.lowers = [world.lowers[0] / "dir", world.lowers[0]]
    view = world.open()
    view.write(b"file", b"y")  # through the first layer
    numbers = {view.ino(b"file"), view.ino(b"dir/file")}
    assert len(numbers) == 2
    assert (view.read(b"file"), view.read(b"dir/file")) == (b"y", b"x")
