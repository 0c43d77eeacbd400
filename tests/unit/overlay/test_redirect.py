"""Directories with a lower part that get another name: what is written, and that every reader finds the part again."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.mounts import Layers, Mounts
from tests.support.tree import difference, snapshot
from tests.unit.overlay.world import World, mark, marked, put, whiteout
from unionfs.linux import files
from unionfs.overlay.copy_up import Draft
from unionfs.overlay.features import Redirect

EXCHANGE = files.RENAME_EXCHANGE


@pytest.fixture
def world(scratch: Path) -> Iterator[World]:
    """Three lowers: ``a`` is in all, ``a/sub`` in the lowest, ``b`` and ``c`` in one each."""
    world = World(scratch, lowers=3)
    for number, lower in enumerate(world.lowers):
        put(lower / "a" / f"file{number}", b"%d" % number)
        put(lower / "a" / "everywhere", b"%d" % number)
    put(world.lowers[2] / "a" / "sub" / "deep", b"deep")
    put(world.lowers[1] / "b" / "in-b", b"bb")
    put(world.lowers[2] / "c" / "in-c", b"c")
    whiteout(world.lowers[0] / "a" / "file2")
    yield world
    world.close_all()


def redirect_of(path: Path) -> bytes | None:
    return marked(path, "redirect")


@pytest.mark.usefixtures("root")  # redirects are for trusted.* alone
def test_a_rename_in_place_writes_the_name(world: World) -> None:
    view = world.open(redirect=Redirect.ON)
    before = view.snapshot(b"a")
    view.rename(b"a", b"z")
    assert redirect_of(world.upper / "z") == b"a"
    assert view.find(b"a") is None and view.snapshot(b"z") == before
    assert world.reopen(view).snapshot(b"z") == before


@pytest.mark.usefixtures("root")  # redirects are for trusted.* alone
def test_a_move_writes_the_path_and_keeps_an_older_one(world: World) -> None:
    view = world.open(redirect=Redirect.ON)
    view.rename(b"a/sub", b"b/moved")
    assert redirect_of(world.upper / "b" / "moved") == b"/a/sub"
    assert marked(world.upper / "b", "impure") == b"y"
    view.rename(b"b/moved", b"b/again")
    assert redirect_of(world.upper / "b" / "again") == b"/a/sub"
    assert view.names(b"b/again") == [b"deep"]


@pytest.mark.usefixtures("root")  # redirects are for trusted.* alone
def test_a_name_becomes_a_path_when_the_directory_moves_on(world: World) -> None:
    view = world.open(redirect=Redirect.ON)
    view.rename(b"a", b"z")
    view.rename(b"z/sub", b"z/other")
    view.rename(b"z/other", b"b/sub")
    assert redirect_of(world.upper / "b" / "sub") == b"/a/sub"
    view.rename(b"z", b"c/z")
    assert redirect_of(world.upper / "c" / "z") == b"/a"
    assert world.reopen(view).names(b"b/sub") == [b"deep"]


@pytest.mark.usefixtures("root")  # redirects are for trusted.* alone
def test_a_redirect_in_a_lower_sends_the_layers_below_elsewhere(world: World) -> None:
    view = world.open(redirect=Redirect.ON)
    view.rename(b"a", b"z")
    view.mkdir(b"a")
    view.make_file(b"a/new", b"new")
    before = view.snapshot()
    world.close(view)
    world.lowers.insert(0, world.upper)
    world.upper = world.root / "upper2"
    world.upper.mkdir(mode=0o755)
    view = world.open(redirect=Redirect.ON)
    assert view.snapshot() == before
    view.rename(b"z/sub", b"b/sub")
    assert redirect_of(world.upper / "b" / "sub") == b"/z/sub"  # as the layers below know it, not where it lies
    assert world.reopen(view).names(b"b/sub") == [b"deep"]


@pytest.mark.parametrize("value", [b"", b"x/y", b"//x", b"/x//y", b"/", b"/x/", b".", b"..", b"/x/../y", b"/.", b"\0y"])
def test_a_redirect_that_is_none_is_an_error_of_that_directory_alone(world: World, value: bytes) -> None:
    (world.upper / "odd").mkdir()
    mark(world.upper / "odd", "redirect", value)
    view = world.open(redirect=Redirect.ON)
    with pytest.raises(OSError) as caught:
        view.find(b"odd")
    assert caught.value.errno == errno.EINVAL
    assert b"odd" in view.names(b"") and view.names(b"b") == [b"in-b"]


def test_a_zero_byte_ends_a_redirect(world: World) -> None:
    put(world.lowers[0] / "other" / "file", b"x")
    (world.upper / "odd").mkdir()
    mark(world.upper / "odd", "redirect", b"other\0more")
    assert world.open(redirect=Redirect.ON).names(b"odd") == [b"file"]


def test_a_redirect_to_nowhere_is_an_upper_directory(world: World) -> None:
    put(world.upper / "odd" / "file", b"x")
    mark(world.upper / "odd", "redirect", b"/no/such")
    assert world.open(redirect=Redirect.ON).names(b"odd") == [b"file"]


@pytest.mark.usefixtures("root")  # redirects are for trusted.* alone
def test_nofollow_refuses_a_redirected_directory(world: World) -> None:
    view = world.open(redirect=Redirect.ON)
    view.rename(b"a", b"z")
    world.close(view)
    view = world.open(redirect=Redirect.NOFOLLOW)
    with pytest.raises(PermissionError):
        view.find(b"z")
    world.close(view)
    view = world.open(redirect=Redirect.FOLLOW)
    assert b"sub" in view.names(b"z")
    with pytest.raises(OSError, match="cross-device"):
        view.rename(b"z", b"y")


@pytest.mark.usefixtures("root")  # redirects are for trusted.* alone
def test_a_path_too_long_for_a_redirect_is_exdev(world: World) -> None:
    deep = world.lowers[1]
    for _ in range(3):
        deep = deep / ("d" * 100)
    put(deep / "file", b"x")
    view = world.open(redirect=Redirect.ON)
    path = os.fsencode(deep.relative_to(world.lowers[1]))
    with pytest.raises(OSError, match="cross-device"):
        view.rename(path, b"b/deep")
    view.rename(path, os.path.dirname(path) + b"/beside")
    assert view.names(os.path.dirname(path) + b"/beside") == [b"file"]


@pytest.mark.usefixtures("root")  # redirects are for trusted.* alone
@pytest.mark.parametrize(("old", "new"), [(b"a", b"b"), (b"b", b"a/sub")], ids=["beside", "into a directory in no upper yet"])
def test_exchanged_directories_keep_their_lower_parts(world: World, old: bytes, new: bytes) -> None:
    view = world.open(redirect=Redirect.ON)
    one, other = view.snapshot(old), view.snapshot(new)
    view.rename(old, new, EXCHANGE)
    assert (view.snapshot(new), view.snapshot(old)) == (one, other)
    view = world.reopen(view)
    assert (view.snapshot(new), view.snapshot(old)) == (one, other)


def test_what_is_removed_after_a_directory_could_not_be_copied_up_whole_does_not_come_back(
        world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    view = world.open(userxattr=True, copy_limit=1 << 20)
    names = view.names(b"a")
    copied: list[bytes] = []

    def until_full(draft: Draft) -> None:
        if len(copied) == 3:
            raise OSError(errno.ENOSPC, "full")
        copied.append(draft.name)
        build(draft)

    build = Draft.build
    with monkeypatch.context() as patched, pytest.raises(OSError, match="full"):
        patched.setattr(Draft, "build", until_full)
        view.rename(b"a", b"z")
    assert view.names(b"a") == names
    gone = next(name for name in copied if name in names and name != b"sub")
    view.unlink(b"a/" + gone)
    world.close(view)
    assert gone not in world.open(userxattr=True).names(b"a")


def test_without_redirects_a_directory_is_copied_up_whole_up_to_the_limit(world: World) -> None:
    view = world.open(userxattr=True, copy_limit=1 << 20)
    before = view.snapshot(b"a")
    view.rename(b"a", b"z")
    assert view.snapshot(b"z") == before and view.find(b"a") is None
    assert os.getxattr(world.upper / "z", "user.overlay.opaque") == b"y"
    assert not any(name.endswith("redirect") for name in os.listxattr(world.upper / "z"))
    assert sorted(os.listdir(world.upper / "z")) == ["everywhere", "file0", "file1", "sub"]  # and no whiteout
    world.close(view)
    view = world.open(userxattr=True, copy_limit=1)
    with pytest.raises(OSError, match="cross-device"):
        view.rename(b"b", b"y")
    assert view.snapshot(b"z") == before


def test_copying_up_whole_leaves_no_node_behind(world: World) -> None:
    view = world.open(userxattr=True, copy_limit=1 << 20)
    view.find(b"a")
    before = len(view.union.tree.nodes)
    view.rename(b"a", b"z")
    assert len(view.union.tree.nodes) == before


def steps_chain(move: Callable[..., None], make: Callable[[bytes], object]) -> None:
    move(b"a", b"x")
    move(b"b", b"a")
    move(b"x/sub", b"a/sub")
    make(b"b")
    move(b"x", b"b/x")
    move(b"c", b"a/sub/c")
    move(b"b/x", b"c")


def steps_recreate(move: Callable[..., None], make: Callable[[bytes], object]) -> None:
    move(b"a", b"c/a")
    make(b"a")
    make(b"a/sub")
    move(b"a/sub", b"c/sub")
    move(b"c/a/sub", b"a/sub")


def steps_exchange(move: Callable[..., None], make: Callable[[bytes], object]) -> None:
    move(b"a", b"b", EXCHANGE)
    move(b"b/sub", b"c", EXCHANGE)
    make(b"new")
    move(b"new", b"a", EXCHANGE)
    move(b"new", b"a/in")


@pytest.mark.overlayfs
@pytest.mark.root
@pytest.mark.usefixtures("root")  # redirects are for trusted.* alone
@pytest.mark.parametrize("steps", [steps_chain, steps_recreate, steps_exchange])
def test_chains_of_renames_look_the_same_here_and_in_the_kernel(
    scratch: Path, mounts: Mounts, steps: Callable[[Callable[..., None], Callable[[bytes], object]], None]
) -> None:
    def furnish(name: str) -> World:
        (scratch / name).mkdir()
        made = World(scratch / name, lowers=3)
        for number, lower in enumerate(made.lowers):
            put(lower / "a" / f"file{number}", b"%d" % number)
            put(lower / "a" / "everywhere", b"%d" % number)
        put(made.lowers[2] / "a" / "sub" / "deep", b"deep")
        put(made.lowers[1] / "b" / "in-b", b"bb")
        put(made.lowers[2] / "b" / "sub" / "deeper", b"b")
        put(made.lowers[2] / "c" / "in-c", b"c")
        mark(made.lowers[1] / "b", "opaque")
        return made

    def layers(made: World) -> Layers:
        return Layers(tuple(made.lowers), made.upper, made.work)

    ours, kernels = furnish("ours"), furnish("kernels")
    mount = mounts.kernel(layers(kernels))

    def at(path: bytes) -> bytes:
        return os.path.join(mount.path, path)

    steps(lambda old, new, flags=0: files.renameat2(-100, at(old), -100, at(new), flags), lambda path: os.mkdir(at(path), 0o755))
    wanted = snapshot(mount.path, hide_ghosts=True)
    assert mount.unmount() == []
    view = ours.open(redirect=Redirect.ON)
    steps(view.rename, view.mkdir)
    assert difference(view.snapshot(), wanted, ("ours", "the kernel's")) == ""
    view = ours.reopen(view)
    assert difference(view.snapshot(), wanted, ("ours after a remount", "the kernel's")) == ""
    ours.close(view)
    mount = mounts.kernel(layers(ours))
    assert difference(snapshot(mount.path, hide_ghosts=True), wanted, ("ours by the kernel", "the kernel's")) == ""
    assert mount.unmount() == []
    assert difference(kernels.open(redirect=Redirect.ON).snapshot(), wanted, ("the kernel's by us", "the kernel's")) == ""
