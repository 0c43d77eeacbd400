"""The control socket of a mount: one line of JSON in, one out. What ``unionfs stats`` and ``refresh`` talk to."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from typing import TYPE_CHECKING, Any

import trio

from unionfs.fuse.refresh import Refresher
from unionfs.overlay.union import Union

if TYPE_CHECKING:
    from unionfs.fuse.session import Engine

log = logging.getLogger("unionfs.session")

_REQUEST_LIMIT = 64 * 1024


class Facts:
    """What ``unionfs stats`` shows."""

    def __init__(self, engine: Engine, union: Union) -> None:
        self._engine = engine
        self._union = union
        self._started = time.monotonic()

    def answer(self, request: Any) -> dict[str, Any]:
        """The reply to one control request."""
        if not isinstance(request, dict) or request.get("cmd") != "stats":
            return {"error": "unknown request"}
        tree = self._union.tree
        return {
            "requests": self._engine.requests(),
            "microseconds": self._engine.microseconds(),
            "nodes": len(tree.nodes),
            "open_fds": tree.open_descriptors,
            "rss": _resident_bytes(),
            "uptime": time.monotonic() - self._started,
        }


def _resident_bytes() -> int:
    with open("/proc/self/statm", "rb") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


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

    await trio.serve_listeners(shielded, [trio.SocketListener(trio.socket.from_stdlib_socket(control))])
