"""Listings: what the kernel's buffer takes is counted, what it does not take is given back."""

from __future__ import annotations

from typing import Any, cast

import pyfuse3
import pytest
from pyfuse3 import FileHandleT, InodeT, ReaddirToken

from tests.adapter.fake import ROOT, TIMEOUT, FakeUnion, operations
from unionfs.fuse.ops import Operations
from unionfs.overlay.merge import Entry

DIRECTORY = FileHandleT(1)


class Buffer:
    """The kernel's buffer, with room for so many entries."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.entries: list[tuple[bytes, int, int]] = []
        self.attributes: list[pyfuse3.EntryAttributes] = []
        self.refused: list[bytes] = []

    def reply(self, _token: ReaddirToken, name: bytes, attr: pyfuse3.EntryAttributes, offset: int) -> bool:
        if len(self.entries) == self.room:
            self.refused.append(name)
            return False
        self.entries.append((name, attr.st_ino, offset))
        self.attributes.append(attr)
        return True


@pytest.fixture
def union() -> FakeUnion:
    """A root with dots and four files, 10 to 13."""
    made = FakeUnion()
    made.listing = [(b".", 1, made.node(1)), (b"..", 2, made.node(1))]
    for number in range(4):
        name = b"file%d" % number
        made.names[1, name] = 10 + number
        made.listing.append((name, 3 + number, Entry(cast(Any, "layer"), 0o100000, 1 + number)))
    return made


@pytest.fixture
def ops(union: FakeUnion) -> Operations:
    return operations(union)


async def read(ops: Operations, monkeypatch: pytest.MonkeyPatch, after: int, room: int) -> Buffer:
    buffer = Buffer(room)
    monkeypatch.setattr(pyfuse3, "readdir_reply", buffer.reply)
    await ops.readdir(DIRECTORY, after, ReaddirToken())
    return buffer


def lookups(union: FakeUnion) -> list[int]:
    return [union.node(10 + number).lookups for number in range(4)]


async def test_a_listing_gives_names_numbers_and_offsets(
    ops: Operations, union: FakeUnion, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = await read(ops, monkeypatch, 0, 100)
    assert buffer.entries == [(b".", 1, 1), (b"..", 1, 2), (b"file0", 10, 3), (b"file1", 11, 4), (b"file2", 12, 5),
                              (b"file3", 13, 6)]
    assert buffer.attributes[2].st_size == union.st.st_size
    assert (buffer.attributes[2].entry_timeout, buffer.attributes[2].st_nlink) == (TIMEOUT, 42)
    assert union.released == []


async def test_every_entry_but_the_dots_counts_as_a_look_up(
    ops: Operations, union: FakeUnion, monkeypatch: pytest.MonkeyPatch
) -> None:
    await read(ops, monkeypatch, 0, 100)
    assert lookups(union) == [1, 1, 1, 1]
    assert union.node(1).lookups == 0
    await read(ops, monkeypatch, 0, 100)
    assert lookups(union) == [2, 2, 2, 2]


async def test_it_stops_when_the_buffer_is_full_and_gives_the_uncounted_node_back(
    ops: Operations, union: FakeUnion, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = await read(ops, monkeypatch, 0, 4)
    assert [name for name, _, _ in buffer.entries] == [b".", b"..", b"file0", b"file1"]
    assert buffer.refused == [b"file2"], "after a refusal nothing more is offered"
    assert lookups(union) == [1, 1, 0, 0]
    assert union.released == [12]
    assert union.count("entry_node") == 3


@pytest.mark.parametrize("room", [0, 1])
async def test_a_buffer_full_of_dots_counts_nothing(
    ops: Operations, union: FakeUnion, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    buffer = await read(ops, monkeypatch, 0, room)
    assert len(buffer.entries) == room
    assert (lookups(union), union.released) == ([0, 0, 0, 0], [])


async def test_it_goes_on_behind_the_offset_it_is_told(
    ops: Operations, union: FakeUnion, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await read(ops, monkeypatch, 0, 4)
    rest = await read(ops, monkeypatch, first.entries[-1][2], 100)
    assert [name for name, _, _ in rest.entries] == [b"file2", b"file3"]
    end = await read(ops, monkeypatch, 6, 100)
    assert end.entries == []


async def test_an_entry_that_vanished_is_left_out(
    ops: Operations, union: FakeUnion, monkeypatch: pytest.MonkeyPatch
) -> None:
    union.vanished = {b"file1"}
    buffer = await read(ops, monkeypatch, 2, 100)
    assert [name for name, _, _ in buffer.entries] == [b"file0", b"file2", b"file3"]
    assert lookups(union) == [1, 0, 1, 1]


async def test_a_second_listing_asks_the_layers_only_for_what_may_have_changed(
    ops: Operations, union: FakeUnion, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _, _, what in union.listing[2:]:
        assert isinstance(what, Entry)
    for name, _, what in union.listing[2:]:
        assert isinstance(what, Entry)
        what.node = union.node(union.names[1, name])
    await read(ops, monkeypatch, 2, 100)
    asked = union.count("entry_node")
    assert (await read(ops, monkeypatch, 2, 100)).entries[0] == (b"file0", 10, 3)
    assert union.count("entry_node") == asked
    await ops.unlink(InodeT(1), b"other", ROOT)
    await read(ops, monkeypatch, 2, 100)
    assert union.count("entry_node") == 2 * asked
