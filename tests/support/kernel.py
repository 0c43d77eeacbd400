"""The kernel's side of a FUSE connection, played on one end of a packet socket: messages out, answers in.

What differs from /dev/fuse: a closed end is read as an empty message, where the device says ENODEV. What is the same, and what the Channel
relies on: one read takes one whole message, and with none there it fails with EAGAIN.
"""

from __future__ import annotations

import itertools
import os
import socket
from dataclasses import dataclass

from unionfs.fuse import protocol

_ROOM = 2 << 20
_SO_SNDBUFFORCE = 32  # socket(7); the socket module does not know it


@dataclass(frozen=True)
class Answer:
    """``error``: 0 or an errno. ``unique``: of the request; 0: a notification, whose code is ``error``."""

    unique: int
    error: int
    body: bytes


class Kernel:
    """``server``: the descriptor that a Channel owns and closes."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        for end in (self._ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE if os.geteuid() == 0 else socket.SO_SNDBUF, _ROOM)
        self.server = theirs.detach()
        self._uniques = itertools.count(2, 2)

    def send(self, opcode: int, body: bytes = b"", *, ino: int = 1, uid: int = 0, gid: int = 0, pid: int = 0) -> int:
        """One request; its unique number."""
        unique = next(self._uniques)
        size = protocol.IN_HEADER_SIZE + len(body)
        self._ours.send(protocol.IN_HEADER.pack(size, opcode, unique, ino, uid, gid, pid, 0, 0) + body)
        return unique

    def answers(self, *, wait: float = 0) -> list[Answer]:
        """All that has been answered; *wait*: seconds to wait for the first."""
        found: list[Answer] = []
        self._ours.settimeout(wait)
        while True:
            try:
                message = self._ours.recv(_ROOM)
            except (BlockingIOError, TimeoutError):
                return found
            self._ours.settimeout(0)
            size, error, unique = protocol.OUT_HEADER.unpack_from(message)
            assert size == len(message), "the kernel refuses an answer of another size than it says"
            found.append(Answer(unique, error if unique == 0 else -error, message[protocol.OUT_HEADER_SIZE :]))

    def close(self) -> None:
        """Hang up; the server's descriptor is not ours."""
        self._ours.close()
