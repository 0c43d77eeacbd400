"""What an upper changes, read without a mount."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tree import fingerprint
from tests.unit.overlay.world import USERXATTR, View, World, mark, no_descriptor_left, put, whiteout
from unionfs.errors import LayerError
from unionfs.overlay.diff import changes


def told(world: World, *, with_lowers: bool = True) -> list[str]:
    """The changes as lines of ``docker diff``. Asking changes nothing and leaves nothing open."""
    lowers = [os.fsencode(path) for path in world.lowers] if with_lowers else []
    before = fingerprint(world.upper)
    with no_descriptor_left():
        found = changes(os.fsencode(world.upper), lowers, userxattr=USERXATTR)
    assert fingerprint(world.upper) == before
    return [f"{change.kind.value} {os.fsdecode(change.path)}" for change in found]


@pytest.fixture
def filled(world: World) -> World:
    put(world.lowers[0] / "dir" / "one", b"1")
    put(world.lowers[0] / "dir" / "two", b"2")
    put(world.lowers[1] / "dir" / "three", b"3")
    put(world.lowers[1] / "deep" / "er" / "file", b"x")
    return world


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda view: None, []),
        (lambda view: view.make_file(b"new"), ["A /new"]),
        (lambda view: view.write(b"dir/three", b"x"), ["C /dir", "C /dir/three"]),
        (lambda view: view.unlink(b"dir/one"), ["C /dir", "D /dir/one"]),
        (lambda view: view.rename(b"dir/one", b"moved"), ["C /dir", "D /dir/one", "A /moved"]),
        (lambda view: view.mkdir(b"deep/new"), ["C /deep", "A /deep/new"]),
        (lambda view: view.chmod(b"deep/er", 0o700), ["C /deep", "C /deep/er"]),
        (lambda view: view.make_file(b"n\xff\n"), ["A /n\udcff\n"]),
    ],
    ids=["nothing", "new", "changed", "deleted", "moved", "new directory", "changed directory", "odd name"],
)
def test_every_change_is_a_line(filled: World, act: Callable[[View], object], expected: list[str]) -> None:
    view = filled.open()
    act(view)
    filled.close(view)
    assert told(filled) == expected


def test_a_deleted_directory_is_one_line(filled: World) -> None:
    view = filled.open()
    view.unlink(b"deep/er/file")
    view.rmdir(b"deep/er")
    view.rmdir(b"deep")
    filled.close(view)
    assert told(filled) == ["D /deep"]


def test_what_a_recreated_directory_hides_is_deleted(filled: World) -> None:
    view = filled.open()
    for name in (b"one", b"two", b"three"):
        view.unlink(b"dir/" + name)
    view.rmdir(b"dir")
    view.mkdir(b"dir")
    view.make_file(b"dir/two", b"again")
    filled.close(view)
    assert told(filled) == ["C /dir", "D /dir/one", "D /dir/three", "C /dir/two"]


def test_a_file_that_became_a_directory_is_a_change_with_additions(filled: World) -> None:
    view = filled.open()
    view.unlink(b"dir/one")
    view.mkdir(b"dir/one")
    view.make_file(b"dir/one/inside")
    filled.close(view)
    assert told(filled) == ["C /dir", "C /dir/one", "A /dir/one/inside"]


def test_a_directory_that_became_a_file_is_one_change(filled: World) -> None:
    view = filled.open()
    view.unlink(b"deep/er/file")
    view.rmdir(b"deep/er")
    view.make_file(b"deep/er")
    filled.close(view)
    assert told(filled) == ["C /deep", "C /deep/er"]


def test_a_whiteout_of_nothing_is_no_change(filled: World) -> None:
    whiteout(filled.upper / "never")
    assert told(filled) == []


def test_without_lowers_the_marks_have_to_do(filled: World, root: None) -> None:
    view = filled.open()
    view.write(b"dir/one", b"x")
    view.make_file(b"new")
    view.unlink(b"dir/two")
    filled.close(view)
    whiteout(filled.upper / "gone")
    assert told(filled, with_lowers=False) == ["C /dir", "C /dir/one", "D /dir/two", "D /gone", "A /new"]


def test_asking_does_not_disturb_a_live_mount(filled: World) -> None:
    view = filled.open()
    view.make_file(b"new")
    assert told(filled) == ["A /new"]
    view.make_file(b"another")
    assert told(filled) == ["A /another", "A /new"]


def test_the_root_is_merged_whatever_its_mark_says(filled: World) -> None:
    """As in the kernel: a root has no name that it could hide."""
    mark(filled.upper, "opaque")
    put(filled.upper / "new")
    assert told(filled) == ["A /new"]
    assert filled.open().names() == [b"deep", b"dir", b"new"]


def test_an_upper_that_is_not_there_is_one_line(scratch: Path) -> None:
    with pytest.raises(LayerError, match="nothing"):
        changes(os.fsencode(scratch / "nothing"), [])
