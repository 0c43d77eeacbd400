"""What the kernel remembers, kept in step with layers that are changed under the mount.

The kernel is told in a thread: it waits for locks that are held while requests are answered (fuse_reverse_inval_entry). What the union
remembers is brought up to date before, in the serving thread, so whoever asks again is told the new state.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from unionfs.overlay.refresh import Outdated, refresh, refresh_data, refresh_directory
from unionfs.overlay.union import Union

if TYPE_CHECKING:
    from unionfs.fuse.session import Engine

log = logging.getLogger("unionfs.refresh")

#: What the kernel may believe of directories that cannot be watched.
POLLED_TIMEOUT = 1.0
#: Events come in crowds: wait for the rest.
_GATHERING_SECONDS = 0.02
#: How long requests may wait for us at a stretch.
_TURN_SECONDS = 5e-3
#: So much at a time is told to the kernel.
_MANY = 2000


def tell_kernel(engine: Engine, outdated: Outdated) -> None:
    """Have the kernel forget; waits while requests concerned are under way. Not for the thread that answers them."""
    for parent, name in outdated.names:
        engine.forget_name(parent, name)
    for number in outdated.numbers:
        engine.forget_object(number)


class Refresher:
    """Refreshes one mount: when asked to, when a verb meets something outdated, and with ``lowers=live`` by itself."""

    def __init__(self, engine: Engine, union: Union, met: Iterable[Outdated] = ()) -> None:
        """*met*: what verbs have found outdated until now."""
        self._engine = engine
        self._union = union
        self._busy = trio.Lock()
        self._met, self._to_tell = trio.open_memory_channel[Outdated](math.inf)
        union.on_outdated = self._meet
        for outdated in met:
            self._met.send_nowait(outdated)
        if union.tree.watcher is not None:
            union.tree.watcher.on_limit = self._poll

    def _meet(self, outdated: Outdated) -> None:
        self._engine.forget_known()
        self._met.send_nowait(outdated)

    def _poll(self, why: str) -> None:
        log.warning("lowers=live: %s; what cannot be watched is looked at again after %g s", why, POLLED_TIMEOUT)
        self._engine.limit_trust(POLLED_TIMEOUT)

    @asynccontextmanager
    async def nothing_under_way(self) -> AsyncIterator[None]:
        """Nobody is telling the kernel anything: only then may serving end, as the kernel may wait for an answer meanwhile."""
        async with self._busy:
            yield

    async def refresh(self, path: bytes = b"") -> None:
        """Drop all that is remembered of *path* and below; from the return on the new state is seen."""
        async with self._busy:
            await self._carry_out(refresh(self._union.tree, path))

    async def _carry_out(self, steps: Iterator[Outdated]) -> None:
        gathered = Outdated()
        turn = time.monotonic()
        for outdated in steps:
            self._engine.forget_known()
            gathered.add(outdated)
            if len(gathered) > _MANY:
                await self._tell(gathered)
                gathered = Outdated()
            elif time.monotonic() - turn > _TURN_SECONDS:
                await trio.lowlevel.checkpoint()
                turn = time.monotonic()
        await self._tell(gathered)

    async def _tell(self, outdated: Outdated) -> None:
        if self._engine.keeps_sizes:  # of what it has forgotten it asks for the size, too
            for number in outdated.numbers:
                outdated.names.update(self._union.names(number))
        if len(outdated):
            await trio.to_thread.run_sync(tell_kernel, self._engine, outdated)

    async def tell_what_was_met(self) -> None:
        """For ever: tell the kernel what verbs found outdated."""
        async for outdated in self._to_tell:
            async with self._busy:
                await self._tell(outdated)

    async def watch(self) -> None:
        """For ever: refresh what the watches say has changed."""
        watcher = self._union.tree.watcher
        if watcher is None or watcher.fd < 0:
            return
        while True:
            await trio.lowlevel.wait_readable(watcher.fd)
            await trio.sleep(_GATHERING_SECONDS)
            async with self._busy:
                try:
                    await self._catch_up()
                except Exception as exc:  # a defect of ours, and nothing to end the mount for
                    log.error("lowers=live: a change could not be followed: %s", exc, exc_info=exc)

    async def _catch_up(self) -> None:
        union = self._union
        assert union.tree.watcher is not None
        touched = union.tree.watcher.collect()
        if touched is None:
            await self._carry_out(refresh(union.tree))
            return
        written = Outdated()
        for node, what in touched.items():
            if what.listing:
                await self._carry_out(refresh_directory(union.tree, node, what.names))
            else:
                written.add(refresh_data(union.tree, node, what.names))
        self._engine.forget_known()
        await self._tell(written)
