"""The server's end of /dev/fuse: read a request, have it handled, write the answer; wait for the next one as cheaply as can be.

Everything runs in one thread. ``serve_bare`` serves without trio, which takes longer to import than all else that is needed to answer;
``serve`` goes on within trio. A handler never waits: one that would have to raises ``Later``, and others are served meanwhile.

How it waits. The kernel's wake-up of a sleeping server costs more than all that is done for a request, so after an answer the CPU is
yielded - on one CPU the client runs then and asks again - and the next request read without a poll before. What is not there yet is polled
for about 100 us, which is longer than a client thinks; then the server sleeps. Yielding matters: a pure spin keeps the client from the CPU.
Polls in vain are given up after some, so that an idle mount costs nothing, and with one CPU there is nothing to spin for.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from unionfs.fuse import protocol
from unionfs.fuse.protocol import Opcode

if TYPE_CHECKING:
    import trio

log = logging.getLogger("unionfs.channel")

#: The body of an answer; an errno; None for what is not answered.
Answer: TypeAlias = bytes | memoryview | int | None
#: (number of the object, body of the request) to the answer. The body is only good until the handler returns.
Handler: TypeAlias = Callable[[int, memoryview], Answer]

#: The largest WRITE that is accepted, and READ that is answered.
MAX_WRITE = 1 << 20
_PAGE = 4096

#: How long to poll after a request before going to sleep: longer than the time a client needs between two requests.
SPIN_SECONDS = 100e-6
#: How long other trio tasks may be kept waiting by a busy stream of requests.
FAIRNESS_SECONDS = 5e-3
#: Look at the clock for that once in so many requests.
_CLOCK_EVERY = 32
#: After so many polls in vain in a row, poll only now and then.
_PATIENCE = 32
#: Without trio: how long nobody must have asked anything for it to be fetched.
_IDLE_SECONDS = 0.05
#: How often to look whether it is there.
_FETCHING_SECONDS = 0.005


class Job:
    """What a thread does while others are served.

    ``work`` runs in the thread, ``finish`` afterwards where requests are served, with what work raised. ``answer``: of those that wait for
    it; None: their requests are handled again.
    """

    def __init__(self, work: Callable[[], object], finish: Callable[[BaseException | None], None], answer: bytes | None = None) -> None:
        self.work = work
        self.finish = finish
        self.answer = answer
        self.waiting: list[bytes] = []


class Later(Exception):
    """Raised by a handler that has to wait for *job*; the first who does starts it."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job


