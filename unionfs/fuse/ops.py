"""The FUSE verbs on plain pyfuse3: unwrap the request, call the Union, wrap the answer, turn errors into errnos; nothing else.

Everything runs in the one thread of the Reader. What may take long - copying up data, fsync - goes through ``Reader.in_thread``; meanwhile
``_building`` keeps others from copying up the same file.
"""

from __future__ import annotations

import errno
import logging
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, FUSEError, InodeT, RequestContext, SetattrFields

from unionfs.fuse import attrs
from unionfs.overlay.copy_up import is_quick
from unionfs.overlay.make import Caller
from unionfs.overlay.node import Node
from unionfs.overlay.union import Union

T = TypeVar("T")
P = ParamSpec("P")
log = logging.getLogger("unionfs.fuse")

#: Attributes remembered at most: about 350 bytes each.
_KNOWN_LIMIT = 16_384


class Blocking(Protocol):
    """What the verbs need of the Reader."""

    def hand_over(self) -> None:
        """Let others be served while we wait."""

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run *work* while others are served."""


def _answer(name: str, exc: Exception) -> FUSEError:
    """The reply to a failed request. What is not an OSError is a defect of ours: logged, answered EIO, and serving goes on."""
    if isinstance(exc, FUSEError):
        return exc
    if isinstance(exc, OSError) and exc.errno:
        return FUSEError(exc.errno)
    log.error("%s failed unexpectedly", name, exc_info=exc)
    return FUSEError(errno.EIO)


def verb(
    function: Callable[Concatenate[Operations, P], T],
) -> Callable[Concatenate[Operations, P], Coroutine[Any, Any, T]]:
    """A handler that never waits, as the coroutine function pyfuse3 wants."""
    name = function.__name__

    async def handler(self: Operations, /, *args: P.args, **kwargs: P.kwargs) -> T:
        self.requests[name] += 1
        try:
            return function(self, *args, **kwargs)
        except Exception as exc:
            raise _answer(name, exc) from None

    return handler


def slow_verb(
    function: Callable[Concatenate[Operations, P], Awaitable[T]],
) -> Callable[Concatenate[Operations, P], Coroutine[Any, Any, T]]:
    """A handler that may wait."""
    name = function.__name__

    async def handler(self: Operations, /, *args: P.args, **kwargs: P.kwargs) -> T:
        self.requests[name] += 1
        try:
            return await function(self, *args, **kwargs)
        except Exception as exc:
            raise _answer(name, exc) from None

    return handler


def changing_verb(
    function: Callable[Concatenate[Operations, P], Awaitable[T]],
) -> Callable[Concatenate[Operations, P], Coroutine[Any, Any, T]]:
    """A handler that changes the tree, and may wait: attributes remembered until now are forgotten, whatever came of it."""

    async def changing(self: Operations, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await function(self, *args, **kwargs)
        finally:
            self._known.clear()
            for ino in self._union.take_restamped():
                _forget_attributes(ino)

    changing.__name__ = function.__name__
    return slow_verb(changing)


def _forget_attributes(ino: int) -> None:
    """Let the kernel ask for the attributes of *ino* when they are next wanted. It needs no lock for that, so a handler may tell it."""
    try:
        pyfuse3.invalidate_inode(InodeT(ino), attr_only=True)
    except OSError:  # it does not know the object
        pass


def _caller(ctx: RequestContext) -> Caller:
    def in_group(gid: int) -> bool:
        try:
            return gid in pyfuse3.get_sup_groups(ctx.pid)
        except OSError:  # the caller is gone
            return False

    return Caller(ctx.uid, ctx.gid, in_group)


class Operations(pyfuse3.Operations):
    """pyfuse3's handlers over *union*. File handles are inode numbers: data goes by number, nothing depends on what is open."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = True

    def __init__(
        self,
        union: Union,
        blocking: Blocking,
        *,
        timeout: float,
        acl: bool = True,
        writeback: bool = False,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self.requests: Counter[str] = Counter()
        self._union = union
        self._blocking = blocking
        self._timeout = timeout
        self._absent = attrs.absent(timeout)
        self._on_ready = on_ready
        #: What the kernel was last told of an object, for as long as nothing changes anywhere: a second listing asks for all again.
        self._known: dict[int, EntryAttributes] = {}
        self._known_limit = _KNOWN_LIMIT
        self._building: dict[int, trio.Event] = {}
        self.enable_acl = acl
        self.enable_writeback_cache = writeback

    def init(self) -> None:
        """The kernel has said hello: from now on the mount answers."""
        self._on_ready()

    def forget_known(self) -> None:
        """The layers have changed: ask anew."""
        self._known.clear()

    def limit_trust(self, seconds: float) -> None:
        """From now on the kernel may believe an answer for *seconds* at most, and nothing is answered from memory here."""
        self._timeout = min(self._timeout, seconds)
        self._absent = attrs.absent(self._timeout)
        self._known_limit = 0
        self._known.clear()

    def _entry(self, found: tuple[Node, os.stat_result]) -> EntryAttributes:
        node, st = found
        made = attrs.entry(node.ino, node.shown, self._union.links(node, st), st, self._timeout)
        if len(self._known) >= self._known_limit:
            self._known.clear()
        if self._known_limit:
            self._known[node.ino] = made
        return made

    async def _bring_up(self, ino: int, size: int | None = None, *, data: bool = True) -> None:
        """Have *ino* in upper, without keeping others waiting when that takes long."""
        while (building := self._building.get(ino)) is not None:
            self._blocking.hand_over()
            await building.wait()
        draft = self._union.begin_copy_up(ino, size, data=data)
        if draft is None:
            return
        if is_quick(draft):
            draft.build()
            self._union.publish(ino, draft)
            return
        done = self._building[ino] = trio.Event()
        try:
            await self._blocking.in_thread(draft.build)
            self._union.publish(ino, draft)
        finally:
            del self._building[ino]
            done.set()

    # -- names -----------------------------------------------------------------------------------------------------------

    @verb
    def lookup(self, parent: InodeT, name: bytes, ctx: RequestContext) -> EntryAttributes:
        found = self._union.lookup(parent, name)
        return self._absent if found is None else self._entry(found)

    @verb
    def forget(self, inodes: Sequence[tuple[InodeT, int]]) -> None:
        for ino, count in inodes:
            self._union.forget(ino, count)
            self._known.pop(ino, None)

    @verb
    def readlink(self, inode: InodeT, ctx: RequestContext) -> bytes:
        return self._union.readlink(inode)

    @changing_verb
    async def mknod(self, parent: InodeT, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        return self._entry(self._union.make_special(parent, name, mode, rdev, _caller(ctx)))

    @changing_verb
    async def mkdir(self, parent: InodeT, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return self._entry(self._union.make_directory(parent, name, mode, _caller(ctx)))

    @changing_verb
    async def symlink(self, parent: InodeT, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._entry(self._union.make_symlink(parent, name, target, _caller(ctx)))

    @changing_verb
    async def link(self, inode: InodeT, parent: InodeT, name: bytes, ctx: RequestContext) -> EntryAttributes:
        await self._bring_up(inode, data=False)
        return self._entry(self._union.link(inode, parent, name))

    @changing_verb
    async def unlink(self, parent: InodeT, name: bytes, ctx: RequestContext) -> None:
        for ino in self._union.to_bring_up_first(parent, name):
            await self._bring_up(ino, data=False)
        self._union.unlink(parent, name)

    @changing_verb
    async def rmdir(self, parent: InodeT, name: bytes, ctx: RequestContext) -> None:
        self._union.rmdir(parent, name)

    @changing_verb
    async def rename(
        self, old_parent: InodeT, old: bytes, new_parent: InodeT, new: bytes, flags: int, ctx: RequestContext
    ) -> None:
        moved = self._union.to_bring_up(old_parent, old, new_parent, new, flags)
        for ino in (*moved, *self._union.to_bring_up_first(new_parent, new)):
            await self._bring_up(ino, data=False)
        self._union.rename(old_parent, old, new_parent, new, flags)

    # -- attributes ------------------------------------------------------------------------------------------------------

    @verb
    def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        return self._known.get(inode) or self._entry(self._union.getattr(inode))

    @changing_verb
    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        change = attrs.change(attr, fields)
        await self._bring_up(inode, change.size, data=change.size is not None)
        return self._entry(self._union.setattr(inode, change))

    @verb
    def getxattr(self, inode: InodeT, name: bytes, ctx: RequestContext) -> bytes:
        return self._union.getxattr(inode, name)

    @verb
    def listxattr(self, inode: InodeT, ctx: RequestContext) -> list[bytes]:
        names = self._union.listxattr(inode)
        # as the kernel's overlay: trusted.* is for the privileged only
        return names if ctx.uid == 0 else [name for name in names if not name.startswith(b"trusted.")]

    @changing_verb
    async def setxattr(self, inode: InodeT, name: bytes, value: bytes, ctx: RequestContext) -> None:
        await self._bring_up(inode, data=False)
        self._union.setxattr(inode, name, value)

    @changing_verb
    async def removexattr(self, inode: InodeT, name: bytes, ctx: RequestContext) -> None:
        if not self._union.is_up(inode):
            self._union.require_xattr(inode, name)
        await self._bring_up(inode, data=False)
        self._union.removexattr(inode, name)

    @verb
    def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        return attrs.statfs(self._union.statfs())

    # -- files -----------------------------------------------------------------------------------------------------------

    async def open(self, inode: InodeT, flags: int, ctx: RequestContext) -> FileInfo:
        """Opening for reading asks nothing of the union: no decorator, as it and ``release`` are most of what a cached read costs."""
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            await self.open_for_writing(inode, flags, ctx)
        else:
            self.requests["open"] += 1
        return FileInfo(fh=FileHandleT(inode), keep_cache=True)

    @changing_verb
    async def open_for_writing(self, inode: InodeT, flags: int, ctx: RequestContext) -> None:
        """The part of ``open`` that copies up and truncates; counted by itself."""
        self._union.refuse_opening(inode, flags)
        await self._bring_up(inode, 0 if flags & os.O_TRUNC else None)
        self._union.open(inode, flags, drop_suid=_caller(ctx) if ctx.uid else None)

    @changing_verb
    async def create(
        self, parent: InodeT, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        found = None if flags & os.O_EXCL else self._union.lookup(parent, name)
        if found is None:
            made = self._union.make_file(parent, name, mode, _caller(ctx))
        else:  # somebody made it between the kernel's look-up and now
            ino = found[0].ino
            try:
                self._union.refuse_opening(ino, flags)
                await self._bring_up(ino, 0 if flags & os.O_TRUNC else None)
                self._union.open(ino, flags, drop_suid=_caller(ctx) if ctx.uid else None)
                made = self._union.getattr(ino)
            except Exception:
                self._union.forget(ino, 1)  # the kernel is told nothing of it
                raise
        return FileInfo(fh=FileHandleT(made[0].ino), keep_cache=True), self._entry(made)

    @verb
    def read(self, fh: FileHandleT, offset: int, size: int) -> bytes:
        self._known.pop(fh, None)  # the time of last access
        return self._union.read(fh, offset, size)

    @changing_verb
    async def write(self, fh: FileHandleT, offset: int, data: bytes) -> int:
        await self._bring_up(fh)
        return self._union.write(fh, offset, data)

    @verb
    def flush(self, fh: FileHandleT) -> None:
        """Nothing is held back here, and told so once the kernel never asks again."""
        raise FUSEError(errno.ENOSYS)

    async def release(self, fh: FileHandleT) -> None:
        """Descriptors are cached by number and bounded; an open file has none of its own."""
        self.requests["release"] += 1

    @slow_verb
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        await self._sync(fh, os.fdatasync if datasync else os.fsync)

    async def _sync(self, ino: int, sync: Callable[[int], None]) -> None:
        fd = self._union.sync_fd(ino)
        if fd is None:
            return
        try:
            await self._blocking.in_thread(lambda: sync(fd))
        finally:
            os.close(fd)

    # -- directories -----------------------------------------------------------------------------------------------------

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        self.requests["opendir"] += 1
        return FileHandleT(inode)

    @verb
    def readdir(self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        union, reply, known_of = self._union, pyfuse3.readdir_reply, self._known.get
        for name, offset, what in union.entries(fh, start_id):
            if isinstance(what, Node):  # "." and "..": the kernel neither links nor counts them
                if not reply(token, name, attrs.dots(what.shown), offset):
                    return
                continue
            node = union.live_node(what)
            known = None if node is None else known_of(node.ino)
            if node is None or known is None:
                try:
                    found = union.entry_node(fh, name, what)
                except FileNotFoundError:  # taken away below us
                    continue
                except OSError:  # a redirect that is none, a metacopy without data: its own matter
                    if not reply(token, name, attrs.name_only(what.kind), offset):
                        return
                    continue
                node, known = found[0], self._entry(found)
            if not reply(token, name, known, offset):
                union.release(node)
                return
            node.lookups += 1

    async def releasedir(self, fh: FileHandleT) -> None:
        """Nothing is kept per open directory."""
        self.requests["releasedir"] += 1

    @slow_verb
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        await self._sync(fh, os.fsync)
