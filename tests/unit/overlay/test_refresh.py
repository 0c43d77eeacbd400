"""Layers changed under a union: stale views do no harm, and after a refresh the view is that of a fresh union."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import acl
from tests.support.tree import Snapshot
from tests.unit.overlay.world import View, World, mark, no_descriptor_left, put, whiteout
from unionfs.overlay.features import Redirect
from unionfs.overlay.make import Caller
from unionfs.overlay.refresh import Outdated, refresh, refresh_data, refresh_directory
from unionfs.overlay.union import Change

#: What a stale view may answer; anything else would be a defect.
CLEAN = (errno.ENOENT, errno.ESTALE, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ESPIPE, errno.EXDEV)


def fill(top: Path, base: Path) -> None:
    """Two lowers. top: directory/{both,mine}, other/file, alone/deep/file. base: directory/{both,base}, other/below, file, big, empty/."""
    put(top / "directory" / "both", b"top's")
    put(top / "directory" / "mine", b"mine")
    put(top / "other" / "file", b"other")
    put(top / "alone" / "deep" / "file", b"deep")
    put(base / "directory" / "both", b"base's")
    put(base / "directory" / "base", b"base")
    put(base / "other" / "below", b"below")
    put(base / "file", b"a file")
    put(base / "big", b"x" * 100_000)
    (base / "empty").mkdir()


def replace(path: Path, data: bytes) -> None:
    put(path.with_name("made anew"), data).rename(path)


def again(path: Path, make: Callable[[Path], object]) -> None:
    """Something else in the place of *path*."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    make(path)


def give_attributes(path: Path) -> int:
    path.chmod(0o600)
    os.setxattr(path, "user.x", b"y")
    return path.stat().st_mode


def empty(path: Path) -> int:
    for child in path.iterdir():
        shutil.rmtree(child) if child.is_dir() else child.unlink()
    return len(os.listdir(path))


CHANGES: dict[str, Callable[[Path, Path], object]] = {
    "file rewritten": lambda top, base: (base / "file").write_bytes(b"other data"),
    "file replaced": lambda top, base: replace(base / "file", b"another file"),
    "file removed": lambda top, base: (base / "file").unlink(),
    "file truncated": lambda top, base: os.truncate(base / "big", 10),
    "file grown": lambda top, base: os.truncate(base / "big", 1_000_000),
    "file is a directory": lambda top, base: again(base / "file", lambda path: put(path / "in it", b"x")),
    "file is a symlink": lambda top, base: again(base / "file", lambda path: path.symlink_to("big")),
    "file is a pipe": lambda top, base: again(base / "file", os.mkfifo),
    "file has other attributes": lambda top, base: give_attributes(base / "file"),
    "file has a second name": lambda top, base: os.link(base / "file", base / "second"),
    "file added": lambda top, base: put(base / "added", b"new"),
    "file added on top": lambda top, base: put(top / "file", b"covers"),
    "top one removed": lambda top, base: (top / "directory" / "both").unlink(),
    "directory is a file": lambda top, base: again(top / "directory", lambda path: put(path, b"a file now")),
    "directory is a symlink": lambda top, base: again(base / "other", lambda path: path.symlink_to("alone")),
    "directory removed": lambda top, base: shutil.rmtree(top / "alone"),
    "directory removed from one layer": lambda top, base: shutil.rmtree(base / "other"),
    "directory made again": lambda top, base: again(top / "alone", lambda path: put(path / "deep" / "other", b"o")),
    "directory renamed": lambda top, base: (top / "alone").rename(top / "renamed"),
    "directory renamed over another": lambda top, base: (top / "alone").rename(base / "empty"),
    "directory added below": lambda top, base: put(base / "alone" / "deep" / "more", b"m"),
    "whiteout added": lambda top, base: whiteout(top / "file"),
    "whiteout added over a directory": lambda top, base: again(top / "other", whiteout),
    "directory opaque": lambda top, base: mark(top / "directory", "opaque"),
    "everything removed": lambda top, base: (empty(top), empty(base)),
}


def is_clean(exc: OSError) -> bool:
    return isinstance(exc, FileNotFoundError) or exc.errno in CLEAN


def look_at(view: View, paths: list[bytes]) -> None:
    for path in paths:
        for look in (view.stat, view.read, view.names, view.xattrs):
            try:
                look(path)
            except OSError as exc:
                assert is_clean(exc), (path, look, exc)


def fresh_snapshot(world: World) -> Snapshot:
    fresh = world.open(writable=False)
    found = fresh.snapshot()
    world.close(fresh)
    return found


