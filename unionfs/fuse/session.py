"""A mount's life: serve it until it is unmounted or we are told to stop.

Order matters to callers: open the layers (overlay.stack), make the mount (fuse.mounting), ``serve``, and attach the mount when that says it
is ready. From then on the server must not touch a path that may lie in the mount.

The channel serves before trio is there: importing it, and what stands on it, takes longer than all else that is needed to answer. It is
imported in a thread once nobody asks anything for a moment, or something wants it - unless the mount will cover the files it is
imported from, or pyfuse3 is to serve: then before.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from unionfs.fuse.mounting import Settings

if TYPE_CHECKING:
    import trio

    from unionfs.fuse.refresh import Refresher
    from unionfs.overlay.refresh import Outdated
    from unionfs.overlay.union import Union

log = logging.getLogger("unionfs.session")

_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_FORGETTING_SECONDS = 1.0


class Engine(Protocol):
    """What serves: fuse/direct.py or fuse/plain.py.

    ``keeps_sizes``: the kernel takes no size and no time of a file it knows from us (FUSE_WRITEBACK_CACHE).
    """

    keeps_sizes: bool

    def requests(self) -> dict[str, int]:
        """How often each verb was asked."""

    def microseconds(self) -> dict[str, int]:
        """What each verb took, of what was measured."""

    def measure(self, on: bool) -> None:
        """From now on measure what requests take, or no more."""

    def forget_known(self) -> None:
        """The layers have changed: ask anew."""

    def limit_trust(self, seconds: float) -> None:
        """From now on the kernel may believe an answer for *seconds* at most."""

    def forget_name(self, parent: int, name: bytes) -> None:
        """Have the kernel forget what *name* in *parent* is; not for the thread that serves."""

    def forget_object(self, ino: int) -> None:
        """Have the kernel forget attributes and data of *ino*; not for the thread that serves."""

    async def serve(self) -> None:
        """Serve until the mount is gone or ``stop`` is called."""

    def stop(self) -> None:
        """Let ``serve`` return."""

    def close(self) -> None:
        """Give the descriptor back."""


class _Fetch:
    """Imports what the rest of serving needs, in a thread: its files may be slow, and requests are to be answered meanwhile."""

    def __init__(self, done: Callable[[], None]) -> None:
        self._done = done
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def __call__(self) -> bool:
        """Start, or go on; whether all is there. Raises what importing raised."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="import", daemon=True)
            self._thread.start()
        if self._thread.is_alive():
            return False
        if self._failure is not None:
            raise self._failure
        return True

    def _run(self) -> None:
        try:
            prepare()
            self._done()
        except BaseException as exc:
            self._failure = exc


def prepare() -> None:
    """Import all that serving with trio needs."""
    import encodings.idna
    import traceback

    import trio

    from unionfs.fuse import control, refresh

    _ = (encodings.idna, traceback, trio, control, refresh)


