"""Objects without a name: usable until they are forgotten, with a bounded number of descriptors."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.overlay.world import ME, View, World, descriptors, no_descriptor_left, put
from unionfs.linux import files
from unionfs.overlay import tree
from unionfs.overlay.union import Change


@pytest.fixture
def lower(world: World) -> Path:
    return world.lowers[0]


@pytest.fixture
def few_descriptors(monkeypatch: pytest.MonkeyPatch) -> int:
    """How many descriptors of each kind a union may hold in this test."""
    monkeypatch.setattr(tree, "share_of_descriptors", lambda used: 16)
    return 16


def in_upper(world: World, view: View, path: bytes, data: bytes) -> int:
    return view.make_file(path, data).ino


def in_lower(world: World, view: View, path: bytes, data: bytes) -> int:
    return view.ino(path)


def copied_up(world: World, view: View, path: bytes, data: bytes) -> int:
    view.change(path, Change(mtime_ns=1))
    return view.ino(path)


ORIGINS = pytest.mark.parametrize("origin", [in_upper, in_lower, copied_up])
Origin = Callable[[World, View, bytes, bytes], int]


@pytest.fixture(params=["within the bound", "beyond the bound"])
def bound(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Beyond the bound an unlinked upper file moves into work instead of holding a descriptor."""
    monkeypatch.setattr(tree, "share_of_descriptors", lambda used: 16)
    return bool(request.param == "beyond the bound")


def prepare(world: World, origin: Origin, beyond: bool) -> tuple[View, int]:
    """A file named b"file" and, beyond the bound, as many orphans as may hold a descriptor."""
    if origin is not in_upper:
        put(world.lowers[0] / "file", b"content")
    view = world.open()
    if beyond:
        for number in range(16):
            view.make_file(b"filler%d" % number)
            view.unlink(b"filler%d" % number)
    return view, origin(world, view, b"file", b"content")


@ORIGINS
class TestAnUnlinkedFile:
    def test_is_read_and_has_no_links(self, world: World, origin: Origin, bound: bool) -> None:
        view, ino = prepare(world, origin, bound)
        view.unlink(b"file")
        assert view.names() == []
        assert view.find(b"file") is None
        node, st = view.union.getattr(ino)
        assert view.union.read(ino, 0, 100) == b"content"
        assert (st.st_size, view.union.links(node, st)) == (7, 0)

    def test_is_written_truncated_and_changed(self, world: World, origin: Origin, bound: bool) -> None:
        view, ino = prepare(world, origin, bound)
        view.unlink(b"file")
        assert view.union.write(ino, 3, b"TENT!") == 5
        assert view.union.read(ino, 0, 100) == b"conTENT!"
        st = view.union.setattr(ino, Change(size=3, mode=0o600, mtime_ns=5))[1]
        assert (st.st_size, stat.S_IMODE(st.st_mode), st.st_mtime_ns) == (3, 0o600, 5)
        view.union.setxattr(ino, b"user.a", b"1")
        assert view.union.getxattr(ino, b"user.a") == b"1"
        assert b"user.a" in view.union.listxattr(ino)
        view.union.removexattr(ino, b"user.a")
        node, st = view.union.getattr(ino)
        assert view.union.links(node, st) == 0

    def test_leaves_nothing_when_it_is_forgotten(self, world: World, origin: Origin, bound: bool) -> None:
        view, ino = prepare(world, origin, bound)
        view.unlink(b"file")
        view.union.write(ino, 0, b"more")
        view.forget()
        assert os.listdir(world.building) == []
        with pytest.raises(OSError) as caught:
            view.union.getattr(ino)
        assert caught.value.errno == errno.ESTALE

    def test_gets_no_name_again(self, world: World, origin: Origin, bound: bool) -> None:
        view, ino = prepare(world, origin, bound)
        view.unlink(b"file")
        with pytest.raises(FileNotFoundError):
            view.union.link(ino, 1, b"again")

    def test_is_another_than_a_new_one_of_its_name(self, world: World, origin: Origin, bound: bool) -> None:
        view, ino = prepare(world, origin, bound)
        view.unlink(b"file")
        new = view.make_file(b"file", b"new").ino
        assert new != ino
        view.union.write(ino, 0, b"OLD")
        assert (view.read(b"file"), view.union.read(ino, 0, 100)) == (b"new", b"OLDtent")

    def test_survives_being_renamed_over(self, world: World, origin: Origin, bound: bool) -> None:
        view, ino = prepare(world, origin, bound)
        view.make_file(b"other", b"other")
        view.rename(b"other", b"file")
        node, st = view.union.getattr(ino)
        assert (view.union.read(ino, 0, 100), view.union.links(node, st)) == (b"content", 0)
        assert view.read(b"file") == b"other"
        assert view.nlink(b"file") == 1
        view.union.write(ino, 0, b"X")
        view.forget()
        assert view.read(b"file") == b"other"
        assert os.listdir(world.building) == []


