"""The control socket of a mount: one line of JSON in, one out. What ``unionfs stats``, ``top`` and ``refresh`` talk to."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import trio

from unionfs.fuse.refresh import Refresher
from unionfs.overlay.union import Union

if TYPE_CHECKING:
    from unionfs.fuse.session import Engine

log = logging.getLogger("unionfs.session")

_REQUEST_LIMIT = 64 * 1024
#: For so long at most one question has requests measured.
_LONGEST_SECONDS = 86_400.0


class Facts:
    """What ``unionfs stats`` and ``top`` show.

    Measuring what each request takes costs two looks at the clock for each, so it is done for as long as somebody wants to know: a question
    says for how many seconds it is to go on (``timed``).
    """

    def __init__(self, engine: Engine, union: Union) -> None:
        self._engine = engine
        self._union = union
        self._started = time.monotonic()
        self._measured_until = 0.0
        self._wanted = trio.Event()

    def answer(self, request: Any) -> dict[str, Any]:
        """The reply to one control request."""
        if not isinstance(request, dict) or request.get("cmd") != "stats":
            return {"error": "unknown request"}
        self._measure(request.get("timed", 0))
        tree = self._union.tree
        return {
            "requests": self._engine.requests(),
            "microseconds": self._engine.microseconds(),
            "nodes": len(tree.nodes),
            "open_fds": tree.open_descriptors,
            **_memory(),
            "pid": os.getpid(),
            "cpu": time.process_time(),
            "uptime": time.monotonic() - self._started,
        }

    def _measure(self, seconds: object) -> None:
        """Have requests measured for so long from now, if that is a number."""
        if isinstance(seconds, int | float) and 0 < seconds <= _LONGEST_SECONDS:
            self._measured_until = max(self._measured_until, time.monotonic() + seconds)
            self._engine.measure(True)
            self._wanted.set()

    async def stop_measuring(self) -> None:
        """For ever: have nothing measured any more once nobody wants it."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            while (left := self._measured_until - time.monotonic()) > 0:
                await trio.sleep(left)
            self._engine.measure(False)


def _memory() -> dict[str, int]:
    """Bytes in memory: ``rss`` all, ``pss`` with what is shared divided among those who share it, where the kernel tells (0.2 ms)."""
    with open("/proc/self/statm", "rb") as stream:
        found = {"rss": int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")}
    with suppress(OSError), open("/proc/self/smaps_rollup", "rb") as stream:
        found["pss"] = next(int(line.split()[1]) * 1024 for line in stream if line.startswith(b"Pss:"))
    return found


async def _answer(request: Any, facts: Facts, refresher: Refresher) -> dict[str, Any]:
    """The reply to one control request."""
    if not isinstance(request, dict) or request.get("cmd") != "refresh":
        return facts.answer(request)
    path = request.get("path", "")
    if not isinstance(path, str):
        return {"error": "the path is no text"}
    try:
        await refresher.refresh(path.encode("utf-8", "surrogateescape"))
    except Exception as exc:  # a defect of ours, and nothing to end the mount for
        log.error("refresh failed unexpectedly", exc_info=exc)
        return {"error": f"the refresh failed: {exc}"}
    return {"refreshed": path}


async def answer_control(control: socket.socket, facts: Facts, refresher: Refresher) -> None:
    """For ever: answer each line that comes over *control*, a listening socket, by a line."""

    async def talk(stream: trio.SocketStream) -> None:
        buffer = b""
        async with stream:
            async for chunk in stream:
                buffer += chunk
                *lines, buffer = buffer.split(b"\n")
                for line in lines:
                    try:
                        request = json.loads(line)
                    except ValueError:
                        reply = {"error": "not JSON"}
                    else:
                        reply = await _answer(request, facts, refresher)
                    await stream.send_all(json.dumps(reply).encode() + b"\n")
                if len(buffer) > _REQUEST_LIMIT:
                    return

    async def shielded(stream: trio.SocketStream) -> None:
        try:
            await talk(stream)
        except (OSError, trio.BrokenResourceError):  # the asker went away
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(facts.stop_measuring)
        await trio.serve_listeners(shielded, [trio.SocketListener(trio.socket.from_stdlib_socket(control))])
