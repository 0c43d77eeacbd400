"""A copy-up that takes long: others are served meanwhile, and the same file is copied once."""

from __future__ import annotations

import errno
import os
import threading

import pytest
import trio
import trio.testing
from pyfuse3 import FileHandleT, FUSEError, InodeT

from tests.adapter.fake import ROOT, FakeDraft, FakeReader, FakeUnion, operations
from unionfs.fuse.ops import Operations

BIG, OTHER = FileHandleT(7), FileHandleT(8)


@pytest.fixture
def union() -> FakeUnion:
    return FakeUnion()


@pytest.fixture
def reader() -> FakeReader:
    return FakeReader()


@pytest.fixture
def ops(union: FakeUnion, reader: FakeReader) -> Operations:
    return operations(union, reader)


def held(union: FakeUnion, ino: int, error: Exception | None = None) -> FakeDraft:
    """A long copy-up of *ino* that goes on until its gate is opened."""
    draft = union.drafts[ino] = FakeDraft(size=1 << 30, error=error)
    draft.gate.clear()
    return draft


async def until_started(draft: FakeDraft) -> None:
    assert await trio.to_thread.run_sync(draft.started.wait, 10)


async def test_a_long_copy_up_runs_in_a_thread_and_others_are_let_in(
    ops: Operations, union: FakeUnion, reader: FakeReader
) -> None:
    draft = union.drafts[7] = FakeDraft(size=1 << 30)
    await ops.write(BIG, 0, b"x")
    assert draft.built_in is not threading.current_thread()
    assert reader.handed_over == 1
    assert [call[0] for call in union.asked] == ["begin_copy_up", "publish", "write"]


@pytest.mark.parametrize(
    ("draft", "in_thread"),
    [(FakeDraft(size=4096), False), (FakeDraft(size=4096, sync=True), True), (FakeDraft(size=1 << 20), True)],
    ids=["small", "small but to be on disk", "big"],
)
async def test_only_what_takes_long_is_worth_a_thread(
    ops: Operations, union: FakeUnion, draft: FakeDraft, in_thread: bool
) -> None:
    union.drafts[7] = draft
    await ops.write(BIG, 0, b"x")
    assert (draft.built_in is not threading.current_thread()) is in_thread


async def test_nothing_is_copied_up_for_what_may_not_be_opened(ops: Operations, union: FakeUnion) -> None:
    union.drafts[7] = FakeDraft(size=1 << 30)
    union.shut.add(7)
    with pytest.raises(FUSEError) as caught:
        await ops.open(InodeT(7), os.O_WRONLY, ROOT)
    assert caught.value.errno == errno.EPERM and union.asked == []


async def test_a_second_writer_of_the_same_file_waits_and_it_is_copied_once(
    ops: Operations, union: FakeUnion, reader: FakeReader
) -> None:
    draft = held(union, 7)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ops.write, BIG, 0, b"first")
        await until_started(draft)
        nursery.start_soon(ops.write, BIG, 5, b"second")
        nursery.start_soon(ops.open, InodeT(7), os.O_RDWR, ROOT)
        await trio.testing.wait_all_tasks_blocked()
        assert union.count("write") == union.count("publish") == union.count("open") == 0
        assert reader.handed_over == 3, "whoever waits lets another worker read"
        draft.gate.set()
    assert (union.count("publish"), union.count("write"), union.count("open")) == (1, 2, 1)
    written = [call[3] for call in union.asked if call[0] == "write"]
    assert set(written) == {b"first", b"second"}


async def test_other_files_are_read_and_written_meanwhile(ops: Operations, union: FakeUnion) -> None:
    draft = held(union, 7)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ops.write, BIG, 0, b"x")
        await until_started(draft)
        with trio.fail_after(5):
            assert await ops.read(OTHER, 0, 4) == b"data"
            assert await ops.write(OTHER, 0, b"other") == 5
            assert await ops.read(BIG, 0, 4) == b"data", "the same file is readable too"
        draft.gate.set()
    assert union.count("publish") == 1


async def test_two_files_are_copied_side_by_side(ops: Operations, union: FakeUnion) -> None:
    one, other = held(union, 7), held(union, 8)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ops.write, BIG, 0, b"x")
        nursery.start_soon(ops.write, OTHER, 0, b"y")
        await until_started(one)
        await until_started(other)
        other.gate.set()
        with trio.fail_after(5):
            while not union.count("publish"):
                await trio.sleep(0.001)
        assert ("publish", 8) in union.asked and ("publish", 7) not in union.asked
        one.gate.set()


async def test_when_the_copy_fails_its_writer_is_told_and_the_next_tries_for_himself(
    ops: Operations, union: FakeUnion
) -> None:
    draft = held(union, 7, OSError(errno.ENOSPC, "full"))
    answers: list[int] = []

    async def write(data: bytes) -> None:
        try:
            answers.append(await ops.write(BIG, 0, data))
        except FUSEError as exc:
            answers.append(-exc.errno)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, b"first")
        await until_started(draft)
        nursery.start_soon(write, b"second")
        await trio.testing.wait_all_tasks_blocked()
        union.drafts[7] = FakeDraft(size=1 << 30)
        draft.gate.set()
    assert answers == [-errno.ENOSPC, 6]
    assert union.count("publish") == 1


async def test_what_is_tied_to_other_names_is_copied_up_before_one_goes(ops: Operations, union: FakeUnion) -> None:
    union.names = {(1, b"gone"): 7, (1, b"old"): 8, (1, b"new"): 9}
    union.tied = {7, 9}
    for ino in (7, 9):
        union.drafts[ino] = FakeDraft(size=1 << 30)
    await ops.unlink(InodeT(1), b"gone", ROOT)
    await ops.rename(InodeT(1), b"old", InodeT(1), b"new", 0, ROOT)
    assert [call[:2] for call in union.asked if call[0] != "begin_copy_up" or call[1] in union.tied] == [
        ("begin_copy_up", 7), ("publish", 7), ("unlink", 1), ("begin_copy_up", 9), ("publish", 9), ("begin_copy_up", 9), ("rename", 1)]


async def test_rename_copies_its_files_up_first(ops: Operations, union: FakeUnion) -> None:
    union.names = {(1, b"old"): 7, (1, b"new"): 8}
    for ino in (7, 8):
        union.drafts[ino] = FakeDraft(size=1 << 30)
    await ops.rename(InodeT(1), b"old", InodeT(1), b"new", 2, ROOT)
    assert [call[:2] for call in union.asked] == [
        ("begin_copy_up", 7), ("publish", 7), ("begin_copy_up", 8), ("publish", 8), ("rename", 1)]
