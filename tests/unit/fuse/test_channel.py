"""The Channel with the test as the kernel: what is answered, what waits, who is told what, and what an idle mount costs."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import trio
import trio.testing

from tests.support.kernel import Answer, Kernel
from unionfs.fuse import protocol
from unionfs.fuse.channel import MAX_WRITE, Channel, Job, Later
from unionfs.fuse.protocol import Opcode

LOG = "unionfs.channel"


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    yield made
    made.close()


@pytest.fixture
def channel(kernel: Kernel) -> Iterator[Channel]:
    made = Channel(kernel.server, wanted=protocol.ASYNC_READ)
    yield made
    made.close()


def serve_all(channel: Channel) -> None:
    while channel.serve_one():
        pass


def asked(kernel: Kernel, channel: Channel, opcode: int, body: bytes = b"") -> Answer:
    """The one answer to a request."""
    unique = kernel.send(opcode, body)
    serve_all(channel)
    (answer,) = kernel.answers()
    assert answer.unique == unique
    return answer


@contextlib.asynccontextmanager
async def serving(channel: Channel) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.serve)
        await trio.testing.wait_all_tasks_blocked()
        yield
        channel.stop()


async def answers(kernel: Kernel, count: int) -> list[Answer]:
    """So many, as soon as they are there."""
    found: list[Answer] = []
    with trio.fail_after(10):
        while len(found) < count:
            await trio.sleep(0.001)
            found += kernel.answers()
    return found


# ---- one request ----

def test_without_a_request_there_is_nothing_to_do(channel: Channel) -> None:
    assert not channel.serve_one()
    assert not channel.closed


def test_a_handler_is_told_number_and_body_and_who_asks(kernel: Kernel, channel: Channel) -> None:
    seen: list[tuple[int, bytes, int, int, int]] = []

    def handler(ino: int, body: memoryview) -> bytes:
        seen.append((ino, bytes(body), channel.uid, channel.gid, channel.pid))
        return b"answer"

    channel.handle(Opcode.LOOKUP, handler)
    unique = kernel.send(Opcode.LOOKUP, b"name\xff\0", ino=1 << 63, uid=1000, gid=0xFFFFFFFF, pid=77)
    assert channel.serve_one()
    assert kernel.answers() == [Answer(unique, 0, b"answer")]
    assert seen == [(1 << 63, b"name\xff\0", 1000, 0xFFFFFFFF, 77)]


def test_a_request_may_be_as_large_as_a_write_can_be(kernel: Kernel, channel: Channel) -> None:
    body = protocol.WRITE_IN.pack(0, 0, MAX_WRITE, 0, 0, 0, 0) + os.urandom(MAX_WRITE)
    channel.handle(Opcode.WRITE, lambda _, given: b"same" if bytes(given) == body else errno.EIO)
    assert asked(kernel, channel, Opcode.WRITE, body).body == b"same"


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 4096], ids=["nothing", "a byte", "1 MiB"])
def test_an_answer_may_be_a_view_of_a_buffer_that_is_used_again(kernel: Kernel, channel: Channel, data: bytes) -> None:
    buffer = bytearray(data)
    channel.handle(Opcode.READ, lambda *_: memoryview(buffer))
    assert asked(kernel, channel, Opcode.READ).body == data
    assert asked(kernel, channel, Opcode.READ).body == data


def test_an_answer_may_be_empty_or_none_at_all(kernel: Kernel, channel: Channel) -> None:
    channel.handle(Opcode.UNLINK, lambda *_: b"")
    channel.handle(Opcode.FORGET, lambda *_: None)
    kernel.send(Opcode.FORGET)
    assert asked(kernel, channel, Opcode.UNLINK) == Answer(4, 0, b"")
    assert channel.counts[Opcode.FORGET] == channel.counts[Opcode.UNLINK] == 1


def _raise(exc: BaseException) -> Callable[[int, memoryview], bytes]:
    def handler(_: int, body: memoryview) -> bytes:
        raise exc

    return handler


def test_an_errno_is_the_answer_whether_it_is_returned_or_raised(kernel: Kernel, channel: Channel) -> None:
    channel.handle(Opcode.GETXATTR, lambda *_: errno.ERANGE)
    channel.handle(Opcode.LOOKUP, _raise(FileNotFoundError(errno.ENOENT, "no")))
    channel.handle(Opcode.MKDIR, _raise(OSError(errno.ENOTEMPTY, "no")))
    assert asked(kernel, channel, Opcode.GETXATTR).error == errno.ERANGE
    assert asked(kernel, channel, Opcode.LOOKUP).error == errno.ENOENT
    assert asked(kernel, channel, Opcode.MKDIR).error == errno.ENOTEMPTY


@pytest.mark.parametrize("opcode", [Opcode.OPEN, Opcode.OPENDIR, Opcode.FLUSH, 33, 63, 64, 4096, 0xFFFFFFFF])
def test_what_nobody_handles_is_not_implemented_and_serving_goes_on(kernel: Kernel, channel: Channel, opcode: int) -> None:
    assert asked(kernel, channel, opcode) == Answer(2, errno.ENOSYS, b"")
    channel.handle(Opcode.LOOKUP, lambda *_: b"still here")
    assert asked(kernel, channel, Opcode.LOOKUP).body == b"still here"


@pytest.mark.parametrize("exc", [ZeroDivisionError("oops"), OSError("without a number"), struct.error("too short"), RecursionError()])
def test_an_unforeseen_exception_is_eio_logged_and_serving_goes_on(
    kernel: Kernel, channel: Channel, caplog: pytest.LogCaptureFixture, exc: Exception
) -> None:
    channel.handle(Opcode.LOOKUP, _raise(exc))
    assert asked(kernel, channel, Opcode.LOOKUP).error == errno.EIO
    (record,) = caplog.records
    assert (record.name, record.levelno) == (LOG, logging.ERROR)
    assert record.message == "lookup failed unexpectedly" and record.exc_info is not None and record.exc_info[1] is exc
    channel.handle(Opcode.LOOKUP, lambda *_: b"still here")
    assert asked(kernel, channel, Opcode.LOOKUP).body == b"still here"


def test_a_message_too_short_for_its_opcode_is_eio(kernel: Kernel, channel: Channel, caplog: pytest.LogCaptureFixture) -> None:
    assert asked(kernel, channel, Opcode.INIT, b"\x07").error == errno.EIO
    assert channel.closed, "there is nothing to agree upon"
    assert "init failed unexpectedly" in caplog.text


def test_requests_are_counted_and_timed_while_somebody_wants_that(kernel: Kernel, channel: Channel) -> None:
    channel.handle(Opcode.LOOKUP, lambda *_: b"")
    asked(kernel, channel, Opcode.LOOKUP)
    assert (channel.counts[Opcode.LOOKUP], channel.nanoseconds[Opcode.LOOKUP]) == (1, 0)
    channel.timed = True

    def slowly(_: int, body: memoryview) -> bytes:
        time.sleep(0.002)
        return b""

    channel.handle(Opcode.LOOKUP, slowly)
    asked(kernel, channel, Opcode.LOOKUP)
    assert channel.counts[Opcode.LOOKUP] == 2 and channel.nanoseconds[Opcode.LOOKUP] >= 2_000_000
    assert asked(kernel, channel, Opcode.OPEN).error == errno.ENOSYS and channel.counts[Opcode.OPEN] == 1


def test_debugging_names_each_request_and_its_answer(kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    channel = Channel(kernel.server, wanted=0, debug=True)
    caplog.set_level(logging.DEBUG, LOG)
    channel.handle(Opcode.LOOKUP, lambda *_: b"x")
    for opcode in (Opcode.LOOKUP, Opcode.OPEN, 99):
        kernel.send(opcode, ino=7, pid=5)
    serve_all(channel)
    channel.close()
    assert [record.message for record in caplog.records] == [
        "lookup of 7 by 5: ok", f"open of 7 by 5: {errno.ENOSYS}", f"opcode 99 of 7 by 5: {errno.ENOSYS}"]  # fmt: skip


def test_numbers_may_mean_others_to_some_handlers(kernel: Kernel, channel: Channel) -> None:
    seen: list[int] = []

    def note(ino: int, _: memoryview) -> bytes:
        seen.append(ino)
        return b""

    meant: dict[int, int] = {}
    channel.handle(Opcode.LOOKUP, note)
    channel.handle(Opcode.READ, note)
    channel.translate([Opcode.READ, Opcode.WRITE], meant)
    meant[7] = 70
    for opcode, ino in ((Opcode.LOOKUP, 7), (Opcode.READ, 7), (Opcode.READ, 8)):
        kernel.send(opcode, ino=ino)
    serve_all(channel)
    assert seen == [7, 70, 8]
    assert [answer.error for answer in kernel.answers()] == [0, 0, 0]
    assert asked(kernel, channel, Opcode.WRITE).error == errno.ENOSYS


# ---- INIT, and the end ----

def init(major: int = 7) -> bytes:
    return struct.pack("=IIIII44x", major, 45, 131072, protocol.ASYNC_READ | protocol.POSIX_ACL, 0)


def test_init_is_answered_before_anybody_is_told_that_the_mount_is_ready(kernel: Kernel, channel: Channel) -> None:
    ready: list[list[Answer]] = []
    channel.on_ready = lambda: ready.append(kernel.answers())
    unique = kernel.send(Opcode.INIT, init())
    serve_all(channel)
    ((answer,),) = ready
    assert (answer.unique, answer.error, len(answer.body)) == (unique, 0, protocol.INIT_OUT.size)
    assert channel.flags == protocol.ASYNC_READ


def test_a_kernel_too_old_is_refused_and_nobody_told_that_the_mount_is_ready(kernel: Kernel, channel: Channel) -> None:
    channel.on_ready = lambda: pytest.fail("it is not")
    assert asked(kernel, channel, Opcode.INIT, init(major=6)).error == errno.EPROTO
    assert channel.closed


@contextlib.contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> Iterator[None]:
    """*call* of os fails, as on a device whose mount is in a state that no socket has."""
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        yield


def test_a_mount_that_is_gone_ends_serving(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    with failing(monkeypatch, "readv", errno.ENODEV):
        assert not channel.serve_one()
        assert channel.closed
        channel.serve_bare([], lambda: pytest.fail("there is nothing left to fetch it for"))
        trio.run(channel.serve)


def test_a_request_that_was_withdrawn_is_passed_over_and_a_broken_device_is_not(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    with failing(monkeypatch, "readv", errno.ENOENT):
        assert channel.serve_one() and not channel.closed
    with failing(monkeypatch, "readv", errno.EINVAL), pytest.raises(OSError, match="Invalid argument"):
        channel.serve_one()


@pytest.mark.parametrize(("number", "logged"), [(errno.ENOENT, False), (errno.ENODEV, False), (errno.EINVAL, True)])
def test_an_answer_that_nobody_waits_for_is_dropped_and_one_that_is_refused_logged(
    kernel: Kernel, channel: Channel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int, logged: bool
) -> None:
    channel.handle(Opcode.LOOKUP, lambda *_: b"x")
    kernel.send(Opcode.LOOKUP)
    with failing(monkeypatch, "write", number):
        assert channel.serve_one()
    assert ("an answer was refused" in caplog.text) is logged
    assert asked(kernel, channel, Opcode.LOOKUP).body == b"x"


def test_notifications_are_the_bytes_that_the_kernel_expects(kernel: Kernel, channel: Channel) -> None:
    channel.forget_attributes(7)
    channel.forget_object(8)
    channel.forget_name(1, b"na\xffme")
    assert kernel.answers() == [
        Answer(0, 2, struct.pack("=Qqq", 7, -1, 0)),
        Answer(0, 2, struct.pack("=Qqq", 8, 0, 0)),
        Answer(0, 3, struct.pack("=QII", 1, 5, 0) + b"na\xffme\0"),
    ]


def test_a_notification_about_what_the_kernel_does_not_know_is_an_error(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    with failing(monkeypatch, "write", errno.ENOENT):
        with pytest.raises(FileNotFoundError):
            channel.forget_object(7)
        with pytest.raises(FileNotFoundError):
            channel.forget_name(1, b"x")


# ---- what waits ----

class Slow:
    """A handler of LOOKUP that needs a job done for each number first. ``gate``: lets the job go on."""

    def __init__(self, channel: Channel, *, failure: Exception | None = None, answer: bytes | None = None) -> None:
        self.gate = threading.Event()
        self.started = threading.Event()
        self.jobs: dict[int, Job] = {}
        self.done: set[int] = set()
        self.asked = 0
        self.failure = failure
        self.answer = answer
        self.told: list[BaseException | None] = []
        self.worked_in: list[threading.Thread] = []
        channel.handle(Opcode.LOOKUP, self.lookup)
        channel.handle(Opcode.GETATTR, lambda ino, body: b"other")

    def lookup(self, ino: int, body: memoryview) -> bytes:
        self.asked += 1
        if ino in self.done:
            return b"done:" + bytes(body)
        if ino not in self.jobs:
            self.jobs[ino] = Job(self._work, lambda failure: self._finish(ino, failure), self.answer)
        raise Later(self.jobs[ino])

    def _work(self) -> None:
        self.worked_in.append(threading.current_thread())
        self.started.set()
        assert self.gate.wait(10)
        if self.failure is not None:
            raise self.failure

    def _finish(self, ino: int, failure: BaseException | None) -> None:
        del self.jobs[ino]
        self.told.append(failure)
        assert threading.current_thread() is threading.main_thread()
        if failure is None:
            self.done.add(ino)

    async def until_started(self) -> None:
        assert await trio.to_thread.run_sync(self.started.wait, 10)

    async def until_asked(self, times: int) -> None:
        """The job has begun, and so often it was asked for."""
        await self.until_started()
        with trio.fail_after(10):
            while self.asked < times:
                await trio.sleep(0.001)


async def test_what_waits_lets_others_be_served_and_is_handled_again(kernel: Kernel, channel: Channel) -> None:
    slow = Slow(channel)
    async with serving(channel):
        first = kernel.send(Opcode.LOOKUP, b"a\xff\0", ino=7, pid=5)
        await slow.until_started()
        other = kernel.send(Opcode.GETATTR, ino=7)
        assert await answers(kernel, 1) == [Answer(other, 0, b"other")]
        slow.gate.set()
        assert await answers(kernel, 1) == [Answer(first, 0, b"done:a\xff\0")], "its message is kept while the buffer is used by others"
    assert slow.worked_in != [threading.main_thread()] and slow.told == [None]
    assert slow.asked == 2 and channel.counts[Opcode.LOOKUP] == 1


async def test_all_who_wait_for_one_job_are_handled_once_it_is_done(kernel: Kernel, channel: Channel) -> None:
    slow = Slow(channel)
    async with serving(channel):
        uniques = [kernel.send(Opcode.LOOKUP, b"%d" % number, ino=7) for number in range(3)]
        await slow.until_started()
        await trio.sleep(0.01)
        assert kernel.answers() == []
        slow.gate.set()
        assert await answers(kernel, 3) == [Answer(unique, 0, b"done:%d" % number) for number, unique in enumerate(uniques)]
    assert len(slow.worked_in) == 1


async def test_jobs_of_two_objects_run_side_by_side(kernel: Kernel, channel: Channel) -> None:
    slow = Slow(channel)
    async with serving(channel):
        for ino in (7, 8):
            kernel.send(Opcode.LOOKUP, ino=ino)
        with trio.fail_after(10):
            while len(slow.worked_in) < 2:
                await trio.sleep(0.001)
        slow.gate.set()
        assert {answer.body for answer in await answers(kernel, 2)} == {b"done:"}


async def test_a_failure_is_told_to_the_first_and_the_others_try_for_themselves(kernel: Kernel, channel: Channel) -> None:
    slow = Slow(channel, failure=OSError(errno.ENOSPC, "full"))
    async with serving(channel):
        uniques = [kernel.send(Opcode.LOOKUP, ino=7) for _ in range(3)]
        await slow.until_asked(3)
        slow.gate.set()
        assert await answers(kernel, 3) == [Answer(unique, errno.ENOSPC, b"") for unique in uniques]
    assert slow.told == [slow.failure] * 3, "each who tries again starts the job anew"


async def test_a_failure_of_what_is_answered_when_it_is_done_is_told_to_all(kernel: Kernel, channel: Channel) -> None:
    slow = Slow(channel, failure=OSError(errno.EIO, "bad disk"), answer=b"synced")
    async with serving(channel):
        uniques = [kernel.send(Opcode.LOOKUP, ino=7) for _ in range(2)]
        await slow.until_asked(2)
        slow.gate.set()
        assert await answers(kernel, 2) == [Answer(unique, errno.EIO, b"") for unique in uniques]


async def test_a_job_may_bring_its_answer_with_it_and_counts_as_a_request(kernel: Kernel, channel: Channel) -> None:
    slow = Slow(channel, answer=b"synced")
    slow.gate.set()
    async with serving(channel):
        unique = kernel.send(Opcode.LOOKUP, ino=7)
        assert await answers(kernel, 1) == [Answer(unique, 0, b"synced")]
    assert slow.asked == 1, "it is not handled again"
    assert channel.counts[Opcode.LOOKUP] == 1


async def test_a_job_that_cannot_be_finished_is_a_failure_and_serving_goes_on(
    kernel: Kernel, channel: Channel, caplog: pytest.LogCaptureFixture
) -> None:
    def finish(failure: BaseException | None) -> None:
        assert failure is None
        raise ZeroDivisionError

    def handler(_: int, body: memoryview) -> bytes:
        raise Later(Job(lambda: None, finish))

    channel.handle(Opcode.LOOKUP, handler)
    channel.handle(Opcode.GETATTR, lambda *_: b"other")
    async with serving(channel):
        unique = kernel.send(Opcode.LOOKUP)
        assert await answers(kernel, 1) == [Answer(unique, errno.EIO, b"")]
        other = kernel.send(Opcode.GETATTR)
        assert await answers(kernel, 1) == [Answer(other, 0, b"other")]
    assert "lookup failed unexpectedly" in caplog.text


async def test_a_stream_of_requests_keeps_nobody_else_in_trio_waiting(kernel: Kernel, channel: Channel) -> None:
    channel.handle(Opcode.LOOKUP, lambda *_: b"x")
    enough = threading.Event()

    def ask() -> None:
        while not enough.is_set():
            kernel.send(Opcode.LOOKUP)
            kernel.answers(wait=1)

    turns = 0
    async with serving(channel), trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, ask)
        with trio.fail_after(30):
            while channel.counts[Opcode.LOOKUP] < 3000:
                await trio.sleep(0)
                turns += 1
        enough.set()
    assert turns >= 3


# ---- without trio ----

def test_it_serves_until_nobody_asked_for_a_moment_and_then_fetches_what_is_missing(kernel: Kernel, channel: Channel) -> None:
    channel.handle(Opcode.LOOKUP, lambda *_: b"x")
    kernel.send(Opcode.LOOKUP)
    served: list[int] = []

    def fetch() -> bool:
        if len(served) == 2:  # requests are served while it is under way
            kernel.send(Opcode.LOOKUP)
        served.append(channel.counts[Opcode.LOOKUP])
        return len(served) == 5

    started = time.monotonic()
    channel.serve_bare([], fetch)
    assert served == [1, 1, 1, 2, 2]
    assert time.monotonic() - started >= 0.05
    assert len(kernel.answers()) == 2


@pytest.mark.parametrize("wanted_by", ["another descriptor", "a request that waits"])
def test_what_is_missing_is_fetched_at_once_when_something_wants_it(kernel: Kernel, channel: Channel, wanted_by: str) -> None:
    ours, theirs = os.pipe()
    slow = Slow(channel)
    slow.gate.set()
    try:
        os.write(theirs, b"x")
        if wanted_by == "a request that waits":
            os.read(ours, 1)
            unique = kernel.send(Opcode.LOOKUP, ino=7)
        started = time.monotonic()
        channel.serve_bare([ours], lambda: True)
        assert time.monotonic() - started < 0.05, "before anybody was idle for long"
        if wanted_by == "a request that waits":
            assert (kernel.answers(), slow.asked) == ([], 1), "there are no threads yet"

            async def go_on() -> None:
                async with serving(channel):
                    assert await answers(kernel, 1) == [Answer(unique, 0, b"done:")]

            trio.run(go_on)
    finally:
        os.close(ours)
        os.close(theirs)


def test_what_fetching_raises_is_raised(channel: Channel) -> None:
    def fetch() -> bool:
        raise ImportError("trio is gone")

    with pytest.raises(ImportError, match="trio is gone"):
        channel.serve_bare([], fetch)


async def test_stop_ends_serving_and_what_is_under_way(kernel: Kernel, channel: Channel) -> None:
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(channel.serve)
            await trio.testing.wait_all_tasks_blocked()
            channel.stop()
    assert channel.closed
    kernel.send(Opcode.LOOKUP)
    with trio.fail_after(10):
        await channel.serve()
    assert kernel.answers() == []


# ---- what waiting costs ----

async def test_an_idle_mount_uses_no_cpu(kernel: Kernel, channel: Channel) -> None:
    channel.handle(Opcode.LOOKUP, lambda *_: b"x")
    async with serving(channel):
        for _ in range(50):
            kernel.send(Opcode.LOOKUP)
        await answers(kernel, 50)
        await trio.sleep(0.02)
        before = time.thread_time()
        await trio.sleep(0.5)
        assert time.thread_time() - before < 0.01


async def test_polls_in_vain_are_given_up(kernel: Kernel, channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that thinks for longer than a poll makes the server poll now and then only."""
    channel.handle(Opcode.LOOKUP, lambda *_: b"x")
    yields: list[int] = []
    original = os.sched_yield

    def counted() -> None:
        yields.append(1)
        original()

    monkeypatch.setattr(os, "sched_yield", counted)

    async def ask(count: int) -> int:
        yields.clear()
        for _ in range(count):
            kernel.send(Opcode.LOOKUP)
            await answers(kernel, 1)
            await trio.sleep(0.002)
        return len(yields) - count  # one after each answer

    async with serving(channel):
        while_patient = await ask(30)
        await ask(10)
        assert while_patient >= 30
        assert await ask(60) <= while_patient, "twice as many requests, and no more polls"