def all_of(steps: object) -> Outdated:
    found = Outdated()
    for step in steps:  # type: ignore[attr-defined]
        found.add(step)
    return found


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_after_a_refresh_the_view_is_that_of_a_fresh_union(root: None, world: World, change: Callable[[Path, Path], object]) -> None:
    fill(*world.lowers)
    view = world.open(writable=False)
    paths = list(view.snapshot())
    change(*world.lowers)
    look_at(view, paths)
    for _ in refresh(view.union.tree):
        pass
    assert view.snapshot() == fresh_snapshot(world)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_nothing_is_left_when_all_is_forgotten(root: None, world: World, change: Callable[[Path, Path], object]) -> None:
    fill(*world.lowers)
    with no_descriptor_left():
        view = world.open()
        view.snapshot()
        change(*world.lowers)
        for _ in refresh(view.union.tree):
            pass
        view.snapshot()
        view.forget()
        assert [node.ino for node in view.union.tree.nodes] == [1]
        world.close(view)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_stale_view_can_be_written_to(root: None, world: World, change: Callable[[Path, Path], object]) -> None:
    """What comes of it is undefined, but every verb ends, with success or a clean error, and work stays tidy."""
    fill(*world.lowers)
    view = world.open()
    paths = [path for path in view.snapshot() if path != b"."]
    change(*world.lowers)
    for path in paths:
        for verb in (lambda p: view.write(p, b"written"), lambda p: view.chmod(p, 0o700), lambda p: view.change(p, Change(size=1)),
                     lambda p: view.rename(p, p + b"-moved"), lambda p: view.unlink(p + b"-moved"), lambda p: view.rmdir(p + b"-moved"),
                     lambda p: view.mkdir(p)):
            try:
                verb(path)
            except OSError as exc:
                assert is_clean(exc) or exc.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.EINVAL, errno.EOPNOTSUPP), (path, exc)
    view.forget()
    assert [name for name in os.listdir(world.building) if name.startswith("#")] == []


def test_a_rewritten_file_keeps_its_node_and_a_replaced_one_does_not(world: World) -> None:
    fill(*world.lowers)
    view = world.open()
    same, other = view.node(b"big"), view.node(b"file")
    view.read(b"file")
    (world.lowers[1] / "big").write_bytes(b"rewritten")
    replace(world.lowers[1] / "file", b"replaced")
    outdated = all_of(refresh(view.union.tree))
    assert view.node(b"big") is same and view.read(b"big") == b"rewritten"
    assert view.node(b"file") is not other and view.read(b"file") == b"replaced"
    assert same.ino in outdated.numbers and (1, b"file") in outdated.names and (1, b"big") not in outdated.names


def test_capabilities_that_came_from_outside_are_seen_after_a_refresh(world: World, root: None) -> None:
    name, value = b"security.capability", bytes.fromhex("0100000200040000000000000000000000000000")
    fill(*world.lowers)
    view = world.open()
    ino = view.ino(b"big")
    with pytest.raises(OSError, match="No data available"):
        view.union.getxattr(ino, name)
    os.setxattr(world.lowers[1] / "big", name, value)
    all_of(refresh(view.union.tree))
    assert not view.union.lacks_capability(ino) and view.union.getxattr(ino, name) == value


def test_a_default_acl_that_came_from_outside_counts_after_a_refresh(world: World, root: None) -> None:
    fill(*world.lowers)
    view = world.open()
    view.mkdir(b"made")
    masked = Caller(os.geteuid(), os.getegid(), umask=0o077)
    view.make_file(b"made/before", mode=0o664, caller=masked)
    os.setxattr(world.upper / "made", acl.DEFAULT, acl.encode(6, 6, 4))
    all_of(refresh(view.union.tree))
    view.make_file(b"made/after", mode=0o664, caller=masked)
    assert [stat.S_IMODE(view.stat(b"made/" + name).st_mode) for name in (b"before", b"after")] == [0o600, 0o664]


def test_an_open_file_keeps_its_data_by_the_descriptor_that_is_held(world: World) -> None:
    fill(*world.lowers)
    view = world.open()
    held, lost = view.ino(b"big"), view.ino(b"file")
    assert view.union.read(held, 0, 10) == b"x" * 10
    for name in ("big", "file"):
        (world.lowers[1] / name).unlink()
    all_of(refresh(view.union.tree))
    assert view.union.read(held, 0, 10) == b"x" * 10
    node, st = view.union.getattr(held)
    assert (st.st_size, view.union.links(node, st)) == (100_000, 0)
    for verb in (lambda: view.union.read(lost, 0, 10), lambda: view.union.getattr(lost), lambda: view.union.write(held, 0, b"x"),
                 lambda: view.union.listxattr(lost), lambda: view.union.open(lost, os.O_WRONLY)):
        with pytest.raises(OSError, match="."):
            verb()
    view.forget()


