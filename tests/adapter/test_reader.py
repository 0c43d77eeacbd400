"""The Reader between a descriptor and workers: who reads, who waits, and that nobody else in trio is starved."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest
import trio
import trio.testing

from unionfs.fuse.reader import Reader

Handler = Callable[[bytes], Awaitable[None]]


class Wire:
    """A client's end of a packet socket, and a loop like pyfuse3's on the other end."""

    def __init__(self) -> None:
        self.client, self.server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.server.setblocking(False)
        self.reader = Reader()
        self.workers = 0
        self.most_workers = 0
        self.answered: list[bytes] = []
        self.read: Callable[[], bytes] = lambda: self.server.recv(100)

    def close(self) -> None:
        self.client.close()
        self.server.close()

    def ask(self, *requests: bytes) -> None:
        for request in requests:
            self.client.send(request)

    def hang_up(self) -> None:
        """The end of the mount."""
        self.client.shutdown(socket.SHUT_WR)

    async def _loop(self, handler: Handler) -> None:
        self.workers += 1
        self.most_workers = max(self.most_workers, self.workers)
        try:
            while True:
                try:
                    async with self.reader.Lock():
                        await self.reader.wait_readable(self.server.fileno())
                except self.reader.ClosedResourceError:
                    return
                request = self.read()
                if not request:
                    return
                await handler(request)
                self.answered.append(request)
        finally:
            self.workers -= 1

    async def serve(self, handler: Handler) -> None:
        async with self.reader.open_nursery() as nursery:
            nursery.start_soon(self._loop, handler, name="worker")


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire()
    yield made
    made.close()


async def quick(_: bytes) -> None:
    pass


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The descriptors that were waited for in trio."""
    waited: list[int] = []
    wait_readable = trio.lowlevel.wait_readable

    async def watched(fd: int) -> None:
        waited.append(fd)
        await wait_readable(fd)

    monkeypatch.setattr(trio.lowlevel, "wait_readable", watched)
    return waited


async def test_requests_that_are_there_are_answered_without_sleeping(wire: Wire, sleeps: list[int]) -> None:
    requests = [b"%d" % number for number in range(100)]
    wire.ask(*requests)
    wire.hang_up()
    await wire.serve(quick)
    assert wire.answered == requests
    assert wire.server.fileno() not in sleeps
    assert wire.most_workers == 1


async def test_an_idle_reader_sleeps_and_wakes_up(wire: Wire, sleeps: list[int]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wire.serve, quick)
        while wire.server.fileno() not in sleeps:
            await trio.sleep(0.001)
        wire.ask(b"late")
        with trio.fail_after(5):
            while not wire.answered:
                await trio.sleep(0.001)
        wire.hang_up()
    assert wire.answered == [b"late"]


async def test_while_a_handler_waits_in_a_thread_a_second_worker_reads_and_the_surplus_one_ends(wire: Wire) -> None:
    gate = threading.Event()

    async def handler(request: bytes) -> None:
        if request == b"slow":
            assert await wire.reader.in_thread(lambda: gate.wait(10))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wire.serve, handler)
        wire.ask(b"slow", b"fast", b"faster")
        with trio.fail_after(5):
            while len(wire.answered) < 2:
                await trio.sleep(0.001)
        assert wire.answered == [b"fast", b"faster"]
        assert wire.workers == 2
        gate.set()
        with trio.fail_after(5):
            while wire.workers > 1:
                await trio.sleep(0.001)
        assert wire.answered[-1] == b"slow"
        wire.ask(b"after")
        with trio.fail_after(5):
            while wire.answered[-1] != b"after":
                await trio.sleep(0.001)
        wire.hang_up()
    assert wire.workers == 0


async def test_many_that_wait_leave_one_reader_in_the_end(wire: Wire) -> None:
    gate = threading.Event()

    async def handler(request: bytes) -> None:
        if request.startswith(b"slow"):
            await wire.reader.in_thread(lambda: gate.wait(10))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wire.serve, handler)
        wire.ask(*(b"slow%d" % number for number in range(8)), b"fast")
        with trio.fail_after(5):
            while b"fast" not in wire.answered:
                await trio.sleep(0.001)
        assert wire.workers == 9
        gate.set()
        with trio.fail_after(5):
            while wire.workers > 1:
                await trio.sleep(0.001)
        assert len(wire.answered) == 9
        wire.hang_up()


