"""Noticing that somebody changes the lowers: inotify on the directories that were read, and where that does not reach, a look at them.

A directory is watched from the moment its index is read until its node dies. Where a watch cannot be had - too many of them, or a
filesystem whose changes are made elsewhere - the directory is *polled*: ``is_outdated`` compares its identity and times with those it had.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from unionfs.linux import files, inotify
from unionfs.overlay.layer import Layer
from unionfs.overlay.node import Node

#: How long a polled directory is believed.
POLL_SECONDS = 0.25

_CONTENT = inotify.MODIFY | inotify.CLOSE_WRITE
_LISTING = inotify.ATTRIB | inotify.CREATE | inotify.DELETE | inotify.MOVED_FROM | inotify.MOVED_TO
_SELF = inotify.DELETE_SELF | inotify.MOVE_SELF
_MASK = _CONTENT | _LISTING | _SELF

#: Filesystems that others may write to unseen by this kernel: NFS, SMB, CIFS, FUSE, 9p, Ceph, AFS (linux/magic.h).
_REMOTE = frozenset({0x6969, 0xFE534D42, 0xFF534D42, 0x65735546, 0x01021997, 0x00C36400, 0x5346414F, 0x517B})

Signature = tuple[int, int, int, int]


@dataclass
class Touched:
    """What happened in one directory: to which names, and whether it was more than data that changed."""

    names: set[bytes] = field(default_factory=set)
    listing: bool = False


class Watcher:
    """The watches of one tree. *on_limit* is told once, in a few words, why some directories are polled."""

    def __init__(self, lowers: Iterable[Layer], on_limit: Callable[[str], None] = lambda _: None) -> None:
        self.on_limit = on_limit
        #: Why directories are polled, once there are such.
        self.limit: str | None = None
        self._remote = frozenset(layer for layer in lowers if files.filesystem_type(layer.root_fd) in _REMOTE)
        self._inotify: inotify.Inotify | None = None
        with suppress(OSError):
            self._inotify = inotify.Inotify()
        self._most = _share_of_watches()
        self._watches: dict[Node, dict[Layer, int]] = {}
        self._nodes: dict[int, set[Node]] = {}
        self._polled: dict[Node, dict[Layer, Signature]] = {}
        self._looked: dict[Node, float] = {}

    @property
    def fd(self) -> int:
        """Readable when there is something to ``collect``; -1 when there never will be."""
        return -1 if self._inotify is None else self._inotify.fd

    def __len__(self) -> int:
        return len(self._nodes)

    def add(self, node: Node, layer: Layer, fd: int) -> None:
        """*layer*'s copy of the directory *node*, open as *fd*, is about to be read."""
        number = self._watch(layer, fd)
        known = self._watches.setdefault(node, {})
        old = known.get(layer)
        if number is not None:
            known[layer] = number
            self._nodes.setdefault(number, set()).add(node)
            if node in self._polled:
                self._polled[node].pop(layer, None)
        else:
            known.pop(layer, None)
            self._polled.setdefault(node, {})[layer] = _signature(fd)
            self._looked[node] = time.monotonic()
        if old is not None and old != number:
            self._release(node, old)

    def _watch(self, layer: Layer, fd: int) -> int | None:
        """The number of the watch, None where there can be none."""
        if layer in self._remote:
            why = "a layer lies on a filesystem that does not tell of its changes"
        elif self._inotify is None:
            why = "no inotify instance is to be had"
        elif len(self._nodes) >= self._most:
            why = "half of the inotify watches are taken"
        else:
            try:
                return self._inotify.add(fd, _MASK)
            except OSError as exc:
                why = "no more inotify watches are to be had" if exc.errno == errno.ENOSPC else f"inotify: {exc.strerror}"
        if self.limit is None:
            self.limit = why
            self.on_limit(why)
        return None

    def forget(self, node: Node) -> None:
        """*node* is of no interest any more."""
        self._polled.pop(node, None)
        self._looked.pop(node, None)
        for number in self._watches.pop(node, {}).values():
            self._release(node, number)

    def _release(self, node: Node, number: int) -> None:
        nodes = self._nodes.get(number)
        if nodes is None:
            return
        nodes.discard(node)
        if not nodes:
            del self._nodes[number]
            if self._inotify is not None:
                with suppress(OSError):  # its directory is gone, and the watch with it
                    self._inotify.remove(number)

    def collect(self) -> dict[Node, Touched] | None:
        """What has happened since the last time; None when events were lost, so that anything may have."""
        touched: dict[Node, Touched] = {}
        lost = False
        for event in self._inotify.read() if self._inotify is not None else ():
            lost = lost or bool(event.mask & inotify.OVERFLOW)
            for node in self._nodes.get(event.watch, ()):
                _note(touched, node, event)
            if event.mask & inotify.IGNORED:
                self._ended(event.watch)
        return None if lost else touched

    def _ended(self, number: int) -> None:
        for node in self._nodes.pop(number, ()):
            parts = self._watches.get(node, {})
            for layer in [layer for layer, watch in parts.items() if watch == number]:
                del parts[layer]

    def is_outdated(self, node: Node, *, at_once: bool = False) -> bool:
        """Whether the polled directory *node* is another than it was when it was read. Never, for one that is watched.

        Looked at *at_once*, or now and then: for a listing, which the kernel may keep for as long as the directory's times stay.
        """
        parts = self._polled.get(node)
        if parts is None or not at_once and time.monotonic() - self._looked.get(node, 0.0) < POLL_SECONDS:
            return False
        self._looked[node] = time.monotonic()
        paths = {} if node.directory is None else dict(node.directory.lowers)
        return any(layer in paths and _look(layer, paths[layer]) != then for layer, then in parts.items())

    def close(self) -> None:
        """End all watches."""
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None


def _note(touched: dict[Node, Touched], node: Node, event: inotify.Event) -> None:
    if event.name:
        noted = touched.setdefault(node, Touched())
        noted.names.add(event.name)
        noted.listing |= bool(event.mask & _LISTING)
        return
    if event.mask & inotify.ATTRIB:  # it may have become opaque, or its whiteouts count now
        touched.setdefault(node, Touched()).listing = True
    if event.mask & (_SELF | inotify.ATTRIB) and node.parent is not None:
        above = touched.setdefault(node.parent, Touched())
        above.names.add(node.name)
        above.listing = True


def _signature(fd: int) -> Signature:
    st = os.fstat(fd)
    return st.st_dev, st.st_ino, st.st_mtime_ns, st.st_ctime_ns


def _look(layer: Layer, path: bytes) -> Signature | None:
    try:
        fd = layer.open_directory(path)
    except OSError:
        return None
    try:
        return _signature(fd)
    finally:
        os.close(fd)


def _share_of_watches() -> int:
    """Half of what the user may have: other programs of his need some."""
    try:
        with open("/proc/sys/fs/inotify/max_user_watches", encoding="ascii") as file:
            return int(file.read()) // 2
    except (OSError, ValueError):
        return 4096
