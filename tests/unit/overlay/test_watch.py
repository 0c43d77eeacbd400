"""Watches on the directories of the lowers that were read, and polling where there can be none."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.overlay.test_refresh import CHANGES, fill, fresh_snapshot
from tests.unit.overlay.world import View, World, no_descriptor_left, put
from unionfs.linux import files, inotify
from unionfs.overlay import watch
from unionfs.overlay.refresh import refresh, refresh_data, refresh_directory
from unionfs.overlay.watch import Watcher


def live(world: World, *, writable: bool = True) -> tuple[View, Watcher]:
    view = world.open(writable=writable)
    watcher = view.union.tree.watcher = Watcher(view.union.stack.lowers)
    return view, watcher


def follow(view: View, watcher: Watcher) -> None:
    """What the session does when there are events."""
    touched = watcher.collect()
    tree = view.union.tree
    if touched is None:
        for _ in refresh(tree):
            pass
        return
    for node, what in touched.items():
        if what.listing:
            for _ in refresh_directory(tree, node, what.names):
                pass
        else:
            refresh_data(tree, node, what.names)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_following_the_events_gives_the_view_of_a_fresh_union(root: None, world: World, change: Callable[[Path, Path], object]) -> None:
    fill(*world.lowers)
    view, watcher = live(world, writable=False)
    view.snapshot()
    change(*world.lowers)
    follow(view, watcher)
    assert view.snapshot() == fresh_snapshot(world)


def test_what_comes_with_a_change_is_watched_too(world: World) -> None:
    fill(*world.lowers)
    view, watcher = live(world, writable=False)
    view.snapshot()
    put(world.lowers[1] / "alone" / "deep" / "more", b"1")
    follow(view, watcher)
    assert b"more" in view.names(b"alone/deep")
    put(world.lowers[1] / "alone" / "deep" / "yet more", b"1")
    put(world.lowers[0] / "new" / "directory" / "file", b"1")
    follow(view, watcher)
    assert b"yet more" in view.names(b"alone/deep") and view.names(b"new/directory") == [b"file"]
    (world.lowers[0] / "new" / "directory" / "file").unlink()
    follow(view, watcher)
    assert view.names(b"new/directory") == []


def test_written_data_and_other_attributes_are_told_apart(world: World) -> None:
    fill(*world.lowers)
    view, watcher = live(world, writable=False)
    view.snapshot()
    node = view.node(b"directory")
    with (world.lowers[1] / "directory" / "base").open("r+b") as file:
        file.write(b"x")
    touched = watcher.collect()
    assert touched is not None and touched[node] == watch.Touched({b"base"}, listing=False)
    (world.lowers[1] / "directory" / "base").chmod(0o600)
    touched = watcher.collect()
    assert touched is not None and touched[node] == watch.Touched({b"base"}, listing=True)


def test_watches_end_with_the_nodes(world: World) -> None:
    fill(*world.lowers)
    with no_descriptor_left():
        view, watcher = live(world)
        view.snapshot()
        assert len(watcher) == 9  # the roots, directory and other in both, alone, alone/deep, empty
        view.forget()
        assert len(watcher) == 2
        put(world.lowers[0] / "alone" / "deep" / "unseen")
        assert watcher.collect() == {}
        world.close(view)


def test_a_directory_that_is_deleted_in_the_union_is_not_watched_on(world: World) -> None:
    fill(*world.lowers)
    view, watcher = live(world)
    view.snapshot()
    before = len(watcher)
    view.rmdir(b"empty")
    assert len(watcher) == before - 1


def test_one_directory_in_two_places_has_one_watch(world: World) -> None:
    fill(*world.lowers)
    world.lowers.append(world.lowers[1])
    view, watcher = live(world, writable=False)
    assert b"file" in view.names() and len(watcher) == 2
    (world.lowers[1] / "file").unlink()
    follow(view, watcher)
    assert b"file" not in view.names()


@pytest.mark.parametrize("obstacle", ["no instance", "no watches", "our share is taken", "a remote layer"])
def test_without_a_watch_a_directory_is_looked_at_again(
    world: World, monkeypatch: pytest.MonkeyPatch, obstacle: str
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(28, "No space left on device")

    if obstacle == "no instance":
        monkeypatch.setattr(inotify, "Inotify", refuse)
    elif obstacle == "no watches":
        monkeypatch.setattr(inotify.Inotify, "add", refuse)
    elif obstacle == "our share is taken":
        monkeypatch.setattr(watch, "_share_of_watches", lambda: 1)
    else:
        monkeypatch.setattr(files, "filesystem_type", lambda _: 0x6969)
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.0)
    fill(*world.lowers)
    view, watcher = live(world, writable=False)
    told: list[str] = []
    watcher.on_limit = told.append
    view.snapshot()
    assert len(told) == 1 and watcher.limit == told[0]
    base = world.lowers[1]
    put(base / "directory" / "new", b"1")
    (base / "other" / "below").unlink()
    follow(view, watcher)
    assert view.read(b"directory/new") == b"1" and view.names(b"other") == [b"file"]
    put(base / "directory" / "both", b"2")
    shutil.rmtree(base / "directory")
    put(base / "directory" / "newer", b"2")
    follow(view, watcher)
    assert view.snapshot() == fresh_snapshot(world)


def test_a_polled_directory_is_believed_for_a_moment(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(*world.lowers)
    monkeypatch.setattr(watch, "_share_of_watches", lambda: 0)
    view, watcher = live(world, writable=False)
    node = view.union.tree.root
    view.names()
    put(world.lowers[0] / "new")
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    assert not watcher.is_outdated(node)
    monkeypatch.setattr(time, "monotonic", lambda: now + 2 * watch.POLL_SECONDS)
    assert b"new" in view.names()


def test_lost_events_are_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(*world.lowers)
    view, watcher = live(world, writable=False)
    view.names()
    monkeypatch.setattr(inotify.Inotify, "read", lambda _: iter([inotify.Event(-1, inotify.OVERFLOW, b"")]))
    assert watcher.collect() is None


def test_only_local_filesystems_are_trusted_to_tell(scratch: Path) -> None:
    for path, kind in ((b"/proc", 0x9FA0), (b"/sys", 0x62656572)):
        fd = os.open(path, os.O_PATH)
        assert files.filesystem_type(fd) == kind
        os.close(fd)