async def test_a_handler_that_waits_for_another_hands_over_first(wire: Wire) -> None:
    done = trio.Event()

    async def handler(request: bytes) -> None:
        if request == b"waits":
            wire.reader.hand_over()
            await done.wait()
        else:
            done.set()

    wire.ask(b"waits", b"ends the wait")
    wire.hang_up()
    with trio.fail_after(5):
        await wire.serve(handler)
    assert sorted(wire.answered) == [b"ends the wait", b"waits"]


async def test_what_fails_in_the_thread_fails_in_the_handler(wire: Wire) -> None:
    caught = []

    def fail() -> None:
        raise OSError(errno.ENOSPC, "full")

    async def handler(_: bytes) -> None:
        try:
            await wire.reader.in_thread(fail)
        except OSError as exc:
            caught.append(exc.errno)

    wire.ask(b"one")
    wire.hang_up()
    await wire.serve(handler)
    assert (caught, wire.answered) == ([errno.ENOSPC], [b"one"])


async def test_a_request_that_was_withdrawn_before_it_was_read_restarts_the_worker(wire: Wire) -> None:
    """poll said readable, read says EAGAIN: the caller was killed in between."""
    read = wire.read
    refusals = [b"first", b"second"]

    def refusing() -> bytes:
        if refusals:
            refusals.pop()
            raise OSError(errno.EAGAIN, "fuse_session_receive_buf failed")
        return read()

    wire.read = refusing
    wire.ask(b"request")
    wire.hang_up()
    with trio.fail_after(5):
        await wire.serve(quick)
    assert wire.answered == [b"request"]
    assert refusals == []


async def test_any_other_error_of_the_descriptor_ends_serving(wire: Wire) -> None:
    def broken() -> bytes:
        raise OSError(errno.EIO, "gone")

    wire.read = broken
    wire.ask(b"request")
    with pytest.RaisesGroup(OSError):
        await wire.serve(quick)


async def test_other_tasks_are_not_starved_by_an_endless_stream_of_requests(wire: Wire, sleeps: list[int]) -> None:
    ticks = 0
    give_up = time.monotonic() + 10

    async def handler(_: bytes) -> None:
        assert time.monotonic() < give_up, "the other task never had a turn"
        if ticks < 5:
            wire.ask(b"more")

    async def other() -> None:
        nonlocal ticks
        while ticks < 5:
            await trio.sleep(0)
            ticks += 1

    wire.ask(b"first")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wire.serve, handler)
        nursery.start_soon(other)
        while ticks < 5:
            await trio.sleep(0)
        wire.hang_up()
    assert len(wire.answered) > 1


async def test_the_end_of_a_thread_is_noticed_in_a_stream_of_requests(wire: Wire) -> None:
    give_up = time.monotonic() + 10
    finished = False

    async def handler(request: bytes) -> None:
        nonlocal finished
        if request == b"slow":
            await wire.reader.in_thread(lambda: time.sleep(0.005))
            finished = True
            wire.hang_up()
            return
        assert time.monotonic() < give_up, "the thread's result never arrived"
        if not finished:
            wire.ask(b"more")

    wire.ask(b"slow", b"more")
    await wire.serve(handler)
    assert finished


async def test_closing_wakes_a_sleeping_reader_and_ends_it(wire: Wire, sleeps: list[int]) -> None:
    """pyfuse3.terminate."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wire.serve, quick)
        while wire.server.fileno() not in sleeps:
            await trio.sleep(0.001)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(5):
            wire.reader.notify_closing(wire.server.fileno())
            while wire.workers:
                await trio.sleep(0.001)


async def test_it_has_what_pyfuse3_asks_of_trio(wire: Wire) -> None:
    reader = wire.reader
    assert reader.lowlevel is reader
    assert reader.current_task().name
    assert reader.current_trio_token() is trio.lowlevel.current_trio_token()
    assert os.fstat(wire.server.fileno())
