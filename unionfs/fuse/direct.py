"""The engine channel: the verbs of verbs.py on the kernel's own messages."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from unionfs.fuse import protocol
from unionfs.fuse.channel import Channel
from unionfs.fuse.mounting import Settings
from unionfs.fuse.protocol import Opcode
from unionfs.fuse.verbs import FLAGS, Verbs
from unionfs.overlay.union import Union


class Direct:
    """Serves *union* on the descriptor *fd*, which it owns."""

    def __init__(self, union: Union, fd: int, settings: Settings, on_ready: Callable[[], None]) -> None:
        wanted = FLAGS
        if settings.acl:
            wanted |= protocol.POSIX_ACL
        if settings.io == "writeback":
            wanted |= protocol.WRITEBACK_CACHE
        self.channel = Channel(fd, wanted=wanted, debug=settings.debug)
        self.channel.on_ready = on_ready
        self._verbs = Verbs(union, self.channel, timeout=settings.timeout)

    def requests(self) -> dict[str, int]:
        """How often each verb was asked, the most frequent first."""
        return self._by_name(self.channel.counts)

    def microseconds(self) -> dict[str, int]:
        """What they took, of those that were measured."""
        return self._by_name([nanoseconds // 1000 for nanoseconds in self.channel.nanoseconds])

    def measure(self, on: bool) -> None:
        """From now on measure what requests take, or no more."""
        self.channel.timed = on

    @staticmethod
    def _by_name(values: list[int]) -> dict[str, int]:
        found = {opcode.name.lower(): values[opcode] for opcode in Opcode if values[opcode]}
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def forget_known(self) -> None:
        """The layers have changed: ask anew."""
        self._verbs.forget_known()

    def limit_trust(self, seconds: float) -> None:
        """From now on the kernel may believe an answer for *seconds* at most."""
        self._verbs.limit_trust(seconds)

    def forget_name(self, parent: int, name: bytes) -> None:
        """Have the kernel forget what *name* in *parent* is; it may wait for answers: not for the thread that gives them."""
        with suppress(OSError):  # it knows no such name, or the mount has gone
            self.channel.forget_name(parent, name)

    def forget_object(self, ino: int) -> None:
        """Have the kernel forget attributes and data of *ino*; as ``forget_name``."""
        with suppress(OSError):
            self.channel.forget_object(ino)

    async def serve(self) -> None:
        """Serve until the mount is gone or ``stop`` is called."""
        await self.channel.serve()

    def stop(self) -> None:
        """Let ``serve`` return."""
        self.channel.stop()

    def close(self) -> None:
        """Give the descriptor back."""
        self.channel.close()
