"""The engine pyfuse3: the verbs of ops.py on plain pyfuse3. Slower than the channel, and the reference it is held against."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from contextlib import suppress

import pyfuse3
from pyfuse3 import FileNameT, InodeT

from unionfs.fuse.mounting import Settings
from unionfs.fuse.ops import Operations
from unionfs.fuse.reader import Reader
from unionfs.overlay.union import Union

_WITHDRAWN = frozenset(os.strerror(code) for code in (errno.ENOENT, errno.ENODEV, errno.ECONNABORTED))


def _is_news(record: logging.LogRecord) -> bool:
    """Filter of pyfuse3's log: the kernel not wanting an answer any more (its asker was killed, the mount has gone) is no error."""
    return "fuse_reply_* failed with" not in str(record.msg) or not _WITHDRAWN.intersection(record.args or ())


class Plain:
    """Serves *union* on the descriptor *fd*, which it owns. *warn*: told of a mode that cannot be had, before *on_ready*."""

    def __init__(
        self, union: Union, fd: int, settings: Settings, on_ready: Callable[[], None], warn: Callable[[str], None]
    ) -> None:
        if settings.io == "passthrough":
            warn("io=passthrough is not for the engine pyfuse3: files are cached")
        self.keeps_sizes = settings.io == "writeback"
        logging.getLogger("pyfuse3").addFilter(_is_news)
        reader = Reader()
        self._operations = Operations(
            union, reader, timeout=settings.timeout, acl=settings.acl, writeback=settings.io == "writeback", on_ready=on_ready
        )
        pyfuse3.trio = reader  # type: ignore[attr-defined]
        pyfuse3.init(self._operations, f"/dev/fd/{fd}", {"debug"} if settings.debug else set())

    def requests(self) -> dict[str, int]:
        """How often each verb was asked."""
        return dict(self._operations.requests.most_common())

    def microseconds(self) -> dict[str, int]:
        """Not measured here."""
        return {}

    def measure(self, on: bool) -> None:
        """Nothing is."""

    def forget_known(self) -> None:
        """The layers have changed: ask anew."""
        self._operations.forget_known()

    def limit_trust(self, seconds: float) -> None:
        """From now on the kernel may believe an answer for *seconds* at most."""
        self._operations.limit_trust(seconds)

    def forget_name(self, parent: int, name: bytes) -> None:
        """Have the kernel forget what *name* in *parent* is; not for the thread that serves (pyfuse3.invalidate_entry)."""
        with suppress(OSError):  # it knows no such name, or the mount has gone
            pyfuse3.invalidate_entry(InodeT(parent), FileNameT(name))

    def forget_object(self, ino: int) -> None:
        """Have the kernel forget attributes and data of *ino*; not for the thread that serves."""
        with suppress(OSError):
            pyfuse3.invalidate_inode(InodeT(ino))

    async def serve(self) -> None:
        """Serve until the mount is gone or ``stop`` is called."""
        # one worker to begin with and never one more by pyfuse3's own count: the Reader starts those that are needed
        await pyfuse3.main(min_tasks=1 << 20, max_tasks=1)

    def stop(self) -> None:
        """Let ``serve`` return."""
        pyfuse3.terminate()

    def close(self) -> None:
        """Give the descriptor back."""
        pyfuse3.close(unmount=False)