def test_a_file_that_vanished_cannot_be_copied_up(world: World) -> None:
    fill(*world.lowers)
    view = world.open()
    inos = [view.ino(path) for path in (b"file", b"alone/deep/file")]
    (world.lowers[1] / "file").unlink()
    shutil.rmtree(world.lowers[0] / "alone")
    for ino in inos:
        with pytest.raises(OSError) as caught:
            view.union.write(ino, 0, b"x")
        assert caught.value.errno in (errno.ENOENT, errno.ESTALE)
    assert os.listdir(world.upper) == [] and not [name for name in os.listdir(world.building) if name.startswith("#")]


def test_a_pipe_in_the_place_of_a_file_makes_nobody_wait(world: World) -> None:
    fill(*world.lowers)
    view = world.open()
    ino = view.ino(b"file")
    again(world.lowers[1] / "file", os.mkfifo)
    with pytest.raises(OSError, match="."):
        view.union.read(ino, 0, 10)
    with pytest.raises(OSError, match="."):
        view.union.write(ino, 0, b"x")
    assert os.listdir(world.upper) == []
    assert stat.S_ISFIFO(view.stat(b"file").st_mode)


def test_a_refresh_of_a_path_leaves_the_rest_alone(world: World) -> None:
    fill(*world.lowers)
    view = world.open(writable=False)
    view.snapshot()
    base = world.lowers[1]
    put(base / "directory" / "added", b"1")
    put(base / "other" / "added", b"2")
    all_of(refresh(view.union.tree, b"directory"))
    assert b"added" in view.names(b"directory") and b"added" not in view.names(b"other")
    for nowhere in (b"not/there", b"file/x", b"file", b"..", b"empty//"):
        all_of(refresh(view.union.tree, nowhere))


def test_a_path_that_vanished_or_came_can_be_refreshed(world: World) -> None:
    fill(*world.lowers)
    view = world.open(writable=False)
    view.snapshot()
    shutil.rmtree(world.lowers[0] / "alone")
    put(world.lowers[1] / "new" / "file", b"1")
    assert (1, b"alone") in all_of(refresh(view.union.tree, b"alone/deep")).names
    all_of(refresh(view.union.tree, b"new"))
    assert view.find(b"alone") is None and view.read(b"new/file") == b"1"


def test_offsets_of_a_listing_stay_valid(world: World) -> None:
    fill(*world.lowers)
    for number in range(20):
        put(world.lowers[1] / "empty" / f"{number:02}")
    view = world.open(writable=False)
    ino = view.ino(b"empty")
    listed = [(name, offset) for name, offset, _ in view.union.entries(ino, 0)]
    half = listed[:12]
    (world.lowers[1] / "empty" / os.fsdecode(half[-1][0])).unlink()
    put(world.lowers[1] / "empty" / "added")
    all_of(refresh(view.union.tree))
    rest = [name for name, _, _ in view.union.entries(ino, half[-1][1])]
    assert rest == [name for name, _ in listed[12:]] + [b"added"]


def test_names_that_were_missing_are_told_when_they_come(world: World) -> None:
    fill(*world.lowers)
    view = world.open(writable=False)
    ino = view.ino(b"directory")
    assert view.find(b"directory/new") is None
    put(world.lowers[1] / "directory" / "new")
    assert (ino, b"new") in all_of(refresh(view.union.tree)).names


def test_upper_files_that_are_open_for_writing_survive_a_refresh(world: World) -> None:
    fill(*world.lowers)
    view = world.open()
    view.mkdir(b"made")
    made = view.make_file(b"made/file", b"data")
    view.write(b"file", b"COPIED")
    copied = view.node(b"file")
    view.link(b"made/file", b"made/link")
    put(world.lowers[0] / "made" / "lower", b"l")  # the directory has a lower part now
    (world.lowers[1] / "file").unlink()
    all_of(refresh(view.union.tree))
    assert view.node(b"made/file") is made and view.node(b"made/link") is made and view.node(b"file") is copied
    view.write(b"made/file", b"DATA")
    assert (world.upper / "made" / "link").read_bytes() == b"DATA" and view.read(b"file") == b"COPIED"
    assert view.names(b"made") == [b"file", b"link", b"lower"]


