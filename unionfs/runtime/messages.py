"""What the three processes of a run say to each other: short messages over a socket pair, with descriptors attached.

The runner has one pair with the server and one with the container. End-of-file says that the other side is gone.

    runner -> server     container (+ a pidfd of its pid 1; none: there will be no container)
    server -> runner     note (a line for the user), mounted (+ the detached mount), unmounted, failed
    runner -> container  union (+ the detached mount), signal (number; text "group" or "")
    container -> runner  running: signals are for the command from now on (+ the terminal's master side, if any), failed
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

_LIMIT = 8192


@dataclass(frozen=True)
class Message:
    kind: str
    number: int = 0
    text: str = ""
    fds: tuple[int, ...] = ()


class Channel:
    """One end of a socket pair; messages keep their borders (SOCK_SEQPACKET)."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def fileno(self) -> int:
        return self._end.fileno()

    def close(self) -> None:
        self._end.close()

    def send(self, kind: str, number: int = 0, text: str = "", fds: Sequence[int] = ()) -> bool:
        """Send one message; False when the other side is gone."""
        data = f"{kind} {number} {text}".encode("utf-8", "surrogateescape")[:_LIMIT]
        try:
            socket.send_fds(self._end, [data], fds)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def receive(self) -> Message | None:
        """Wait for one message; None when the other side is gone."""
        try:
            data, fds, _, _ = socket.recv_fds(self._end, _LIMIT, 1)
        except ConnectionResetError:  # it went without having read all of ours; what it said before that is still to come
            data, fds, _, _ = socket.recv_fds(self._end, _LIMIT, 1)
        if not data:
            return None
        for fd in fds:  # recv_fds gives them without close-on-exec
            os.set_inheritable(fd, False)
        kind, number, text = data.decode("utf-8", "surrogateescape").split(" ", 2)
        return Message(kind, int(number), text, tuple(fds))


def pair() -> tuple[Channel, Channel]:
    """Two connected ends."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    return Channel(ours), Channel(theirs)


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors, whatever their state."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
