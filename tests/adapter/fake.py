"""A core for the adapter's tests: it remembers what it was asked, answers what the test laid out, and knows no disk."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import trio
from pyfuse3 import EntryAttributes, RequestContext, SetattrFields

from unionfs.fuse.ops import Operations
from unionfs.overlay.make import Caller
from unionfs.overlay.node import LayerEntry, Node
from unionfs.overlay.union import Change, Union

T = TypeVar("T")
TIMEOUT = 300.0
ROOT = cast(RequestContext, SimpleNamespace(uid=0, gid=0, pid=1, umask=0))
USER = cast(RequestContext, SimpleNamespace(uid=1000, gid=1001, pid=1, umask=0))


def a_node(ino: int) -> Node:
    return Node(ino, None, b"", cast(Any, "layer"), None)


def a_stat(mode: int = stat.S_IFREG | 0o644, size: int = 0) -> os.stat_result:
    """Every field has a value of its own, so that none can be taken for another."""
    visible = [mode, 9001, 9002, 9003, 11, 12, size, 1, 2, 3]
    rest = {"st_atime_ns": 10**9 + 1, "st_mtime_ns": 2 * 10**9 + 2, "st_ctime_ns": 3 * 10**9 + 3, "st_blksize": 512,
            "st_blocks": 77, "st_rdev": os.makedev(4, 5)}
    return os.stat_result(visible, rest)


@dataclass
class FakeDraft:
    """Building waits for ``gate``; ``started`` tells that it began."""

    size: int = 0
    sync: bool = False
    error: Exception | None = None
    gate: threading.Event = field(default_factory=threading.Event)
    started: threading.Event = field(default_factory=threading.Event)
    built_in: threading.Thread | None = None

    def __post_init__(self) -> None:
        self.gate.set()

    def build(self) -> None:
        self.started.set()
        self.built_in = threading.current_thread()
        assert self.gate.wait(10)
        if self.error is not None:
            raise self.error


class FakeUnion:
    """``asked``: every call in order. ``errors``: what a verb raises. ``drafts``: what still has to be copied up, by number;
    ``tied``: what is before one of its names goes; ``shut``: what may not be opened for writing."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.errors: dict[str, Exception] = {}
        self.drafts: dict[int, FakeDraft] = {}
        self.nodes: dict[int, Node] = {}
        self.names: dict[tuple[int, bytes], int] = {}
        self.tied: set[int] = set()
        self.shut: set[int] = set()
        self.listing: list[tuple[bytes, int, Node | LayerEntry]] = []
        self.released: list[int] = []
        self.vanished: set[bytes] = set()
        self.shown_xattrs: list[bytes] = []
        self.fd: int | None = None
        self.restamped: list[int] = []
        self.renumbered: list[int] = []
        self.st = a_stat()
        self.forgotten = 0

    def _note(self, verb: str, *arguments: Any) -> None:
        self.asked.append((verb, *arguments))
        if verb in self.errors:
            raise self.errors[verb]

    def count(self, verb: str) -> int:
        return Counter(call[0] for call in self.asked)[verb]

    def node(self, ino: int) -> Node:
        return self.nodes.setdefault(ino, a_node(ino))

    def _found(self, ino: int, *, counted: bool = True) -> tuple[Node, os.stat_result]:
        node = self.node(ino)
        node.lookups += counted
        return node, self.st

    def lookup(self, parent: int, name: bytes) -> tuple[Node, os.stat_result] | None:
        self._note("lookup", parent, name)
        ino = self.names.get((parent, name))
        return None if ino is None else self._found(ino)

    def forget(self, ino: int, count: int) -> None:
        self._note("forget", ino, count)
        self.node(ino).lookups -= count

    def getattr(self, ino: int) -> tuple[Node, os.stat_result]:
        self._note("getattr", ino)
        return self._found(ino, counted=False)

    def links(self, node: Node, st: os.stat_result) -> int:
        return 42

    def readlink(self, ino: int) -> bytes:
        self._note("readlink", ino)
        return b"tar\xffget"

    def entries(self, ino: int, after: int) -> Iterator[tuple[bytes, int, Node | LayerEntry]]:
        self._note("entries", ino, after)
        yield from (row for row in self.listing if row[1] > after)

    def entry_node(self, parent: int, name: bytes, entry: LayerEntry) -> tuple[Node, os.stat_result]:
        self._note("entry_node", parent, name)
        if name in self.vanished:
            raise FileNotFoundError(2, "gone")
        return self._found(self.names[parent, name], counted=False)

    @staticmethod
    def live_node(entry: LayerEntry) -> Node | None:
        return entry.node if isinstance(entry.node, Node) else None

    def release(self, node: Node) -> None:
        self.released.append(node.ino)

    def statfs(self) -> os.statvfs_result:
        return os.statvfs_result((4096, 512, 1000, 900, 800, 700, 600, 500, 0, 255))

    def refuse_opening(self, ino: int, flags: int) -> None:
        if ino in self.shut:
            raise PermissionError(errno.EPERM, "shut")

    def open(self, ino: int, flags: int, **more: Any) -> None:
        self._note("open", ino, flags, more)

    def read(self, ino: int, offset: int, size: int) -> bytes:
        self._note("read", ino, offset, size)
        return b"data"[offset : offset + size]

    def write(self, ino: int, offset: int, data: bytes, **more: Any) -> int:
        self._note("write", ino, offset, data)
        return len(data)

    def sync_fd(self, ino: int) -> int | None:
        self._note("sync_fd", ino)
        return self.fd

    def is_up(self, ino: int) -> bool:
        return ino not in self.drafts

    def begin_copy_up(self, ino: int, size: int | None = None, *, data: bool = True) -> FakeDraft | None:
        self._note("begin_copy_up", ino, size, *(() if data else ("without data",)))
        return self.drafts.get(ino)

    def take_restamped(self) -> list[int]:
        return self.restamped

    def take_renumbered(self) -> list[int]:
        taken, self.renumbered = self.renumbered, []
        return taken

    def publish(self, ino: int, draft: FakeDraft) -> None:
        self._note("publish", ino)
        assert self.drafts.pop(ino) is draft

    def setattr(self, ino: int, change: Change, **more: Any) -> tuple[Node, os.stat_result]:
        self._note("setattr", ino, change)
        return self._found(ino, counted=False)

    def getxattr(self, ino: int, name: bytes) -> bytes:
        self._note("getxattr", ino, name)
        return b"value"

    def require_xattr(self, ino: int, name: bytes) -> None:
        self._note("require_xattr", ino, name)

    def listxattr(self, ino: int) -> list[bytes]:
        self._note("listxattr", ino)
        return self.shown_xattrs

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int = 0) -> None:
        self._note("setxattr", ino, name, value)

    def removexattr(self, ino: int, name: bytes) -> None:
        self._note("removexattr", ino, name)

    def _made(self, verb: str, parent: int, name: bytes, *arguments: Any) -> tuple[Node, os.stat_result]:
        self._note(verb, parent, name, *arguments)
        ino = self.names[parent, name] = 100 + len(self.names)
        return self._found(ino)

    def make_file(self, parent: int, name: bytes, mode: int, caller: Caller) -> tuple[Node, os.stat_result]:
        return self._made("make_file", parent, name, mode, caller)

    def make_directory(self, parent: int, name: bytes, mode: int, caller: Caller) -> tuple[Node, os.stat_result]:
        return self._made("make_directory", parent, name, mode, caller)

    def make_special(
        self, parent: int, name: bytes, mode: int, device: int, caller: Caller
    ) -> tuple[Node, os.stat_result]:
        return self._made("make_special", parent, name, mode, device, caller)

    def make_symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> tuple[Node, os.stat_result]:
        return self._made("make_symlink", parent, name, target, caller)

    def link(self, ino: int, parent: int, name: bytes) -> tuple[Node, os.stat_result]:
        self._note("link", ino, parent, name)
        return self._found(ino)

    def unlink(self, parent: int, name: bytes) -> None:
        self._note("unlink", parent, name)

    def rmdir(self, parent: int, name: bytes) -> None:
        self._note("rmdir", parent, name)

    def to_bring_up_first(self, parent: int, name: bytes) -> list[int]:
        return [ino for ino in self.tied if self.names.get((parent, name)) == ino]

    def to_bring_up(self, old_parent: int, old: bytes, new_parent: int, new: bytes, flags: int) -> list[int]:
        return [ino for ino in (self.names.get((old_parent, old)), self.names.get((new_parent, new))) if ino]

    def rename(self, old_parent: int, old: bytes, new_parent: int, new: bytes, flags: int = 0) -> None:
        self._note("rename", old_parent, old, new_parent, new, flags)


class FakeReader:
    """Runs what may take long in a real thread, and counts how often another worker would have been let in."""

    def __init__(self) -> None:
        self.handed_over = 0

    def hand_over(self) -> None:
        self.handed_over += 1

    async def in_thread(self, work: Callable[[], T]) -> T:
        self.handed_over += 1
        return await trio.to_thread.run_sync(work)


def operations(union: FakeUnion, reader: FakeReader | None = None, **settings: Any) -> Operations:
    return Operations(cast(Union, union), reader or FakeReader(), timeout=TIMEOUT, **settings)


def attributes(**values: Any) -> EntryAttributes:
    made = EntryAttributes()
    for name, value in values.items():
        setattr(made, name, value)
    return made


def fields(*names: str) -> SetattrFields:
    known = ("size", "mode", "uid", "gid", "atime", "mtime", "ctime")
    assert set(names) <= set(known)
    return cast(SetattrFields, SimpleNamespace(**{f"update_{name}": name in names for name in known}))