class _Interrupted:
    """Signals that arrive before trio is there to take them."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self._theirs = theirs
        self._before = [(number, signal.signal(number, self._take)) for number in _STOPPING]
        signal.set_wakeup_fd(theirs.fileno())

    def _take(self, number: int, _: object) -> None:
        self.received.append(number)

    def fileno(self) -> int:
        """Readable once there is a signal."""
        return self._ours.fileno()

    def hand_over(self) -> None:
        """Leave the wake-up to trio; signals are still noted."""
        signal.set_wakeup_fd(-1)

    def pass_on(self) -> None:
        """Send them again, to whoever takes signals now."""
        for number in self.received:
            os.kill(os.getpid(), number)

    def close(self) -> None:
        """As before."""
        self.hand_over()
        for number, handler in self._before:
            signal.signal(number, handler)
        self._ours.close()
        self._theirs.close()


def serve(
    union: Union,
    fuse_fd: int,
    settings: Settings,
    *,
    on_ready: Callable[[], None] = lambda: None,
    control: socket.socket | None = None,
    detach: Callable[[], None] | None = None,
    on_prepared: Callable[[], None] = lambda: None,
    prepare_first: bool = False,
    warn: Callable[[str], None] = log.warning,
) -> None:
    """Serve *union* on *fuse_fd* until it is unmounted, or until SIGTERM, SIGINT or SIGHUP (then ``detach`` should unmount it).

    Owns the descriptor and the union and closes both. *control* is a listening Unix socket that answers one JSON line per line.
    *on_prepared*: told, perhaps in a thread, when nothing more will be imported. *prepare_first*: what is to be imported cannot be
    reached any more once the mount is attached. *warn*: told what of *settings* cannot be had, before *on_ready*.
    """
    os.umask(0)
    outdated: list[Outdated] = []
    engine: Engine | None = None
    interrupted = _Interrupted()

    def met(what: Outdated) -> None:
        outdated.append(what)
        assert engine is not None
        engine.forget_known()

    union.on_outdated = met
    if settings.io == "writeback" and union.tree.watcher is not None:
        warn("io=writeback is not for lowers=live: files are cached")
        settings = settings._replace(io="cached")
    try:
        if settings.engine == "pyfuse3":
            from unionfs.fuse.plain import Plain

            prepare()
            on_prepared()
            engine = Plain(union, fuse_fd, settings, on_ready, warn)
            _quieten_collector()
        else:
            from unionfs.fuse.direct import Direct

            at_once = prepare_first or union.tree.watcher is not None
            if at_once:
                prepare()
                on_prepared()
            engine = direct = Direct(union, fuse_fd, settings, on_ready, warn)
            _quieten_collector()
            if not at_once:
                direct.channel.serve_bare([interrupted.fileno(), *([] if control is None else [control.fileno()])], _Fetch(on_prepared))
            if direct.channel.closed:
                return
        import trio

        interrupted.hand_over()
        trio.run(_serve, engine, union, control, detach, outdated, interrupted)
    finally:
        interrupted.close()
        if engine is not None:
            engine.close()
        union.close()


def _quieten_collector() -> None:
    """Every node is an object: the default thresholds would walk all of them over and over."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


async def _serve(
    engine: Engine,
    union: Union,
    control: socket.socket | None,
    detach: Callable[[], None] | None,
    outdated: list[Outdated],
    interrupted: _Interrupted,
) -> None:
    import trio

    from unionfs.fuse.control import Facts, answer_control
    from unionfs.fuse.refresh import Refresher

    refresher = Refresher(engine, union, outdated)
    async with trio.open_nursery() as nursery:
        await nursery.start(_stop_on_signal, detach, refresher, engine)
        interrupted.pass_on()
        nursery.start_soon(_give_back_memory, union)
        nursery.start_soon(refresher.tell_what_was_met)
        nursery.start_soon(refresher.watch)
        if control is not None:
            nursery.start_soon(answer_control, control, Facts(engine, union), refresher)
        await engine.serve()
        nursery.cancel_scope.cancel()


async def _give_back_memory(union: Union) -> None:
    """After the kernel forgot many nodes, and some time to forget more, return their memory to the system."""
    import trio

    while True:
        freed = trio.Event()
        union.on_forgotten = freed.set
        await freed.wait()
        await trio.sleep(_FORGETTING_SECONDS)
        union.give_back_memory()


async def _stop_on_signal(
    detach: Callable[[], None] | None, refresher: Refresher, engine: Engine, task_status: trio.TaskStatus[None]
) -> None:
    import trio

    with trio.open_signal_receiver(*_STOPPING) as received:
        task_status.started()
        async for number in received:
            log.info("stopping on signal %d", number)
            if detach is not None:
                with contextlib.suppress(OSError):
                    # in a thread: the kernel may ask us something on the way
                    await trio.to_thread.run_sync(detach)
            async with refresher.nothing_under_way():
                engine.stop()
            return