def test_unlinked_files_beyond_the_bound_wait_in_work(world: World, few_descriptors: int) -> None:
    view = world.open()
    for number in range(50):
        view.make_file(b"%d" % number, b"data %d" % number)
    inos = [view.ino(b"%d" % number) for number in range(50)]
    before = len(descriptors())
    for number in range(50):
        view.unlink(b"%d" % number)
    assert len(descriptors()) - before <= few_descriptors
    assert len(os.listdir(world.building)) == 50 - few_descriptors
    assert [view.union.read(ino, 0, 100) for ino in inos] == [b"data %d" % number for number in range(50)]
    assert view.union.tree.open_descriptors <= 3 * few_descriptors
    view.forget()
    assert os.listdir(world.building) == []


@pytest.mark.parametrize("where", ["upper", "lower", "copied up"])
def test_any_number_of_unlinked_files_needs_few_descriptors(
    world: World, few_descriptors: int, where: str
) -> None:
    """Asked for attributes, data and xattrs after they lost their names."""
    if where != "upper":
        for number in range(100):
            put(world.lowers[0] / str(number), b"x")
    view = world.open()
    inos = []
    for number in range(100):
        if where == "upper":
            view.make_file(b"%d" % number, b"x")
        elif where == "copied up":
            view.chmod(b"%d" % number, 0o600)
        inos.append(view.ino(b"%d" % number))
        view.unlink(b"%d" % number)
    before = len(descriptors())
    for ino in inos:
        view.union.getattr(ino)
        view.union.read(ino, 0, 1)
        view.union.listxattr(ino)
    assert len(descriptors()) - before <= 2 * few_descriptors
    for ino in inos:
        view.union.write(ino, 0, b"y")
    assert len(descriptors()) - before <= 2 * few_descriptors


def test_removed_directories_need_few_descriptors_too(world: World, few_descriptors: int) -> None:
    view = world.open()
    for number in range(100):
        view.mkdir(b"%d" % number)
    before = len(descriptors())
    for number in range(100):
        view.rmdir(b"%d" % number)
    assert len(descriptors()) - before <= 2 * few_descriptors


@pytest.mark.parametrize("where", ["upper", "lower", "copied up"])
def test_a_removed_directory_that_is_still_open_is_empty_and_takes_nothing_new(world: World, where: str) -> None:
    if where != "upper":
        (world.lowers[0] / "dir").mkdir()
    view = world.open()
    if where == "upper":
        view.mkdir(b"dir")
    elif where == "copied up":
        view.chmod(b"dir", 0o700)
    ino = view.ino(b"dir")
    view.rmdir(b"dir")
    node, st = view.union.getattr(ino)
    assert stat.S_ISDIR(st.st_mode)
    assert view.union.links(node, st) == 0
    assert [name for name, _, _ in view.union.entries(ino, 0)] == [b".", b".."]
    assert view.union.lookup(ino, b"x") is None
    making: list[Callable[[], object]] = [
        lambda: view.union.make_file(ino, b"x", 0o644, ME),
        lambda: view.union.make_directory(ino, b"x", 0o755, ME),
        lambda: view.union.make_symlink(ino, b"x", b"y", ME),
    ]
    for make in making:
        with pytest.raises(FileNotFoundError):
            make()
    view.make_file(b"file")
    with pytest.raises(FileNotFoundError):
        view.union.rename(1, b"file", ino, b"file")
    with pytest.raises(FileNotFoundError):
        view.union.link(view.ino(b"file"), ino, b"file")
    view.forget()
    assert os.listdir(world.building) == []