def test_an_upper_changed_under_the_union_is_followed_by_a_refresh(world: World) -> None:
    fill(*world.lowers)
    view = world.open()
    view.make_file(b"one", b"1")
    view.link(b"one", b"two")
    view.make_file(b"three", b"3")
    view.mkdir(b"made")
    view.make_file(b"made/file", b"m")
    (world.upper / "one").unlink()
    again(world.upper / "three", lambda path: path.mkdir())
    shutil.rmtree(world.upper / "made")
    look_at(view, [b"one", b"two", b"three", b"made", b"made/file"])
    all_of(refresh(view.union.tree))
    assert view.find(b"one") is None and view.read(b"two") == b"1" and view.names(b"three") == [] and view.find(b"made") is None
    view.make_file(b"made", b"again")
    assert view.read(b"made") == b"again"


def test_a_verb_that_meets_an_outdated_index_looks_again_and_tells(world: World) -> None:
    fill(*world.lowers)
    view = world.open(writable=False)
    told = Outdated()
    view.union.on_outdated = told.add
    view.snapshot()
    again(world.lowers[1] / "file", lambda path: put(path / "in it", b"x"))
    assert view.read(b"file/in it") == b"x"
    assert (1, b"file") in told.names


def test_one_directory_is_looked_at_and_below_only_what_has_other_parts(world: World) -> None:
    fill(*world.lowers)
    view = world.open(writable=False)
    view.snapshot()
    base = world.lowers[1]
    put(base / "directory" / "unseen", b"u")
    put(base / "alone" / "deep" / "seen", b"s")
    outdated = all_of(refresh_directory(view.union.tree, view.union.tree.root, {b"alone"}))
    assert b"seen" in view.names(b"alone/deep") and b"unseen" not in view.names(b"directory")
    assert view.ino(b"big") not in outdated.numbers


def test_written_data_concerns_live_files_only(world: World) -> None:
    fill(*world.lowers)
    view = world.open()
    ino = view.ino(b"file")
    assert refresh_data(view.union.tree, view.union.tree.root, {b"file", b"big", b"none"}) == Outdated({ino}, set())


def test_a_directory_that_cannot_be_read_loses_its_names(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(*world.lowers)
    view = world.open(writable=False)
    view.snapshot()
    tree = view.union.tree

    def refuse(_: object) -> object:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(tree, "read_index", refuse)
        all_of(refresh(tree, b"directory"))
        with pytest.raises(OSError, match="Input/output error"):
            view.find(b"directory/both")
    all_of(refresh(tree))
    assert view.snapshot() == fresh_snapshot(world)


@pytest.mark.parametrize("features", [{}, {"metacopy": True}, {"index": True}, {"redirect": Redirect.FOLLOW}], ids=str)
def test_a_refresh_where_nothing_happened_changes_nothing(root: None, world: World, features: dict[str, Any]) -> None:
    """Every node goes on, whatever was done in the union meanwhile."""
    top, base = world.lowers
    fill(top, base)
    os.link(base / "big", base / "big's other name")
    view = world.open(userxattr=False, **features)
    view.write(b"directory/base", b"up")
    view.chmod(b"big", 0o600)
    view.unlink(b"directory/mine")
    view.rmdir(b"empty")
    view.mkdir(b"empty")
    view.make_file(b"empty/made", b"new")
    view.link(b"empty/made", b"second name")
    view.rename(b"file", b"other/moved")
    if "redirect" not in features:
        view.rename(b"alone/deep", b"directory/deep")
        view.rename(b"alone", b"elsewhere")
    view.make_file(b"gone", b"unlinked")
    gone = view.ino(b"gone")
    view.unlink(b"gone")
    before = view.snapshot()
    nodes = {path: view.node(b"" if path == b"." else path) for path in before}
    numbers = {node.ino for node in view.union.tree.nodes}
    outdated = all_of(refresh(view.union.tree))
    assert outdated.names == set()
    assert {node.ino for node in view.union.tree.nodes} == numbers
    assert view.snapshot() == before
    assert all(view.node(b"" if path == b"." else path) is node for path, node in nodes.items())
    assert view.union.read(gone, 0, 100) == b"unlinked"


@pytest.mark.parametrize("copied_up", [False, True])
def test_names_of_one_lower_file_are_told_apart_when_one_is_another_file(root: None, world: World, copied_up: bool) -> None:
    top, base = world.lowers
    fill(top, base)
    for name in ("directory/two", "three"):
        os.link(base / "big", base / name)
    view = world.open(userxattr=False, index=True)
    view.snapshot()
    if copied_up:  # which takes all names into upper: what happens below has no part in it any more
        view.chmod(b"three", 0o600)
    (base / "big").unlink()
    replace(base / "directory" / "two", b"another")
    all_of(refresh(view.union.tree))
    assert view.read(b"three") == b"x" * 100_000
    assert view.read(b"directory/two") == (b"x" * 100_000 if copied_up else b"another")
    assert (view.find(b"big") is not None) == copied_up
    view.forget()
    assert [node.ino for node in view.union.tree.nodes] == [1]
