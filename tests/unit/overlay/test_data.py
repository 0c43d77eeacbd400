"""Holes, space and copies within the kernel: as on a plain file. Reading and writing are in test_union.py."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.posix.rooms import fails_with
from tests.support import chattr
from tests.unit.overlay.world import View, World, mark, put
from unionfs.linux import files
from unionfs.overlay.make import Caller

BLOCK = 1 << 16
USER = Caller(1000, 1000)


def outcome(call: Callable[[], object]) -> object:
    try:
        return call()
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]


def sparse(path: Path) -> Path:
    """Two blocks of data behind two of nothing, then a hole of 16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        stream.truncate(20 * BLOCK)
        stream.seek(2 * BLOCK)
        stream.write(b"d" * 2 * BLOCK)
    return path


def on_file(path: Path, call: Callable[[int], object]) -> object:
    fd = os.open(path, os.O_RDWR)
    try:
        return outcome(lambda: call(fd))
    finally:
        os.close(fd)


# ---- seek ----

@pytest.mark.parametrize("whence", [os.SEEK_DATA, os.SEEK_HOLE], ids=["data", "hole"])
@pytest.mark.parametrize("state", ["lower", "copied up", "metacopy", "unlinked"])
def test_holes_are_where_they_are_in_the_file(world: World, scratch: Path, state: str, whence: int) -> None:
    sparse(world.lowers[0] / "file")
    plain = sparse(scratch / "plain")
    view = world.open(metacopy=state == "metacopy")
    ino = view.ino(b"file")
    if state == "copied up":
        view.union.write(ino, 2 * BLOCK, b"d")
    elif state == "metacopy":
        view.chmod(b"file", 0o600)
        assert view.union.tree.descriptors.is_metacopy(view.node(b"file"))
    elif state == "unlinked":
        view.unlink(b"file")
    offsets = (0, 1, BLOCK, 2 * BLOCK, 2 * BLOCK + 7, 4 * BLOCK - 1, 4 * BLOCK, 19 * BLOCK, 20 * BLOCK - 1, 20 * BLOCK, 21 * BLOCK)
    ours = [outcome(lambda at=at: view.union.seek(ino, at, whence)) for at in offsets]  # type: ignore[misc]
    assert ours == [on_file(plain, lambda fd, at=at: os.lseek(fd, at, whence)) for at in offsets]  # type: ignore[misc]
    assert "ENXIO" in ours
    assert len(set(ours)) > 2


# ---- space ----

