"""index=on: the names of one lower file are one node, before and after it is copied up."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.unit.overlay.world import USERXATTR, View, World, is_whiteout, mark, marked, no_descriptor_left, put, whiteout
from unionfs.overlay.refresh import refresh
from unionfs.overlay.union import Change


@pytest.fixture
def lower(world: World) -> Path:
    """Three names of one file, in two directories."""
    file = put(world.lowers[0] / "one", b"content")
    put(world.lowers[0] / "dir" / "other", b"x")
    os.link(file, world.lowers[0] / "two")
    os.link(file, world.lowers[0] / "dir" / "three")
    return file


@pytest.fixture
def view(world: World, lower: Path) -> View:
    return world.open(index=True)


NAMES = (b"one", b"two", b"dir/three")


def again(world: World, view: View) -> View:
    world.close(view)
    return world.open(index=True)


def in_index(world: World) -> list[Path]:
    return sorted((world.work / "index").iterdir())


def assert_one_file(view: View, names: tuple[bytes, ...], links: int, content: bytes) -> None:
    nodes = [view.node(name) for name in names]
    assert all(node is nodes[0] for node in nodes)
    for name in names:
        assert (view.nlink(name), view.read(name)) == (links, content)


def test_all_names_are_one_node_and_show_the_number_of_the_lower(view: View, lower: Path) -> None:
    assert_one_file(view, NAMES, 3, b"content")
    node = view.node(b"one")
    assert node.ino == node.shown == lower.stat().st_ino


def test_without_a_writable_layer_names_are_nodes_of_their_own(world: World, lower: Path) -> None:
    view = world.open(index=True, writable=False)
    assert view.ino(b"one") != view.ino(b"two")
    assert view.node(b"one").shown == view.node(b"two").shown


@pytest.mark.parametrize("first", NAMES)
def test_what_is_written_by_one_name_is_read_by_all(world: World, view: View, lower: Path, first: bytes) -> None:
    ino = view.ino(first)
    view.write(first, b"CONTENT")
    assert_one_file(view, NAMES, 3, b"CONTENT")
    view.forget()
    assert_one_file(view, NAMES, 3, b"CONTENT")
    assert view.ino(b"two") == ino == lower.stat().st_ino
    view = again(world, view)
    assert_one_file(view, NAMES, 3, b"CONTENT")
    assert view.ino(b"two") == ino
    assert lower.read_bytes() == b"content"


def test_the_copy_is_where_the_kernel_looks_for_it(world: World, view: View) -> None:
    view.write(b"two", b"CONTENT")
    (entry,) = in_index(world)
    assert entry.stat().st_ino == (world.upper / "two").stat().st_ino
    assert not (world.upper / "one").exists() and not (world.upper / "dir").exists()
    origin = marked(world.upper / "two", "origin")
    assert origin is not None and entry.name == origin.hex()
    assert marked(world.upper / "two", "nlink") == b"U+1"  # two links, three names
    assert marked(world.upper, "impure") == b"y"


def test_known_names_become_links_in_upper_when_the_file_changes(world: World, view: View) -> None:
    """The change came by one of them, and who reads upper without the index must find it there."""
    view.write(b"one", b"CONTENT")
    assert sorted(os.listdir(world.upper)) == ["one"]
    view.nlink(b"dir/three")
    assert sorted(os.listdir(world.upper)) == ["one"]
    view.write(b"dir/three", b"C")
    assert (world.upper / "dir" / "three").read_bytes() == b"CONTENT"
    assert not (world.upper / "two").exists()
    assert_one_file(view, NAMES, 3, b"CONTENT")
    view.chmod(b"two", 0o600)
    world.close(view)
    view = world.open()
    assert [view.read(name) for name in NAMES] == [b"CONTENT"] * 3


def test_a_name_is_made_in_upper_when_it_goes_or_moves(world: World, view: View) -> None:
    view.write(b"two", b"CONTENT")
    view.rename(b"dir/three", b"dir/moved")
    (entry,) = in_index(world)
    assert (world.upper / "dir" / "moved").stat().st_ino == entry.stat().st_ino
    assert is_whiteout(world.upper / "dir" / "three")
    assert_one_file(view, (b"one", b"two", b"dir/moved"), 3, b"CONTENT")
    view.unlink(b"one")
    assert is_whiteout(world.upper / "one")
    assert_one_file(view, (b"two", b"dir/moved"), 2, b"CONTENT")
    view = again(world, view)
    assert_one_file(view, (b"two", b"dir/moved"), 2, b"CONTENT")


@pytest.mark.parametrize("written", [True, False])
def test_the_entry_goes_with_the_last_name(world: World, view: View, written: bool) -> None:
    view.link(b"one", b"four")
    if written:
        view.write(b"one", b"CONTENT")
    for left, name in ((3, b"one"), (2, b"two"), (1, b"dir/three")):
        view.unlink(name)
        assert view.nlink(b"four") == left
        assert len(in_index(world)) == 1
    view.unlink(b"four")
    assert in_index(world) == []
    view = again(world, view)
    assert view.names() == [b"dir"] and view.names(b"dir") == [b"other"]


def test_a_large_file_can_be_copied_up_before_its_name_goes(world: World, view: View) -> None:
    """By who does not want to keep others waiting: under the name that goes, as nothing else is to be made of it."""
    view.nlink(b"one")
    directory = view.ino(b"dir")
    assert view.union.to_bring_up_first(directory, b"other") == view.union.to_bring_up_first(directory, b"none") == []
    (ino,) = view.union.to_bring_up_first(directory, b"three")
    draft = view.union.begin_copy_up(ino)
    assert draft is not None
    draft.build()
    view.union.publish(ino, draft)
    assert view.union.to_bring_up_first(directory, b"three") == []
    view.unlink(b"dir/three")
    assert sorted(os.listdir(world.upper)) == ["dir"] and is_whiteout(world.upper / "dir" / "three")
    assert_one_file(view, (b"one", b"two"), 2, b"content")


def test_modes_of_the_file_and_its_directories_are_no_obstacle(world: World, lower: Path) -> None:
    """The server of an ordinary user is held to them, and has to do what the mount allowed all the same."""
    lower.chmod(0o444)
    (world.lowers[0] / "dir").chmod(0o555)
    try:
        view = world.open(index=True)
        view.nlink(b"dir/three")
        view.change(b"one", Change(mtime_ns=7))
        view.unlink(b"dir/three")
        assert_one_file(view, (b"one", b"two"), 2, b"content")
        assert view.stat(b"two").st_mtime_ns == 7
        view = again(world, view)
        assert_one_file(view, (b"one", b"two"), 2, b"content")
        for name in (b"one", b"two"):
            view.unlink(name)
        assert in_index(world) == []
    finally:
        for directory in (world.lowers[0] / "dir", world.upper / "dir"):
            directory.chmod(0o755)


def test_unlinking_names_that_nobody_has_looked_at(world: World, view: View) -> None:
    root, directory = view.ino(b""), view.ino(b"dir")
    for parent, name in ((root, b"one"), (directory, b"three"), (root, b"two")):
        view.union.unlink(parent, name)
    assert in_index(world) == []
    assert len(list(view.union.tree.nodes)) == 2


@pytest.mark.parametrize("bound", [16, 0])
def test_a_file_without_a_name_left_is_usable_until_it_is_forgotten(world: World, lower: Path, bound: int) -> None:
    """Beyond the bound on descriptors it gets a name in work."""
    view = world.open(index=True)
    view.union.tree.orphans.limit = bound
    ino = view.ino(b"one")
    for name in NAMES:
        view.unlink(name)
    node, st = view.union.getattr(ino)
    assert view.union.links(node, st) == 0 and node.shown == lower.stat().st_ino
    view.union.write(ino, 0, b"CONTENT")
    assert view.union.read(ino, 0, 100) == b"CONTENT"
    view.forget()
    assert in_index(world) == [] and os.listdir(world.building) == []


def test_a_rename_over_a_name_takes_it_away(world: World, view: View) -> None:
    view.make_file(b"new", b"new")
    view.rename(b"new", b"two")
    assert_one_file(view, (b"one", b"dir/three"), 2, b"content")
    assert view.read(b"two") == b"new"
    view.rename(b"dir/other", b"dir/three")
    view.rename(b"two", b"one")
    assert in_index(world) == []
    view = again(world, view)
    assert (view.read(b"one"), view.read(b"dir/three")) == (b"new", b"x")


def test_renaming_one_name_over_another_changes_nothing(world: World, view: View) -> None:
    view.union.rename(1, b"one", 1, b"two")  # neither was looked up
    assert_one_file(view, NAMES, 3, b"content")
    assert os.listdir(world.upper) == []


def test_an_exchange_moves_this_name_only(world: World, view: View) -> None:
    view.rename(b"two", b"dir/other", 2)
    assert_one_file(view, (b"one", b"dir/other", b"dir/three"), 3, b"content")
    assert view.read(b"two") == b"x"
    view = again(world, view)
    assert_one_file(view, (b"one", b"dir/other", b"dir/three"), 3, b"content")


def test_a_directory_that_is_copied_up_whole_has_all_its_names(world: World, lower: Path) -> None:
    """Else what was reached by the lower alone would be gone below its new name."""
    os.link(world.lowers[0] / "one", world.lowers[0] / "dir" / "five")
    view = world.open(index=True, userxattr=True, copy_limit=1 << 20)
    view.rename(b"dir", b"moved")
    names = (b"one", b"two", b"moved/three", b"moved/five")
    assert_one_file(view, names, 4, b"content")
    world.close(view)
    view = world.open(index=True, userxattr=True)
    assert view.names(b"moved") == [b"five", b"other", b"three"]
    assert_one_file(view, names, 4, b"content")


def test_a_name_in_a_directory_that_moves_stays_a_name(world: World, view: View) -> None:
    if USERXATTR:
        pytest.skip("needs root: redirects exist in trusted.* only")
    view.write(b"one", b"CONTENT")
    view.rename(b"dir", b"moved")
    assert_one_file(view, (b"one", b"two", b"moved/three"), 3, b"CONTENT")
    view = again(world, view)
    assert_one_file(view, (b"one", b"two", b"moved/three"), 3, b"CONTENT")


def test_a_file_may_have_names_in_several_lowers(world: World, lower: Path) -> None:
    os.link(lower, world.lowers[1] / "below")
    os.link(lower, world.lowers[1] / "two")  # covered
    view = world.open(index=True)
    assert_one_file(view, (*NAMES, b"below"), 5, b"content")
    view.rename(b"below", b"up")
    view.unlink(b"two")
    assert_one_file(view, (b"one", b"dir/three", b"up"), 4, b"content")


def test_a_metacopy_is_one_file_too(world: World, lower: Path) -> None:
    if USERXATTR:
        pytest.skip("needs root: metacopies exist in trusted.* only")
    view = world.open(index=True, metacopy=True)
    view.chmod(b"two", 0o600)
    (entry,) = in_index(world)
    assert marked(entry, "metacopy") == b"" and entry.read_bytes() == bytes(7)
    for _ in range(2):
        assert_one_file(view, NAMES, 3, b"content")
        assert stat.S_IMODE(view.stat(b"one").st_mode) == 0o600
        view = _reopened(world, view)
    view.link(b"one", b"dir/new")
    view.rename(b"dir/three", b"moved")
    view = _reopened(world, view)
    assert_one_file(view, (b"one", b"two", b"moved", b"dir/new"), 4, b"content")
    view.write(b"dir/new", b"CONTENT")
    assert_one_file(view, (b"one", b"two", b"moved", b"dir/new"), 4, b"CONTENT")
    assert marked(entry, "metacopy") is None


def _reopened(world: World, view: View) -> View:
    world.close(view)
    return world.open(index=True, metacopy=True)


def test_links_of_upper_alone_and_broken_ones_are_not_tied(world: World, lower: Path) -> None:
    view = world.open()
    view.write(b"one", b"BROKEN.")
    view.make_file(b"new", b"new")
    view.link(b"new", b"dir/new")
    view = again(world, view)
    assert (view.read(b"one"), view.read(b"two"), view.nlink(b"one")) == (b"BROKEN.", b"content", 1)
    assert_one_file(view, (b"two", b"dir/three"), 3, b"content")
    assert_one_file(view, (b"new", b"dir/new"), 2, b"new")
    view.unlink(b"new")
    view.write(b"two", b"CONTENT")
    assert (view.read(b"one"), view.read(b"dir/new")) == (b"BROKEN.", b"new")


def test_a_copy_with_the_wrong_entry_is_a_file_of_its_own(world: World, view: View) -> None:
    """Somebody replaced the entry by another file of the same origin (ovl_lookup_index takes no notice of it then)."""
    view.write(b"one", b"CONTENT")
    world.close(view)
    (entry,) = in_index(world)
    origin = marked(entry, "origin")
    assert origin is not None
    os.link(entry, world.upper / "kept")
    entry.unlink()
    put(entry, b"another")
    mark(entry, "origin", origin)
    os.link(entry, world.upper / "another")
    view = world.open(index=True)
    assert (view.read(b"one"), view.read(b"another")) == (b"CONTENT", b"another")
    assert view.node(b"one") is view.node(b"kept") is not view.node(b"another")


def test_an_entry_of_another_kind_is_an_error(world: World, view: View, root: None) -> None:
    view.write(b"one", b"CONTENT")
    (entry,) = in_index(world)
    view.forget()
    for make in (lambda: whiteout(entry), lambda: os.mkfifo(entry)):
        entry.unlink()
        make()
        with pytest.raises(OSError, match="Input/output") as caught:
            view.ino(b"two")
        assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("text", [b"", b"3", b"U", b"X+1", b"U+x", b"U-9", b"L-9"])
def test_a_senseless_count_is_that_of_the_copy(world: World, view: View, text: bytes) -> None:
    view.write(b"one", b"CONTENT")
    world.close(view)
    mark(world.upper / "one", "nlink", text)
    view = world.open(index=True)
    assert view.nlink(b"one") == view.nlink(b"two") == 2


def test_a_count_from_the_lower_is_read(world: World, view: View) -> None:
    """What a crash leaves between making a link and saying so."""
    view.write(b"one", b"CONTENT")
    world.close(view)
    mark(world.upper / "one", "nlink", b"L+0")
    view = world.open(index=True)
    assert view.nlink(b"one") == 3


def test_a_pipe_and_a_symlink_are_tied_where_they_can_carry_marks(world: World) -> None:
    os.mkfifo(world.lowers[0] / "pipe")
    (world.lowers[0] / "link").symlink_to("x")
    for name in (b"pipe", b"link"):
        file = os.fsencode(world.lowers[0]) + b"/" + name
        os.link(file, file + b"2", follow_symlinks=False)
    view = world.open(index=True)
    for name in (b"pipe", b"link"):
        assert (view.node(name) is view.node(name + b"2")) != USERXATTR
        assert view.node(name).shown == view.node(name + b"2").shown
        view.change(name, Change(mtime_ns=5))
        assert (view.stat(name + b"2").st_mtime_ns == 5) != USERXATTR


@pytest.mark.parametrize("written", [True, False])
def test_layers_looked_at_anew_leave_names_tied(world: World, view: View, lower: Path, written: bool) -> None:
    assert_one_file(view, NAMES, 3, b"content")
    if written:
        view.write(b"two", b"CONTENT")
    put(lower.with_name("new"), b"new")
    (lower.parent / "dir" / "three").unlink()
    for _ in refresh(view.union.tree):
        pass
    assert view.read(b"new") == b"new"
    if written:  # the name was in upper by then
        assert_one_file(view, NAMES, 3, b"CONTENT")
    else:
        assert view.find(b"dir/three") is None
        assert_one_file(view, (b"one", b"two"), 2, b"content")
        view.write(b"one", b"CONTENT")
        assert_one_file(view, (b"one", b"two"), 2, b"CONTENT")


def test_no_descriptor_is_left(world: World, lower: Path) -> None:
    with no_descriptor_left():
        view = world.open(index=True)
        view.write(b"one", b"CONTENT")
        view.unlink(b"two")
        world.close(view)


def test_nothing_is_remembered_of_what_is_forgotten(view: View) -> None:
    view.write(b"one", b"CONTENT")
    assert len({view.ino(name) for name in NAMES}) == 1
    links = view.union.tree.hard_links
    assert links is not None and links.is_tied(view.node(b"one"))
    node = view.node(b"one")
    view.forget()
    assert not links.is_tied(node)
    assert (links._nodes, links._ties) == ({}, {})
    assert links.directory.children == 0