class Channel:
    """Owns the descriptor *fd*, which must not block."""

    def __init__(self, fd: int, *, wanted: int, stack_depth: int = 0, debug: bool = False) -> None:
        self.fd = fd
        #: Flags of INIT to ask for, as far as the kernel offers them.
        self.wanted = wanted
        #: What INIT has to say of PASSTHROUGH: so many filesystems may stand on each other, ours included.
        self.stack_depth = stack_depth
        #: What was agreed upon.
        self.flags = 0
        #: Whether the mount is gone.
        self.closed = False
        #: Told once the kernel has been answered its first request.
        self.on_ready: Callable[[], None] = lambda: None
        #: How often each opcode was asked, and the nanoseconds it took, while ``timed``.
        self.counts = [0] * protocol.OPCODES
        self.nanoseconds = [0] * protocol.OPCODES
        self.timed = False
        #: Of the request that is handled.
        self.uid = self.gid = self.pid = 0
        self._handlers: list[Handler | None] = [None] * protocol.OPCODES
        self._buffer = bytearray(MAX_WRITE + _PAGE)
        self._view = memoryview(self._buffer)
        self._buffers = [self._buffer]
        self._debug = debug
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        self._poll = poller.poll
        self._in_vain = 0
        self._turn_is_over = False
        self._jobs: list[Job] = []
        self._nursery: trio.Nursery | None = None
        self.handle(Opcode.INIT, self._init)

    def handle(self, opcode: Opcode, handler: Handler) -> None:
        """Have requests of this kind handled by *handler*; what nobody handles is answered ENOSYS."""
        self._handlers[opcode] = handler

    def translate(self, opcodes: Iterable[Opcode], numbers: Mapping[int, int]) -> None:
        """From now on a number in *numbers* means another one to the handlers of *opcodes*."""
        for opcode in opcodes:
            handler = self._handlers[opcode]
            if handler is not None:
                self._handlers[opcode] = partial(_translated, numbers, handler)

    # -- one request -----------------------------------------------------------------------------------------------------

    def serve_one(self) -> bool:
        """Handle the request that is there; False when there is none."""
        try:
            size = os.readv(self.fd, self._buffers)
        except BlockingIOError:
            return False
        except OSError as exc:
            if exc.errno == errno.ENODEV:
                self.closed = True
            elif exc.errno != errno.ENOENT:  # it was withdrawn: its caller was killed
                raise
            return not self.closed
        self._handle(self._view[:size])
        return True

    def _handle(self, message: memoryview) -> None:
        _, opcode, unique, ino, self.uid, self.gid, self.pid, _, _ = protocol.IN_HEADER.unpack_from(message)
        started = time.perf_counter_ns() if self.timed else 0
        handler = self._handlers[opcode] if opcode < protocol.OPCODES else None
        answer: Answer = errno.ENOSYS
        try:
            if handler is not None:
                answer = handler(ino, message[protocol.IN_HEADER_SIZE :])
        except Later as later:
            self._postpone(message, later.job)
            return
        except Exception as exc:
            answer = self._errno(opcode, exc)
        if answer is not None:
            self._reply(unique, answer)
            if opcode == Opcode.INIT:
                self._agreed(answer)
        if opcode < protocol.OPCODES:
            self.counts[opcode] += 1
            if started:
                self.nanoseconds[opcode] += time.perf_counter_ns() - started
        if self._debug:
            log.debug("%s of %d by %d: %s", _name(opcode), ino, self.pid, answer if isinstance(answer, int | None) else "ok")

    def _errno(self, opcode: int, exc: BaseException) -> int:
        """The answer to a failed request. What is not an OSError is a defect of ours: logged, answered EIO, and serving goes on."""
        if isinstance(exc, OSError) and exc.errno:
            return exc.errno
        log.error("%s failed unexpectedly", _name(opcode), exc_info=exc)
        return errno.EIO

    def _reply(self, unique: int, answer: bytes | memoryview | int) -> None:
        try:
            if isinstance(answer, bytes):
                os.write(self.fd, protocol.OUT_HEADER.pack(protocol.OUT_HEADER_SIZE + len(answer), 0, unique) + answer)
            elif isinstance(answer, int):
                os.write(self.fd, protocol.OUT_HEADER.pack(protocol.OUT_HEADER_SIZE, -answer, unique))
            else:
                os.writev(self.fd, (protocol.OUT_HEADER.pack(protocol.OUT_HEADER_SIZE + len(answer), 0, unique), answer))
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.ENODEV, errno.ECONNABORTED):  # nobody waits for it any more
                log.error("an answer was refused: %s", exc)

    def _init(self, _: int, body: memoryview) -> Answer:
        answer, self.flags = protocol.init_answer(bytes(body), self.wanted, MAX_WRITE, self.stack_depth)
        return answer

    def _agreed(self, answer: Answer) -> None:
        if isinstance(answer, int):  # with this kernel there is nothing to agree upon
            self.closed = True
        else:
            self.on_ready()

    # -- what waits ------------------------------------------------------------------------------------------------------

    def _postpone(self, message: memoryview, job: Job) -> None:
        job.waiting.append(bytes(message))
        if len(job.waiting) > 1:
            return
        if self._nursery is None:
            self._jobs.append(job)
        else:
            self._nursery.start_soon(self._work_off, job)
            self._turn_is_over = True

    async def _work_off(self, job: Job) -> None:
        import trio

        failure: BaseException | None = None
        try:
            await trio.to_thread.run_sync(self._in_thread, job.work)
        except Exception as exc:
            failure = exc
        try:
            job.finish(failure)
        except Exception as exc:
            failure = exc
        for number, message in enumerate(job.waiting):
            _, opcode, unique, *_ = protocol.IN_HEADER.unpack_from(message)
            answer: bytes | int | None = job.answer
            if failure is not None and (number == 0 or job.answer is not None):
                answer = self._errno(opcode, failure)
            if answer is None:
                self._handle(memoryview(message))
            else:
                self._reply(unique, answer)
                self.counts[opcode] += 1

    def _in_thread(self, work: Callable[[], object]) -> None:
        try:
            work()
        finally:
            self._turn_is_over = True

    # -- waiting ---------------------------------------------------------------------------------------------------------

    def _serve_while_busy(self) -> bool:
        """Serve until nothing comes any more; False when somebody else is to have a turn before."""
        started = time.monotonic()
        served = 0
        while not self._turn_is_over:
            if not self.serve_one():
                if self.closed or not self._spin():
                    return True
                continue
            served += 1
            if not served % _CLOCK_EVERY and time.monotonic() - started > FAIRNESS_SECONDS:
                return False
            os.sched_yield()
        return False

    def _spin(self) -> bool:
        """Poll for a moment; whether a request came."""
        self._in_vain += 1
        if self._in_vain > _PATIENCE and self._in_vain % _PATIENCE:
            return False
        poll = self._poll
        deadline = time.monotonic() + SPIN_SECONDS
        alone = len(os.sched_getaffinity(0)) == 1
        while not self._turn_is_over:
            os.sched_yield()
            if poll(0):
                self._in_vain = 0
                return True
            if alone or time.monotonic() > deadline:
                break
        return False

    def serve_bare(self, others: Sequence[int], fetch: Callable[[], bool]) -> None:
        """Serve until the mount is gone or there is trio to go on with.

        ``fetch`` is called, again and again, once nobody asked anything for a while, something can be read from one of *others*, or a
        handler has to wait; it says whether trio is there.
        """
        poller = select.poll()
        for fd in (self.fd, *others):
            poller.register(fd, select.POLLIN)
        fetching = False
        while True:
            self._serve_while_busy()
            if self.closed:
                return
            events = poller.poll(_FETCHING_SECONDS * 1000 if fetching else 0 if self._jobs else _IDLE_SECONDS * 1000)
            if fetching or self._jobs or not events or any(fd != self.fd for fd, _ in events):
                fetching = True
                if fetch():
                    return

    async def serve(self) -> None:
        """Serve until the mount is gone or ``stop`` is called."""
        import trio

        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for job in self._jobs:
                nursery.start_soon(self._work_off, job)
            self._jobs.clear()
            while not self.closed:
                idle = self._serve_while_busy()
                if self._turn_is_over or not idle:
                    self._turn_is_over = False
                    await trio.lowlevel.checkpoint()
                elif not self.closed:
                    await trio.lowlevel.wait_readable(self.fd)

    def stop(self) -> None:
        """Let ``serve`` return."""
        self.closed = True
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    # -- notifications ---------------------------------------------------------------------------------------------------

    def forget_attributes(self, ino: int) -> None:
        """Have the kernel ask for the attributes of *ino* when they are next wanted; a handler may do that. OSError: it knows no *ino*."""
        self._notify(protocol.NOTIFY_INVAL_INODE, protocol.NOTIFY_INODE.pack(ino, -1, 0))

    def forget_object(self, ino: int) -> None:
        """Have the kernel forget attributes and data of *ino*. It may wait for answers: not for the thread that gives them. OSError."""
        self._notify(protocol.NOTIFY_INVAL_INODE, protocol.NOTIFY_INODE.pack(ino, 0, 0))

    def forget_name(self, parent: int, name: bytes) -> None:
        """Have the kernel forget what *name* in *parent* is, or that there is no such name; as ``forget_object``."""
        self._notify(protocol.NOTIFY_INVAL_ENTRY, protocol.NOTIFY_ENTRY.pack(parent, len(name), 0) + name + b"\0")

    def _notify(self, code: int, body: bytes) -> None:
        os.write(self.fd, protocol.OUT_HEADER.pack(protocol.OUT_HEADER_SIZE + len(body), code, 0) + body)

    def close(self) -> None:
        """Give the descriptor back; when it was the last, the mount answers no more."""
        os.close(self.fd)


def _translated(numbers: Mapping[int, int], handler: Handler, number: int, body: memoryview) -> Answer:
    return handler(numbers.get(number, number), body)


def _name(opcode: int) -> str:
    try:
        return Opcode(opcode).name.lower()
    except ValueError:
        return f"opcode {opcode}"
