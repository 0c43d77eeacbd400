"""The index of hard links on disk: whose it is, and what is left of it at a mount."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.overlay.world import USERXATTR, View, World, mark, marked, put, whiteout
from unionfs.errors import LayerError
from unionfs.overlay.copy_up import encode_origin
from unionfs.overlay.index_dir import entry_name, read_nlink
from unionfs.overlay.layer import Layer


@pytest.fixture
def indexed(world: World) -> Path:
    """An index with one entry; its path."""
    put(world.lowers[0] / "one", b"content")
    os.link(world.lowers[0] / "one", world.lowers[0] / "two")
    view = world.open(index=True)
    view.write(b"one", b"CONTENT")
    world.close(view)
    (entry,) = (world.work / "index").iterdir()
    return entry


def mount(world: World) -> View:
    view = world.open(index=True)
    world.close(view)
    return view


def unmarked(path: Path, name: str) -> None:
    for prefix in ("trusted.overlay.", "user.overlay."):
        if prefix + name in os.listxattr(path):
            os.removexattr(path, prefix + name)


def test_upper_and_index_say_whose_they_are(world: World, indexed: Path) -> None:
    lower, upper = (Layer(os.open(path, os.O_PATH), private=False, where=b"") for path in (world.lowers[0], world.upper))
    of_lower, of_upper = (encode_origin(layer, layer.root_fd, b".") for layer in (lower, upper))
    lower.close()
    upper.close()
    assert marked(world.upper, "origin") == of_lower
    assert marked(indexed.parent, "upper") == of_upper[:3] + bytes([of_upper[3] | 4]) + of_upper[4:]


def test_without_the_option_there_is_no_index(world: World) -> None:
    world.close(world.open())
    assert not (world.work / "index").exists() and marked(world.upper, "origin") is None


def test_an_upper_stays_with_its_topmost_lower(world: World, indexed: Path) -> None:
    world.lowers.reverse()
    with pytest.raises(LayerError, match=r"lower0?.*upper.* was used with another lower|was used with another lower"):
        world.open(index=True)
    world.close(world.open())  # without an index nobody asks
    world.lowers = [world.lowers[1]]
    mount(world)


def test_an_index_stays_with_its_upper(world: World, indexed: Path) -> None:
    world.upper = world.root / "upper2"
    world.upper.mkdir()
    with pytest.raises(LayerError, match="was used with another upper"):
        world.open(index=True)


def test_a_refused_mount_leaves_nothing_locked(world: World, indexed: Path) -> None:
    world.lowers.reverse()
    with pytest.raises(LayerError):
        world.open(index=True)
    world.lowers.reverse()
    mount(world)
    assert indexed.exists()


def test_what_was_being_made_is_removed(world: World, indexed: Path) -> None:
    put(indexed.parent / "#1a")
    put(indexed.parent / "#2" / "below")
    mount(world)
    assert list(indexed.parent.iterdir()) == [indexed]


def test_an_entry_of_another_origin_is_removed(world: World, indexed: Path) -> None:
    stale = indexed.with_name(indexed.name[:-2] + ("00" if indexed.name[-2:] != "00" else "01"))
    indexed.rename(stale)
    mount(world)
    assert list(indexed.parent.iterdir()) == []
    assert (world.upper / "one").read_bytes() == b"CONTENT"


@pytest.mark.parametrize("empty", [True, False])
def test_an_entry_without_an_origin_refuses_the_mount(world: World, indexed: Path, empty: bool) -> None:
    unmarked(indexed, "origin")
    if empty:
        mark(indexed, "origin", b"")
    with pytest.raises(LayerError, match="has lost its origin"):
        mount(world)


@pytest.mark.parametrize("count", [b"U-1", b"L-2", b"nonsense", None])
def test_a_copy_with_no_name_left_is_removed(world: World, indexed: Path, count: bytes | None) -> None:
    if USERXATTR and count == b"L-2":
        pytest.skip("needs root: only CAP_DAC_READ_SEARCH finds the lower by its file handle")
    (world.upper / "one").unlink()
    unmarked(indexed, "nlink")
    if count is not None:
        mark(indexed, "nlink", count)
    mount(world)
    assert not indexed.exists()


@pytest.mark.parametrize("count", [b"U+1", b"L+0"])
def test_a_copy_with_names_in_the_lower_alone_stays(world: World, indexed: Path, count: bytes) -> None:
    (world.upper / "one").unlink()
    mark(indexed, "nlink", count)
    view = world.open(index=True)
    assert (view.read(b"two"), view.nlink(b"two")) == (b"CONTENT", 2)


def test_a_copy_whose_origin_is_gone_is_removed(world: World, indexed: Path, root: None) -> None:
    (world.upper / "one").unlink()
    for name in ("one", "two"):
        (world.lowers[0] / name).unlink()
    mount(world)
    assert not indexed.exists()


def test_what_another_mount_with_nfs_export_keeps_is_left_alone(world: World, indexed: Path, root: None) -> None:
    origin = indexed.name
    gone, directory = indexed.with_name(origin[:-2] + "aa"), indexed.with_name(origin[:-2] + "bb")
    whiteout(gone)
    directory.mkdir()
    mount(world)
    assert {gone, directory, indexed} == set(indexed.parent.iterdir())


NO_ENTRIES = ["x", "00fb", "zz" * 30, "01" * 30, *(start + "00" * 25 for start in ("00fb1d80", "05fb1d00", "00fbff00"))]


@pytest.mark.parametrize("name", NO_ENTRIES)
def test_a_name_that_is_none_of_an_index_refuses_the_mount(world: World, indexed: Path, name: str) -> None:
    put(indexed.with_name(name))
    with pytest.raises(LayerError, match="no entry of an index"):
        world.open(index=True)


def test_a_file_in_place_of_the_index_refuses_the_mount(world: World) -> None:
    put(world.work / "index")
    with pytest.raises(LayerError, match="Not a directory"):
        world.open(index=True)


def test_a_name_of_an_entry_is_its_origin_in_hexadecimal() -> None:
    assert entry_name(b"\x00\xfb\x1d") == b"00fb1d"


def test_counts_are_relative_to_one_side(scratch: Path) -> None:
    path = put(scratch / "file")
    os.setxattr(path, "user.n", b"L-1")
    place = os.fsencode(path)
    assert read_nlink(place, b"user.n", 5, 3) == -3  # 2 shown, 5 there
    assert read_nlink(place, b"user.n", 5, None) is None
    assert read_nlink(place, b"user.n", 5, 1) is None  # the kernel believes none of a file that has one link
    os.setxattr(path, "user.n", b"U+2")
    assert read_nlink(place, b"user.n", 5, None) == 2
    assert read_nlink(place, b"user.none", 5, 3) is None
