"""The engine channel: the verbs of verbs.py on the kernel's own messages."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

from unionfs.fuse import protocol
from unionfs.fuse.channel import Channel
from unionfs.fuse.mounting import Settings
from unionfs.fuse.passthrough import Passthrough
from unionfs.fuse.protocol import Opcode
from unionfs.fuse.verbs import FLAGS, Verbs
from unionfs.linux import files, passthrough, process
from unionfs.overlay.union import Union


class Direct:
    """Serves *union* on the descriptor *fd*, which it owns. *warn*: told of a mode that cannot be had, before *on_ready*."""

    def __init__(
        self, union: Union, fd: int, settings: Settings, on_ready: Callable[[], None], warn: Callable[[str], None]
    ) -> None:
        wanted, depth = FLAGS, 0
        if settings.acl:
            wanted |= protocol.POSIX_ACL
        self.keeps_sizes = settings.io == "writeback"
        if self.keeps_sizes:
            wanted |= protocol.WRITEBACK_CACHE
        if settings.io == "passthrough" and not process.may_pass_through():
            warn("io=passthrough needs CAP_SYS_ADMIN in the initial user namespace: files are cached")
        elif settings.io == "passthrough":
            wanted |= protocol.PASSTHROUGH | protocol.ATOMIC_O_TRUNC
            depth = _stack_depth(union)
        self.channel = Channel(fd, wanted=wanted, stack_depth=depth, debug=settings.debug)
        self.channel.on_ready = partial(self._agreed, on_ready, warn)
        self._verbs = Verbs(union, self.channel, timeout=settings.timeout)
        self._union = union
        self._passthrough: Passthrough | None = None

    def _agreed(self, on_ready: Callable[[], None], warn: Callable[[str], None]) -> None:
        """INIT has been answered."""
        if self.channel.flags & protocol.PASSTHROUGH:
            register, unregister = partial(passthrough.register, self.channel.fd), partial(passthrough.unregister, self.channel.fd)
            self._passthrough = Passthrough(self._union, register, unregister, self._verbs.forget_attributes)
            self._verbs.pass_through(self._passthrough)
        elif self.channel.wanted & protocol.PASSTHROUGH:
            warn("io=passthrough needs Linux 6.9 with CONFIG_FUSE_PASSTHROUGH: files are cached")
        on_ready()

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
        for number in (ino,) if self._passthrough is None else self._passthrough.numbers(ino):
            with suppress(OSError):
                self.channel.forget_object(number)

    async def serve(self) -> None:
        """Serve until the mount is gone or ``stop`` is called."""
        await self.channel.serve()

    def stop(self) -> None:
        """Let ``serve`` return."""
        self.channel.stop()

    def close(self) -> None:
        """Give the descriptor back."""
        self.channel.close()


def _stack_depth(union: Union) -> int:
    """How many filesystems will stand on each other, as INIT says it: 1 on layers that stand on none, else 2, which is all there can be.

    No overlayfs can have a mount of depth 2 for a layer, so it is not asked for without need.
    """
    stack = union.stack
    layers = (*((stack.upper,) if stack.upper else ()), *stack.lowers, *stack.data)
    return 2 if any(files.is_stacked(layer.root_fd) for layer in layers) else 1
