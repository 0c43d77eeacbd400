"""What an upper changes, read without a mount."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.chaos import fill, stir
from tests.support.tree import Entry, Snapshot, fingerprint
from tests.unit.overlay.world import USERXATTR, View, World, mark, marked, no_descriptor_left, put, whiteout
from unionfs.errors import LayerError
from unionfs.overlay.diff import Kind, changes
from unionfs.overlay.features import Features


def told(world: World, *, with_lowers: bool = True) -> list[str]:
    """The changes as lines of ``docker diff``. Asking changes nothing and leaves nothing open."""
    lowers = [os.fsencode(path) for path in world.lowers] if with_lowers else []
    before = fingerprint(world.upper)
    with no_descriptor_left():
        found = changes(os.fsencode(world.upper), lowers, Features(userxattr=USERXATTR))
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


# ---- with everything on ----

REDIRECTS = pytest.mark.skipif(USERXATTR, reason="redirects and metacopies are trusted.* attributes: needs root")


@REDIRECTS
def test_a_moved_directory_is_deleted_and_all_below_it_added(filled: World) -> None:
    view = filled.open()
    view.rename(b"dir", b"moved")
    filled.close(view)
    assert told(filled) == ["D /dir", "A /moved", "A /moved/one", "A /moved/three", "A /moved/two"]


@REDIRECTS
def test_a_directory_moved_there_and_back_is_changed_only(filled: World) -> None:
    view = filled.open()
    view.rename(b"dir", b"deep/dir")
    view.rename(b"deep/dir", b"dir")
    filled.close(view)
    assert told(filled) == ["C /deep", "C /dir"]


@REDIRECTS
def test_a_metacopy_is_changed(filled: World) -> None:
    view = filled.open(metacopy=True)
    view.chmod(b"dir/one", 0o600)
    filled.close(view)
    assert marked(filled.upper / "dir/one", "metacopy") is not None
    assert told(filled) == ["C /dir", "C /dir/one"]


@REDIRECTS
def test_a_directory_moved_over_another_is_compared_with_it(filled: World) -> None:
    put(filled.lowers[0] / "other" / "one", b"another one")
    put(filled.lowers[0] / "other" / "four", b"4")
    view = filled.open()
    for name in (b"one", b"four"):
        view.unlink(b"other/" + name)
    view.rename(b"dir", b"other")
    filled.close(view)
    assert told(filled) == ["D /dir", "C /other", "D /other/four", "C /other/one", "A /other/three", "A /other/two"]


def told_by_force(old: Snapshot, new: Snapshot) -> tuple[set[bytes], set[bytes], set[bytes]]:
    """(added, deleted, different) by looking at everything; what is below something deleted is deleted with it."""
    gone = {path for path in old if path not in new}
    deleted = {path for path in gone if new.get(os.path.dirname(path) or b".", NOTHING).kind == "directory"}
    added = {path for path in new if path not in old}
    def told_apart(entry: Entry) -> Entry:
        return replace(entry, nlink=None, listing=None)

    different = {path for path in new.keys() & old.keys() if told_apart(new[path]) != told_apart(old[path])}
    return added, deleted, different - {b"."}


NOTHING = Entry("nothing", "", 0, 0, None, None, "")


@pytest.mark.parametrize("seed", range(40))
def test_any_changes_are_told_as_comparing_the_whole_trees_tells_them(world: World, root: None, seed: int) -> None:
    rng = random.Random(seed)
    for number, lower in enumerate(world.lowers):
        fill(lower, rng, marks=number < len(world.lowers) - 1)
    view = world.open(metacopy=bool(seed % 2))
    assert stir(view, rng, 80) > 5
    new = view.snapshot()
    world.close(view)
    old = world.open(writable=False).snapshot()

    lines = changes(os.fsencode(world.upper), [os.fsencode(path) for path in world.lowers], Features())
    found = {kind: {change.path[1:] for change in lines if change.kind is kind} for kind in Kind}
    added, deleted, different = told_by_force(old, new)
    assert found[Kind.ADDED] == added
    assert found[Kind.DELETED] == deleted
    assert different <= found[Kind.CHANGED]
    touched = {path for path in found[Kind.CHANGED] if path in different or os.path.lexists(os.path.join(os.fsencode(world.upper), path))}
    assert found[Kind.CHANGED] <= touched | under_redirects(world)
    assert len(lines) == len({change.path for change in lines})


def under_redirects(world: World) -> set[bytes]:
    """What lies below a directory that was moved: there another lower object may look the same."""
    moved = [
        os.path.relpath(directory, os.fsencode(world.upper)) for directory, _, _ in os.walk(os.fsencode(world.upper))
        if marked(Path(os.fsdecode(directory)), "redirect") is not None
    ]  # fmt: skip
    whole = world.open(metacopy=True).snapshot()
    return {path for path in whole if any(path.startswith(top + b"/") for top in moved)}
