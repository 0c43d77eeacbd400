"""inotify(7): being told of changes in directories that are named by descriptor."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

from unionfs.linux import libc as _l

MODIFY = 0x2
ATTRIB = 0x4
CLOSE_WRITE = 0x8
MOVED_FROM = 0x40
MOVED_TO = 0x80
CREATE = 0x100
DELETE = 0x200
DELETE_SELF = 0x400
MOVE_SELF = 0x800
#: Events were lost: the queue was full.
OVERFLOW = 0x4000
#: The last event of a watch.
IGNORED = 0x8000

_ONLYDIR = 0x01000000
_EXCL_UNLINK = 0x04000000
_HEADER = struct.Struct("=iIII")
_BUFFER = 1 << 16


class Event(NamedTuple):
    """``watch``: what ``Inotify.add`` gave, -1 for OVERFLOW. ``name``: of the entry; empty for the directory itself."""

    watch: int
    mask: int
    name: bytes


class Inotify:
    """One queue of events and its watches. ``fd`` is readable when there are events."""

    def __init__(self) -> None:
        """Raises OSError: EMFILE when the user has too many."""
        self.fd = _l.checked(_l.libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK), "inotify")

    def add(self, dir_fd: int, mask: int) -> int:
        """Watch the directory *dir_fd*, which may be O_PATH, for *mask*; the same directory gets the same number.

        ENOSPC when the user has too many watches, EACCES for a directory he may not read.
        """
        flags = ctypes.c_uint32(mask | _ONLYDIR | _EXCL_UNLINK)
        return _l.checked(_l.libc.inotify_add_watch(self.fd, b"/proc/self/fd/%d" % dir_fd, flags))

    def remove(self, watch: int) -> None:
        """End a watch; EINVAL when its directory is gone already."""
        _l.checked(_l.libc.inotify_rm_watch(self.fd, watch))

    def read(self) -> Iterator[Event]:
        """All events there are."""
        while True:
            try:
                data = os.read(self.fd, _BUFFER)
            except BlockingIOError:
                return
            position = 0
            while position < len(data):
                watch, mask, _, length = _HEADER.unpack_from(data, position)
                position += _HEADER.size
                yield Event(watch, mask, data[position : position + length].rstrip(b"\0"))
                position += length

    def close(self) -> None:
        """End all watches."""
        os.close(self.fd)
