"""How pyfuse3 waits for requests: poll and yield first, sleep in trio when idle, one reader at a time.

Waiting through trio costs 22 us a request, a poll with sched_yield 6 (both on one CPU); a server that sleeps at once pays for a wake-up
each time, 60 us on another CPU. pyfuse3 has a seam for other event loops: it asks a module named ``trio`` for all it needs. ``Reader`` is
put there. One worker reads and answers requests without ever returning to trio, unless a handler has to wait: then ``Reader.in_thread`` (or
``hand_over``) lets a second worker read on, and the first one ends when it comes back and finds that.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import time
from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import Any, TypeVar

import trio

T = TypeVar("T")
log = logging.getLogger("unionfs.reader")

#: How long to poll after a request before going to sleep: longer than the time a client needs between two requests.
SPIN_SECONDS = 100e-6
#: How long other trio tasks may be kept waiting by a busy stream of requests.
FAIRNESS_SECONDS = 5e-3
#: Look at the clock for that once in so many requests.
_CLOCK_EVERY = 32
#: After so many polls in vain in a row, poll only now and then.
_PATIENCE = 32


class _Done:
    """An awaitable that is ready."""

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


_DONE = _Done()


class _NoLock:
    """Stands in for pyfuse3's read lock: there is only one reader anyway."""

    def __aenter__(self) -> _Done:
        return _DONE

    def __aexit__(self, *_: object) -> _Done:
        return _DONE


class _Task:
    name = "reader"


class _Nursery:
    """The nursery pyfuse3 starts its first worker in; remembers how to start more."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._manager = trio.open_nursery()

    async def __aenter__(self) -> _Nursery:
        self._reader.nursery = await self._manager.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        return await self._manager.__aexit__(kind, exc, tb)

    def start_soon(self, worker: Callable[..., Awaitable[None]], *args: Any, name: str | None = None) -> None:
        self._reader.start_worker(worker, *args)


class Reader:
    """What pyfuse3 sees as ``trio`` and ``trio.lowlevel``."""

    Lock = _NoLock
    ClosedResourceError = trio.ClosedResourceError

    def __init__(self) -> None:
        self.lowlevel = self
        self.nursery: trio.Nursery | None = None
        self._worker: tuple[Callable[..., Awaitable[None]], tuple[Any, ...]] | None = None
        self._reading = False
        self._poll: Callable[[int], list[tuple[int, int]]] | None = None
        self._trio_has_work = False
        self._last_turn = 0.0
        self._in_vain = 0
        self._served = 0

    # -- what pyfuse3 calls ----------------------------------------------------------------------------------------------

    def open_nursery(self) -> _Nursery:
        """trio.open_nursery."""
        return _Nursery(self)

    def current_task(self) -> type[_Task]:
        """trio.lowlevel.current_task: pyfuse3 wants a name for its log."""
        return _Task

    def current_trio_token(self) -> trio.lowlevel.TrioToken:
        """trio.lowlevel.current_trio_token."""
        return trio.lowlevel.current_trio_token()

    def notify_closing(self, fd: int) -> None:
        """trio.lowlevel.notify_closing."""
        trio.lowlevel.notify_closing(fd)

    async def wait_readable(self, fd: int) -> None:
        """Return when a request can be read; ClosedResourceError tells a worker to end, because another one reads."""
        if self._reading:
            raise trio.ClosedResourceError
        self._reading = True
        try:
            self._served += 1
            if self._trio_has_work or not self._served % _CLOCK_EVERY:
                await self._let_others_run()
            if not self._spin(fd):
                await trio.lowlevel.wait_readable(fd)
                self._last_turn = time.monotonic()
        finally:
            self._reading = False

    # -- waiting and working ---------------------------------------------------------------------------------------------

    async def _let_others_run(self) -> None:
        now = time.monotonic()
        if self._trio_has_work or now - self._last_turn > FAIRNESS_SECONDS:
            self._trio_has_work = False
            await trio.lowlevel.checkpoint()
            self._last_turn = time.monotonic()

    def _spin(self, fd: int) -> bool:
        """Yield and poll for a moment; whether a request came. The client cannot have asked again before it ran, so yield first."""
        poll = self._poll
        if poll is None:
            poller = select.poll()
            poller.register(fd, select.POLLIN)
            poll = self._poll = poller.poll
        os.sched_yield()
        if poll(0):
            self._in_vain = 0
            return True
        self._in_vain += 1
        if self._in_vain > _PATIENCE and self._in_vain % _PATIENCE:
            return False
        deadline = time.monotonic() + SPIN_SECONDS
        while not self._trio_has_work:
            os.sched_yield()
            if poll(0):
                self._in_vain = 0
                return True
            if time.monotonic() > deadline:
                break
        return False

    def start_worker(self, worker: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Start pyfuse3's first worker and remember how."""
        self._worker = worker, args
        self._start()

    def _start(self) -> None:
        assert self.nursery is not None
        self.nursery.start_soon(self._work, name="reader")

    async def _work(self) -> None:
        assert self._worker is not None
        worker, args = self._worker
        while True:
            try:
                await worker(*args)
            except OSError as exc:
                # the request that made the descriptor readable was withdrawn (its caller was killed) before it was read
                if exc.errno == errno.EAGAIN:
                    continue
                raise
            return

    def hand_over(self) -> None:
        """Call before a handler waits: lets another worker read meanwhile."""
        self._start()

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run *work* in a thread while other requests are served."""

        def body() -> T:
            try:
                return work()
            finally:
                self._trio_has_work = True

        self.hand_over()
        return await trio.to_thread.run_sync(body)