KEEP, PUNCH, COLLAPSE, ZERO, INSERT, UNSHARE = 1, 2, 8, 16, 32, 64
MODES = {
    "allocate": 0, "beyond the end": KEEP, "punch": PUNCH | KEEP, "punch without keeping": PUNCH, "collapse": COLLAPSE, "zero": ZERO,
    "zero and keep": ZERO | KEEP, "insert": INSERT, "unshare": UNSHARE, "no mode": 1 << 20,
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
@pytest.mark.parametrize("layer", ["lower", "upper"])
def test_space_is_given_and_taken_as_of_a_plain_file(
    world: World, scratch: Path, lowers_untouched: Callable[[], None], layer: str, mode: int
) -> None:
    sparse((world.lowers[0] if layer == "lower" else world.upper) / "file")
    lowers_untouched()
    plain = sparse(scratch / "plain")
    view = world.open()
    ino = view.ino(b"file")
    ranges = ((2 * BLOCK, BLOCK), (BLOCK // 2, 3 * BLOCK), (19 * BLOCK, 4 * BLOCK), (-1, BLOCK), (0, 0), (30 * BLOCK, BLOCK))
    for offset, length in ranges:
        ours = outcome(lambda at=offset, size=length: view.union.allocate(ino, mode, at, size))  # type: ignore[misc]
        theirs = on_file(plain, lambda fd, at=offset, size=length: files.allocate(fd, mode, at, size))  # type: ignore[misc]
        assert ours == theirs, (offset, length)
        before, now = plain.stat(), view.stat(b"file")
        assert now.st_size == before.st_size, (offset, length)
        assert abs(now.st_blocks - before.st_blocks) < BLOCK // 1024, (offset, length)  # but for a block or two that say where they are
        assert view.read(b"file") == plain.read_bytes()


def test_allocating_takes_suid_away_from_whom_it_is_told_of(world: World, root: None) -> None:
    for name in ("ours", "users"):
        put(world.upper / name, b"text", 0o4777)
    view = world.open()
    view.union.allocate(view.ino(b"ours"), 0, 0, 10)
    view.union.allocate(view.ino(b"users"), 0, 0, 10, drop_suid=USER)
    assert [view.entry(name).mode for name in (b"ours", b"users")] == ["4777", "0777"]


@pytest.mark.parametrize("flag", [chattr.IMMUTABLE, chattr.APPEND], ids=["immutable", "append-only"])
def test_space_of_a_protected_file_is_as_on_a_plain_one(world: World, scratch: Path, flag: int) -> None:
    if not chattr.are_possible(scratch):
        pytest.skip("the filesystem of the scratch directory has no file attributes")
    plain = sparse(scratch / "plain")
    sparse(world.upper / "file")
    mark(world.upper / "file", "protattr", b"i" if flag == chattr.IMMUTABLE else b"a")
    view = world.open()
    ino = view.ino(b"file")
    fd = os.open(plain, os.O_RDWR | os.O_APPEND)
    with chattr.cleared_at_the_end(scratch):
        chattr.set_flags(plain, flag)
        for mode in (0, KEEP, PUNCH | KEEP, ZERO, COLLAPSE):
            ours = outcome(lambda mode=mode: view.union.allocate(ino, mode, 0, BLOCK))  # type: ignore[misc]
            assert ours == outcome(lambda mode=mode: files.allocate(fd, mode, 0, BLOCK)), mode  # type: ignore[misc]
    os.close(fd)


def test_pages_for_an_append_only_file_may_say_what_is_there_already_and_nothing_else(world: World) -> None:
    put(world.lowers[0] / "log", b"0123456789")
    put(world.upper / "log", b"0123456789")
    mark(world.upper / "log", "protattr", b"a")
    view = world.open()
    ino = view.ino(b"log")
    assert view.union.appended(ino, 4, memoryview(b"456789more")) == 6
    assert view.union.appended(ino, 10, memoryview(b"more")) == 0
    assert view.union.appended(ino, 12, memoryview(b"beyond")) == 0
    assert view.union.appended(ino, 2, memoryview(b"23")) == 2
    with pytest.raises(PermissionError):
        view.union.appended(ino, 4, memoryview(b"45X789more"))


# ---- copies ----

@pytest.fixture
def two(world: World, scratch: Path) -> tuple[View, int, int]:
    """``source`` of a lower and ``target`` of upper; the same as plain files."""
    for path in (world.lowers[0] / "source", scratch / "source"):
        put(path, bytes(range(200)) * 100)
    for path in (world.upper / "target", scratch / "target"):
        put(path, b"t" * 1000)
    view = world.open()
    return view, view.ino(b"source"), view.ino(b"target")


@pytest.mark.parametrize(
    ("offset", "target_offset", "length"),
    [(0, 0, 20_000), (10, 20, 100), (0, 5000, 300), (19_990, 0, 100), (20_000, 0, 10), (0, 0, 0), (-1, 0, 10), (5, 7, 1 << 40)],
)
def test_a_range_is_copied_as_between_plain_files(
    two: tuple[View, int, int], scratch: Path, offset: int, target_offset: int, length: int
) -> None:
    view, source, target = two
    reader, writer = os.open(scratch / "source", os.O_RDONLY), os.open(scratch / "target", os.O_RDWR)
    theirs = outcome(lambda: files_copy(reader, writer, length, offset, target_offset))
    os.close(reader)
    os.close(writer)
    assert outcome(lambda: view.union.copy_range(source, offset, target, target_offset, length)) == theirs
    assert view.read(b"target") == (scratch / "target").read_bytes()
    assert view.read(b"source") == (scratch / "source").read_bytes()


def files_copy(source: int, target: int, length: int, offset: int, target_offset: int) -> int:
    return os.copy_file_range(source, target, length, offset, target_offset)


@pytest.mark.parametrize(("offset", "target_offset", "length"), [(0, 10_000, 5000), (0, 100, 5000), (100, 0, 100)])
@pytest.mark.parametrize("up", [False, True], ids=["from a lower", "in upper"])
def test_a_range_is_copied_within_one_file(
    two: tuple[View, int, int], world: World, scratch: Path, up: bool, offset: int, target_offset: int, length: int
) -> None:
    view, source, _ = two
    if up:
        view.union.write(source, 0, b"\0")
    fd = os.open(scratch / "source", os.O_RDWR)
    theirs = outcome(lambda: files_copy(fd, fd, length, offset, target_offset))
    os.close(fd)
    assert outcome(lambda: view.union.copy_range(source, offset, source, target_offset, length)) == theirs
    assert view.read(b"source") == (scratch / "source").read_bytes()
    assert (world.lowers[0] / "source").read_bytes() == bytes(range(200)) * 100


def test_between_filesystems_the_kernel_is_to_copy_itself(
    world: World, tmpfs: Callable[..., Path], scratch: Path
) -> None:
    lower = put(tmpfs("other") / "source", b"source").parent
    put(world.lowers[0] / "target", b"t" * 10)
    world.lowers.insert(0, lower)
    view = world.open()
    plain = on_file(put(scratch / "plain"), lambda fd: on_file(lower / "source", lambda source: files_copy(source, fd, 3, 0, 0)))
    assert plain == "EXDEV"
    assert outcome(lambda: view.union.copy_range(view.ino(b"source"), 0, view.ino(b"target"), 0, 3)) == "EXDEV"
    assert view.read(b"target") == b"t" * 10


def test_the_data_of_a_metacopy_is_copied(world: World) -> None:
    put(world.lowers[0] / "source", b"source")
    put(world.lowers[0] / "target", b"t" * 10)
    view = world.open(metacopy=True)
    for path in (b"source", b"target"):
        view.chmod(path, 0o600)
    assert view.union.copy_range(view.ino(b"source"), 0, view.ino(b"target"), 0, 6) == 6
    assert view.read(b"target") == b"sourcetttt"
    assert (world.lowers[0] / "target").read_bytes() == b"t" * 10


@pytest.mark.parametrize("letter", [b"i", b"a"], ids=["immutable", "append-only"])
def test_nothing_is_copied_into_a_protected_file(two: tuple[View, int, int], world: World, letter: bytes) -> None:
    view, source, target = two
    mark(world.upper / "target", "protattr", letter)
    with fails_with(errno.EPERM):
        view.union.copy_range(source, 0, target, 1000, 10)
    assert view.union.copy_range(target, 0, source, 0, 10) == 10


def test_copying_takes_suid_away_from_whom_it_is_told_of(two: tuple[View, int, int], root: None) -> None:
    view, source, target = two
    view.chmod(b"target", 0o4777)
    view.union.copy_range(source, 0, target, 0, 10)
    assert view.entry(b"target").mode == "4777"
    view.union.copy_range(source, 0, target, 0, 10, drop_suid=USER)
    assert view.entry(b"target").mode == "0777"
