"""Listing directories, also while they change."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from tests.posix.rooms import Room, fails_with, furniture

NR_GETDENTS64 = 217 if os.uname().machine == "x86_64" else 61
_libc = ctypes.CDLL(None, use_errno=True)
NAMES = {f"entry{number:03d}" for number in range(400)}
ENTRY = struct.Struct("<QqHB")


def many(room: Path) -> None:
    (room / "many").mkdir()
    for name in NAMES:
        (room / "many" / name).touch()


def entries(fd: int, size: int = 512) -> Iterator[tuple[str, int]]:
    """(name, offset of the next entry) read by getdents64 with a buffer so small that a listing takes many calls."""
    buffer = ctypes.create_string_buffer(size)
    while got := _libc.syscall(NR_GETDENTS64, fd, buffer, size):
        if got < 0:
            raise OSError(ctypes.get_errno(), "getdents64")
        data, place = buffer.raw[:got], 0
        while place < got:
            _, offset, length, _ = ENTRY.unpack_from(data, place)
            name = data[place + ENTRY.size:place + length].split(b"\0")[0]
            place += length
            yield os.fsdecode(name), offset


def opened(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


@furniture(many)
def test_a_listing_has_each_name_once_and_dot_and_dot_dot(room: Room) -> None:
    fd = opened(room / "many")
    listed = [name for name, _ in entries(fd)]
    os.close(fd)
    assert sorted(listed) == sorted([*NAMES, ".", ".."])


@furniture(many)
def test_names_made_and_removed_during_a_listing_do_not_disturb_the_others(room: Room) -> None:
    fd = opened(room / "many")
    seen: list[str] = []
    removed: set[str] = set()
    made: set[str] = set()
    for number, (name, _) in enumerate(entries(fd)):
        seen.append(name)
        if number % 7 == 0:
            victim = sorted(NAMES - removed)[number % 300]
            os.unlink(room / "many" / victim)
            removed.add(victim)
            (room / "many" / f"made{number}").touch()
            made.add(f"made{number}")
    os.close(fd)
    stayed = NAMES - removed
    assert [name for name in seen if name in stayed] and set(seen) >= stayed, stayed - set(seen)
    assert all(seen.count(name) == 1 for name in stayed)
    assert all(seen.count(name) <= 1 for name in removed | made)
    assert set(seen) <= NAMES | made | {".", ".."}


@furniture(many)
def test_removing_each_name_as_it_is_listed_empties_the_directory(room: Room) -> None:
    fd = opened(room / "many")
    for name, _ in entries(fd):
        if name not in (".", ".."):
            os.unlink(room / "many" / name)
    os.close(fd)
    os.rmdir(room / "many")


@furniture(many)
def test_renaming_during_a_listing_shows_each_file_at_most_twice_and_others_once(room: Room) -> None:
    fd = opened(room / "many")
    seen: list[str] = []
    moved: set[str] = set()
    for number, (name, _) in enumerate(entries(fd)):
        seen.append(name)
        if number < 40:
            victim = f"entry{399 - number:03d}"
            os.rename(room / "many" / victim, room / "many" / f"moved{number}")
            moved.add(victim)
    os.close(fd)
    for name in NAMES - moved:
        assert seen.count(name) == 1, name


@furniture(many)
def test_a_listing_can_be_resumed_at_any_of_its_offsets(room: Room) -> None:
    fd = opened(room / "many")
    whole = list(entries(fd))
    for place in (0, 1, 57, 200, len(whole) - 2):
        os.lseek(fd, whole[place][1], os.SEEK_SET)
        assert [name for name, _ in entries(fd)] == [name for name, _ in whole[place + 1:]]
    os.close(fd)


@furniture(many)
def test_an_offset_stays_good_while_the_directory_changes(room: Room) -> None:
    fd = opened(room / "many")
    whole = list(entries(fd))
    _, offset = whole[100]
    before = {name for name, _ in whole[:50]} - {".", ".."}
    for name in before:
        os.unlink(room / "many" / name)
    os.lseek(fd, offset, os.SEEK_SET)
    assert {name for name, _ in entries(fd)} >= {name for name, _ in whole[101:]}
    os.close(fd)


@furniture(many)
def test_rewinding_shows_what_has_changed(room: Room) -> None:
    fd = opened(room / "many")
    assert len(list(entries(fd))) == 402
    os.unlink(room / "many" / "entry007")
    (room / "many" / "made").touch()
    os.lseek(fd, 0, os.SEEK_SET)
    listed = [name for name, _ in entries(fd)]
    assert "made" in listed and "entry007" not in listed and len(listed) == 402
    os.close(fd)


@furniture(many)
def test_two_listings_of_one_directory_do_not_disturb_each_other(room: Room) -> None:
    first, second = opened(room / "many"), opened(room / "many")
    pairs = zip(entries(first), entries(second), strict=True)
    assert all(one == other for one, other in pairs)
    os.close(first)
    os.close(second)


def test_a_new_listing_shows_changes_at_once(room: Room) -> None:
    for number in range(20):
        name = f"new{number}"
        (room / "directory" / name).touch()
        assert name in os.listdir(room / "directory")
        os.unlink(room / "directory" / name)
        assert name not in os.listdir(room / "directory")


def test_entry_types_are_those_of_the_objects(room: Room) -> None:
    with os.scandir(room.path) as listed:
        kinds = {entry.name: (entry.is_dir(follow_symlinks=False), entry.is_file(follow_symlinks=False),
                              entry.is_symlink()) for entry in listed}
    assert kinds["directory"] == (True, False, False) and kinds["file"] == (False, True, False)
    assert kinds["link"] == (False, False, True) and kinds["fifo"] == (False, False, False)


def test_a_removed_name_stays_away_from_every_listing(room: Room) -> None:
    os.unlink(room / "directory" / "one")
    os.rmdir(room / "directory" / "sub")
    assert set(os.listdir(room / "directory")) == {"two", "three", "four"}
    for name in ("one", "sub"):
        with fails_with(errno.ENOENT):
            os.lstat(room / "directory" / name)


def test_dot_dot_leads_to_the_parent(room: Room) -> None:
    fd = opened(room / "directory" / "sub")
    assert os.stat("..", dir_fd=fd).st_ino == os.stat(room / "directory").st_ino
    assert os.stat("../..", dir_fd=fd).st_ino == os.stat(room.path).st_ino
    os.close(fd)


def test_the_link_count_of_a_directory_is_one_or_counts_its_subdirectories(room: Room) -> None:
    os.mkdir(room / "directory" / "another")
    assert os.stat(room / "directory").st_nlink in (1, 4)
    assert os.stat(room / "hollow").st_nlink in (1, 2)


def test_a_deep_tree_can_be_made_walked_and_removed(room: Room) -> None:
    path = room / "deep"
    for level in range(60):
        path.mkdir()
        (path / "file").write_bytes(b"%d" % level)
        path = path / "level"
    assert sum(len(files) for _, _, files in os.walk(room / "deep")) == 60
    for parent, directories, files in os.walk(room / "deep", topdown=False):
        for name in files:
            os.unlink(os.path.join(parent, name))
        for name in directories:
            os.rmdir(os.path.join(parent, name))
    os.rmdir(room / "deep")


def test_a_working_directory_can_be_used_with_relative_names(room: Room) -> None:
    before = os.open(".", os.O_RDONLY)
    try:
        os.chdir(room / "directory")
        assert os.path.samefile(".", room / "directory") and Path("one").read_bytes() == b"one"
        Path("new").write_bytes(b"x")
        assert os.getcwd() == str(room / "directory")
    finally:
        os.fchdir(before)
        os.close(before)
    assert (room / "directory" / "new").read_bytes() == b"x"