@pytest.mark.parametrize("beyond", [False, True], ids=["held by a descriptor", "waiting in work"])
def test_a_file_is_no_orphan_any_more_when_another_of_its_links_is_looked_up(
    world: World, few_descriptors: int, beyond: bool
) -> None:
    put(world.upper / "one", b"content")
    os.link(world.upper / "one", world.upper / "two")
    view = world.open()
    for number in range(few_descriptors if beyond else 0):
        view.make_file(b"filler%d" % number)
        view.unlink(b"filler%d" % number)
    ino = view.ino(b"one")
    view.unlink(b"one")
    node, st = view.union.getattr(ino)
    assert view.union.links(node, st) == 1
    assert view.ino(b"two") == ino
    assert view.nlink(b"two") == 1
    assert os.listdir(world.building) == []
    assert node.orphan is None and node.path() == b"two"
    view.write(b"two", b"CONTENT")
    assert (world.upper / "two").read_bytes() == b"CONTENT"
    with no_descriptor_left():
        view.unlink(b"two")
        view.forget()


def test_of_two_known_links_the_other_carries_on(world: World) -> None:
    view = world.open()
    view.make_file(b"one", b"content")
    view.link(b"one", b"two")
    ino = view.ino(b"one")
    assert view.ino(b"two") == ino
    assert view.nlink(b"one") == 2
    view.unlink(b"one")
    assert view.nlink(b"two") == 1
    assert view.union.read(ino, 0, 100) == b"content"
    view.unlink(b"two")
    assert view.union.links(*view.union.getattr(ino)) == 0
    assert view.union.read(ino, 0, 100) == b"content"


def test_links_survive_that_their_directories_are_forgotten(world: World) -> None:
    view = world.open()
    for name in (b"a", b"b"):
        view.mkdir(name)
    view.make_file(b"a/one", b"content")
    view.link(b"a/one", b"b/two")
    view.mkdir(b"c")
    view.link(b"a/one", b"c/three")
    view.forget()
    assert len(view.union.tree.nodes) == 1
    inos = {view.ino(path) for path in (b"a/one", b"b/two", b"c/three")}
    assert len(inos) == 1
    view.unlink(b"a/one")
    view.rename(b"b/two", b"c/two")
    view.unlink(b"c/three")
    assert view.read(b"c/two") == b"content"
    view.forget()
    assert len(view.union.tree.nodes) == 1


def test_closing_with_orphans_leaves_work_empty(world: World, few_descriptors: int) -> None:
    with no_descriptor_left():
        view = world.open()
        for number in range(40):
            view.make_file(b"%d" % number)
            view.unlink(b"%d" % number)
        assert os.listdir(world.building)
        world.close(view)
    assert os.listdir(world.building) == []


def test_a_failed_unlink_gives_its_descriptor_back(world: World) -> None:
    view = world.open()
    view.make_file(b"file", b"x")
    before = descriptors()

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "no")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "unlink", fail)
        with pytest.raises(OSError, match="no"):
            view.unlink(b"file")
    assert descriptors() <= before
    assert view.names() == [b"file"]
    view.unlink(b"file")
    assert view.names() == []


def test_beyond_the_bound_a_filesystem_without_rename_whiteout_will_do(
    world: World, few_descriptors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(world.lowers[0] / "file", b"old")
    view = world.open()
    view.write(b"file", b"new")
    for number in range(few_descriptors):
        view.make_file(b"filler%d" % number)
        view.unlink(b"filler%d" % number)
    renameat2 = files.renameat2

    def without_whiteout(old_dir: int, old: bytes, new_dir: int, new: bytes, flags: int = 0) -> None:
        if flags & files.RENAME_WHITEOUT:
            raise OSError(errno.EINVAL, "no RENAME_WHITEOUT here")
        renameat2(old_dir, old, new_dir, new, flags)

    monkeypatch.setattr(files, "renameat2", without_whiteout)
    ino = view.ino(b"file")
    view.unlink(b"file")
    assert view.names() == []
    assert view.union.read(ino, 0, 10) == b"new"
    assert view.union.links(*view.union.getattr(ino)) == 0
    view.forget()
    assert os.listdir(world.building) == []
    view = world.reopen(view)
    assert view.names() == []


def test_a_directory_replaced_by_another_is_still_there_for_who_holds_it(world: World, bound: bool) -> None:
    view, _ = prepare(world, in_upper, bound)
    view.mkdir(b"held")
    view.mkdir(b"other")
    held = view.ino(b"held")
    view.rename(b"other", b"held")
    node, st = view.union.getattr(held)
    assert stat.S_ISDIR(st.st_mode)
    assert view.union.links(node, st) == 0
