"""The verbs a filesystem needs, by number: what ``fuse`` serves, and what works as well with no mount at all.

Every method raises OSError; names and paths are bytes. Nodes are counted as the kernel counts them: ``lookup``, ``make_*``, ``link`` and
``entries`` with ``count`` add one, ``forget`` takes away.

Threads: all methods belong to one thread. The exceptions are ``Draft.build`` and whatever is done with a descriptor from ``sync_fd``:
they touch nothing of the Union. A draft is published by the owner thread; of two drafts of one node the later is discarded.
"""

from __future__ import annotations

import errno
import gc
import os
import stat
import sys
from collections.abc import Callable, Iterator
from functools import partial, wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from unionfs.errors import error
from unionfs.linux import files, xattrs
from unionfs.linux.libc import give_back_memory
from unionfs.overlay.acl import ACCESS, DEFAULT
from unionfs.overlay.bring_up import begin_copy_up, bring_name_up, bring_up, copy_up_directory, publish
from unionfs.overlay.copy_up import DataDraft, Draft
from unionfs.overlay.file_attributes import FLAGS, FSXATTR, attributes, set_attributes
from unionfs.overlay.layer import Layer
from unionfs.overlay.make import Caller, Maker
from unionfs.overlay.node import Index, LayerEntry, Node, Orphan
from unionfs.overlay.owners import CAPABILITY, without_suid
from unionfs.overlay.ownership import PLAIN
from unionfs.overlay.protection import APPEND, refuse, refuse_opening
from unionfs.overlay.redirect import redirect_file
from unionfs.overlay.refresh import Outdated, refresh_directory
from unionfs.overlay.rename import rename, to_bring_up
from unionfs.overlay.stack import Stack
from unionfs.overlay.tree import NAME_MAX, Tree
from unionfs.overlay.unlocked import Loose

Params = ParamSpec("Params")
Result = TypeVar("Result")

#: Offsets of "." and ".." in a listing; entries follow at cookie + _DOTS.
_DOTS = 2
_LABEL = b"security.selinux"
#: Worth giving their memory back.
_MANY_NODES = 1024


def unlocking(
    *places: int | tuple[int, int],
) -> Callable[[Callable[Concatenate[Union, Params], Result]], Callable[Concatenate[Union, Params], Result]]:
    """A verb that is done again, with bits lent, when modes in upper forbid it (see unlocked.py).

    *places*: which of its arguments are numbers of objects, or number of a directory and name in it.
    """

    def decorate(verb: Callable[Concatenate[Union, Params], Result]) -> Callable[Concatenate[Union, Params], Result]:
        @wraps(verb)
        def run(self: Union, /, *args: Params.args, **kwargs: Params.kwargs) -> Result:
            try:
                return verb(self, *args, **kwargs)
            except PermissionError as exc:
                named: list[tuple[Any, Any]] = [(args[p], None) if isinstance(p, int) else (args[p[0]], args[p[1]]) for p in places]
                return self._unlock(exc, partial(verb, self, *args, **kwargs), named)

        return run

    return decorate


class Change(NamedTuple):
    """What setattr should change; None leaves a field as it is. Times in nanoseconds; *now*: they are those of this moment."""

    size: int | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    now: bool = False

    @property
    def unless(self) -> int:
        """Which protection does not forbid it: whoever may append may set the times to now (may_setattr)."""
        return APPEND if self.now and (self.size, self.mode, self.uid, self.gid) == (None, None, None, None) else 0


def _proves_outdated(exc: OSError) -> bool:
    """Whether an object that is in an index but not to be found says that the index is old."""
    return exc.errno in (errno.ENOENT, errno.ESTALE, errno.ENOTDIR, errno.ELOOP)


class Union:
    """A mounted or unmounted union over *stack*; owns it from now on."""

    def __init__(self, stack: Stack, *, acl: bool = True, static_links: bool = False) -> None:
        self.tree = Tree(stack, static_links=static_links)
        self.stack = stack
        #: Nodes that died since memory was last given back.
        self.forgotten = 0
        self._acl = acl
        self._owners = stack.features.owners
        self._maker = Maker(self.tree, acl=acl)
        self._selinux = xattrs.selinux_is_on()
        #: Told what the kernel has to forget when a verb meets layers that were changed under us.
        self.on_outdated: Callable[[Outdated], None] = lambda _: None
        #: Told when so many nodes died that ``give_back_memory`` is worth while.
        self.on_forgotten: Callable[[], None] = lambda: None

    def _unlock(self, failure: PermissionError, step: Callable[[], Result], named: list[tuple[int, bytes | None]]) -> Result:
        """The *step* that failed, with bits lent to what was *named*: (number, None) or (directory, name)."""
        tree = self.tree
        objects = [(node, name) for ino, name in named if (node := tree.nodes.get(ino)) is not None]
        ways = [node if name is not None else node.parent for node, name in objects]

        def shown() -> Result:
            result = step()
            if isinstance(result, tuple) and isinstance(result[1], os.stat_result):
                return result[0], tree.lender.as_shown(result[1])  # type: ignore[return-value]
            return result

        def ends() -> Iterator[Node | Loose | None]:
            return (tree.descriptors.own_place(node) if name is None else tree.upper_place(node, name) for node, name in objects)

        return tree.lender.retry(failure, shown, [node for node in ways if node is not None], ends)

    # -- looking ---------------------------------------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> tuple[Node, os.stat_result] | None:
        """The object *name* in the directory *parent* and its attributes, None when there is none. Counts."""
        tree = self.tree
        directory = tree.directory(parent)
        if tree.watcher is not None:
            self._catch_up(directory)
        try:  # not by the decorator: it would be most of what a name costs that is not there
            entry = tree.find(directory, name)
            if entry is None:
                if len(name) > NAME_MAX:
                    raise error(errno.ENAMETOOLONG)
                return None
            node, st = tree.resolve(directory, name, entry)
        except PermissionError as exc:
            return self._unlock(exc, partial(self.lookup, parent, name), [(parent, name)])
        except OSError as exc:
            if not _proves_outdated(exc):
                raise
            found = None if tree.find(directory, name) is None else self._look_again(directory, name)
            if found is None:
                return None
            node, st = found
        node.lookups += 1
        return self._shown(node, st)

    def _look_again(self, directory: Node, name: bytes) -> tuple[Node, os.stat_result] | None:
        """The object *name*, after what is remembered of *directory* has proved outdated; None when there is none.

        When somebody is at it just now it is an error again: None is something the kernel would remember.
        """
        self.refresh_directory(directory)
        entry = self.tree.find(directory, name)
        return None if entry is None else self.tree.resolve(directory, name, entry)

    def refresh_directory(self, directory: Node) -> None:
        """Look anew at the layers' parts of *directory*; what the kernel has to forget is said to ``on_outdated``."""
        for outdated in refresh_directory(self.tree, directory):
            self.on_outdated(outdated)

    def _catch_up(self, directory: Node, *, at_once: bool = False) -> None:
        watcher = self.tree.watcher
        if watcher is not None and watcher.is_outdated(directory, at_once=at_once):
            self.refresh_directory(directory)

    def _shown(self, node: Node, st: os.stat_result) -> tuple[Node, os.stat_result]:
        """*node* and its attributes as they leave the union: with the ids that are shown."""
        return node, st if self._owners is None else self._owners.shown(st)

    def forget(self, ino: int, count: int) -> None:
        """The kernel gives back *count* look-ups of *ino*."""
        dead = self.tree.nodes.forget(ino, count)
        self.forgotten += len(dead)
        self.tree.bury(dead)
        if self.forgotten > _MANY_NODES:
            self.on_forgotten()

    def names(self, ino: int) -> list[tuple[int, bytes]]:
        """All known names of the object *ino*, unless it is a directory: (number of the directory, name)."""
        node = self.tree.nodes.get(ino)
        if node is None or node.directory is not None:
            return []
        return [(parent.ino, name) for parent, name in ((node.parent, node.name), *(node.links or ())) if parent is not None]

    def is_live(self, ino: int) -> bool:
        """Whether somebody still knows the node *ino*."""
        return self.tree.nodes.get(ino) is not None

    def give_back_memory(self) -> None:
        """Return to the system what forgotten nodes took; worth its time once ``forgotten`` is large."""
        if len(self.tree.nodes) < self.forgotten:
            # also empties the interpreter's free lists, whose few objects keep many megabyte arenas from being returned:
            # after a walk of 200,000 nodes 73 % of the growth come back without, 91 % with
            gc.collect()
        self.forgotten = 0
        self.tree.nodes.shrink()
        give_back_memory()

    def getattr(self, ino: int) -> tuple[Node, os.stat_result]:
        """The object *ino* and its attributes."""
        node = self.tree.node(ino)
        return self._shown(node, self.tree.fresh_stat(node))

    def links(self, node: Node, st: os.stat_result) -> int:
        """The link count to show for *node*."""
        return self.tree.links(node, st)

    @unlocking(0)
    def readlink(self, ino: int) -> bytes:
        """Target of the symlink *ino*."""
        path = self.tree.descriptors.path(self.tree.node(ino))
        if files.is_descriptor(path):
            return os.readlink(b"", dir_fd=int(path.rpartition(b"/")[2]))
        return os.readlink(path)

    def entries(self, ino: int, after: int) -> Iterator[tuple[bytes, int, Node | LayerEntry]]:
        """The listing of *ino* behind offset *after*, as (name, offset, what it is).

        "." and ".." come first, as Nodes and without counting. ``entry_node`` makes a Node of an entry and counts it. Offsets stay valid
        while the directory changes: nothing that is there throughout is missed or seen twice.
        """
        node = self.tree.directory(ino)
        if after < 1:
            self._catch_up(node, at_once=True)
            yield b".", 1, node
        if after < _DOTS:
            yield b"..", _DOTS, node.parent or node
        if node.orphan is not None:
            return
        for name, entry in self._index(ino).listing(after - _DOTS if after > _DOTS else 0):
            yield name, entry.cookie + _DOTS, entry

    @unlocking(0)
    def _index(self, ino: int) -> Index:
        return self.tree.index(self.tree.directory(ino))

    @unlocking((0, 1))
    def entry_node(self, parent: int, name: bytes, entry: LayerEntry) -> tuple[Node, os.stat_result]:
        """The object of an *entry* that ``entries`` gave, and its attributes. Not counted: whoever tells the kernel adds to ``lookups``."""
        try:
            return self._shown(*self.tree.resolve(self.tree.directory(parent), name, entry))
        except OSError as exc:
            if exc.errno == errno.ESTALE:  # another kind of object: it comes again at the end of the listing
                self.refresh_directory(self.tree.directory(parent))
                raise error(errno.ENOENT, name) from None
            raise

    @staticmethod
    def live_node(entry: LayerEntry) -> Node | None:
        """The Node of an *entry*, if it has one already."""
        node = entry.node
        return node if isinstance(node, Node) else None

    def release(self, node: Node) -> None:
        """Let go of a node from ``entry_node`` that the kernel was not told of after all."""
        self.tree.bury(self.tree.nodes.reap(node))

    def statfs(self) -> os.statvfs_result:
        """Of upper's filesystem, else of the topmost lower's."""
        return os.fstatvfs((self.stack.upper or self.stack.lowers[0]).root_fd)

    # -- data ------------------------------------------------------------------------------------------------------------

    @unlocking(0)
    def open(self, ino: int, flags: int, *, drop_suid: Caller | None = None) -> None:
        """What opening with *flags* demands at once: a copy in upper when it is for writing, truncation with O_TRUNC.

        *drop_suid*: as of ``setattr``.
        """
        self.refuse_opening(ino, flags)
        if flags & os.O_TRUNC:
            self.setattr(ino, Change(size=0), drop_suid=drop_suid)
        elif flags & os.O_ACCMODE != os.O_RDONLY:
            self._up(ino)
        else:
            self.tree.node(ino)

    def refuse_opening(self, ino: int, flags: int) -> None:
        """EPERM when file attributes forbid to open *ino* with *flags*: to be asked before anything is copied up for it."""
        refuse_opening(self.tree.descriptors.protection(self.tree.node(ino)), flags)

    def is_append_only(self, ino: int) -> bool:
        """Whether file attributes let *ino* only grow."""
        return bool(self.tree.descriptors.protection(self.tree.node(ino)) & APPEND)

    def data_fd(self, ino: int) -> int:
        """A descriptor of the data of the regular file *ino*, good until the next verb: for who wants the file itself."""
        return self.tree.descriptors.file_fd(self.tree.node(ino), writable=False)

    def read(self, ino: int, offset: int, size: int) -> bytes:
        """Up to *size* bytes; fewer only at the end of the file."""
        fd = self.tree.descriptors.file_fd(self.tree.node(ino), writable=False)
        data = os.pread(fd, size, offset)
        while data and len(data) < size:
            more = os.pread(fd, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def read_into(self, ino: int, offset: int, buffer: memoryview) -> int:
        """Fill *buffer*; less only at the end of the file. Returns how much that is."""
        fd = self.tree.descriptors.file_fd(self.tree.node(ino), writable=False)
        got = size = os.preadv(fd, (buffer,), offset)
        while size and got < len(buffer):
            size = os.preadv(fd, (buffer[got:],), offset + got)
            got += size
        return got

    def write(self, ino: int, offset: int, data: bytes | memoryview, *, drop_suid: Caller | None = None) -> int:
        """Write all of *data*, or as much as fits; returns how much that was.

        EPERM when file attributes forbid it: nobody may have asked when the file was opened. *drop_suid*: as of ``setattr``.
        """
        node = self.tree.node(ino)
        if node.protection != 0 and (protection := self.tree.descriptors.protection(node)):
            refuse(protection, APPEND if offset >= self.tree.stat(node).st_size else 0)
        fd = self._fd_to_change(node, drop_suid)
        written = os.pwrite(fd, data, offset)
        while written < len(data):
            try:
                written += os.pwrite(fd, memoryview(data)[written:], offset + written)
            except OSError:
                break  # the caller learns it from the short count, the error from his next write
        return written

    def appended(self, ino: int, offset: int, data: memoryview) -> int:
        """How many of *data*, pages that the kernel has collected and wants to have at *offset*, the append-only file *ino* has already.

        Pages begin before the end of the file. EPERM when they say something else there.
        """
        behind = self.tree.stat(self.tree.node(ino)).st_size - offset
        there = max(0, min(behind, len(data)))
        if self.read(ino, offset, there) != data[:there]:
            raise error(errno.EPERM)
        return there

    def seek(self, ino: int, offset: int, whence: int) -> int:
        """Where from *offset* on the next data, or the next hole, begin: os.SEEK_DATA, os.SEEK_HOLE; ENXIO behind the end."""
        return os.lseek(self.tree.descriptors.file_fd(self.tree.node(ino), writable=False), offset, whence)

    def allocate(self, ino: int, mode: int, offset: int, length: int, *, drop_suid: Caller | None = None) -> None:
        """fallocate(2) in any mode that the filesystem of upper has.

        EPERM when file attributes forbid it (vfs_fallocate). *drop_suid*: as of ``setattr``; the kernel does not say when.
        """
        node = self.tree.node(ino)
        refuse(self.tree.descriptors.protection(node), 0 if mode & ~files.FALLOC_KEEP_SIZE else APPEND)
        files.allocate(self._fd_to_change(node, drop_suid), mode, offset, length)

    def copy_range(
        self, source: int, offset: int, target: int, target_offset: int, length: int, *, drop_suid: Caller | None = None
    ) -> int:
        """copy_file_range(2) from the file *source* to the file *target*, which may be the same; returns how much was copied.

        EXDEV, EOPNOTSUPP where the filesystems below cannot: then the kernel copies by itself. EPERM when file attributes forbid to write
        to *target*, or to write anywhere but at its end. *drop_suid*: as of ``setattr``, and as of ``allocate``.
        """
        descriptors = self.tree.descriptors
        origin, node = self.tree.node(source), self.tree.node(target)
        refuse(descriptors.protection(node))
        fd = self._fd_to_change(node, drop_suid)
        return os.copy_file_range(descriptors.file_fd(origin, writable=False), fd, length, offset, target_offset)

    def _fd_to_change(self, node: Node, drop_suid: Caller | None) -> int:
        """Descriptor of the data of the file *node*, in upper, to write to."""
        bring_up(self.tree, node)
        fd = self.tree.descriptors.file_fd(node, writable=True)
        if drop_suid is not None:
            self._drop_suid(node, fd, drop_suid)
        return fd

    def _drop_suid(self, node: Node, fd: int, caller: Caller) -> None:
        """Take from the file *node*, which is open as *fd*, what a write by *caller* takes."""
        st, ownership = os.fstat(fd), node.layer.ownership
        if ownership is not PLAIN:
            st = ownership.read(st, fd)
        mode = self._mode_to_set(node, st, caller)
        if mode is not None:
            ownership.change(fd, None, None, mode)

    def _mode_to_set(self, node: Node, st: os.stat_result, caller: Caller) -> int | None:
        """What *caller* makes of the mode of *node* by writing to it, cutting it, giving it away; None where it stays."""
        if not st.st_mode & (stat.S_ISUID | stat.S_ISGID) or node.directory is not None:
            return None
        mode = without_suid(st.st_mode, caller.may_set_group_id(self._shown(node, st)[1].st_gid))
        return None if mode == st.st_mode else mode

    @unlocking(0)
    def sync_fd(self, ino: int) -> int | None:
        """A descriptor to fsync for *ino*, the caller's to close; None when nothing of it is in upper or nobody cares."""
        node = self.tree.node(ino)
        upper = self.stack.upper
        if node.layer is not upper or upper is None or not self.stack.sync:
            return None
        if node.directory is None and not self.tree.descriptors.is_metacopy(node):
            return os.dup(self.tree.descriptors.file_fd(node, writable=True))
        if node.orphan is not None:
            return None
        if node.directory is None:
            assert node.parent is not None
            return upper.open_file(self.tree.upper_fd(node.parent), node.name, os.O_RDONLY)
        return os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.tree.upper_fd(node))

    # -- copy-up ---------------------------------------------------------------------------------------------------------

    def is_up(self, ino: int) -> bool:
        """Whether *ino* is in upper."""
        return self.tree.node(ino).layer is self.stack.upper

    def begin_copy_up(
        self, ino: int, size: int | None = None, *, offset: int | None = None, data: bool = True, unless: int = 0
    ) -> Draft | DataDraft | None:
        """The Draft to build before *ino* can be changed, None when there is nothing to do.

        *size*: it will be truncated to that; *offset*: written to from there on. Without *data* only what is not its data will change.
        EPERM when file attributes forbid it, but for those in *unless*.
        """
        node = self.tree.node(ino)
        if node.layer is self.stack.upper and node.protection == 0 and not (data and node.ino in self.tree.descriptors.data):
            return None  # nearly always: every write and every change of attributes asks
        return self._begin_copy_up(ino, size, offset, data=data, unless=unless)

    @unlocking(0)
    def _begin_copy_up(
        self, ino: int, size: int | None, offset: int | None, *, data: bool, unless: int
    ) -> Draft | DataDraft | None:
        node = self.tree.node(ino)
        if protection := self.tree.descriptors.protection(node):
            grows = data and size is None and (offset is None or offset >= self.tree.stat(node).st_size)
            refuse(protection, unless | (APPEND if grows else 0))
        if node.directory is not None:
            return None
        return begin_copy_up(self.tree, node, size, data=data)

    def publish(self, ino: int, draft: Draft | DataDraft) -> None:
        """Put the built *draft* of *ino* in place; without the node (forgotten meanwhile) it is thrown away."""
        node = self.tree.nodes.get(ino)
        if node is None:
            draft.discard()
        else:
            publish(self.tree, node, draft)

    def take_renumbered(self) -> list[int]:
        """The directories whose listings show another number for an entry than the kernel may remember, since the last call."""
        renumbered = self.tree.renumbered
        if not renumbered:
            return []
        self.tree.renumbered = set()
        return [node.ino for node in renumbered if node.lookups or node is self.tree.root]

    def take_restamped(self) -> list[int]:
        """Numbers of the directories whose time of last change has moved on since the last call, because something was copied up."""
        restamped = self.tree.restamped
        if not restamped:  # nearly always: every write asks
            return []
        self.tree.restamped = set()
        return [node.ino for node in restamped if node.lookups or node is self.tree.root]

    def _up(self, ino: int, size: int | None = None, *, data: bool = True) -> Node:
        """*ino*, in upper; without *data* perhaps as a metacopy."""
        node = self.tree.node(ino)
        bring_up(self.tree, node, size, data=data)
        return node

    # -- attributes ------------------------------------------------------------------------------------------------------

    @unlocking(0)
    def setattr(self, ino: int, change: Change, *, drop_suid: Caller | None = None) -> tuple[Node, os.stat_result]:
        """Apply *change*: size, owner, mode, times, in this order (each may disturb those before it).

        *drop_suid*: who does it, when that takes suid and sgid away (FATTR_KILL_SUIDGID): sgid only of what the group may execute, or
        when he is neither in the group nor root (kernel setattr_should_drop_suidgid).

        EOPNOTSUPP for the mode of a symlink, as of any filesystem since Linux 6.6 (notify_change); chmod would go where it points.
        """
        node = self.tree.node(ino)
        if change.mode is not None and node.kind == stat.S_IFLNK:
            raise error(errno.EOPNOTSUPP)
        protection = self.tree.descriptors.protection(node)
        if protection and change != Change():
            refuse(protection, change.unless)
        tree = self.tree
        bring_up(tree, node, change.size, data=change.size is not None)
        if change.size is not None:
            os.ftruncate(tree.descriptors.file_fd(node, writable=True), change.size)
        place, mode = tree.descriptors.place(node), change.mode
        if drop_suid is not None and mode is None:  # by the group it had
            mode = self._mode_to_set(node, tree.stat(node), drop_suid)
        uid, gid = self._stored_owner(change.uid, change.gid)
        node.layer.ownership.change(place, uid, gid, mode)
        if protection and change.now:  # of what may only grow the times may be set to nothing else
            files.touch(place)
        elif change.atime_ns is not None or change.mtime_ns is not None:
            files.utimens(place, change.atime_ns, change.mtime_ns)
        return self._shown(node, tree.stat_at(node, place) if isinstance(place, int) else tree.stat(node))

    def _stored_owner(self, uid: int | None, gid: int | None) -> tuple[int | None, int | None]:
        """(uid, gid) on disk for those a user of the mount names; None stays None."""
        if self._owners is None:
            return uid, gid
        users, groups = self._owners.users, self._owners.groups
        return None if uid is None else users.stored(uid), None if gid is None else groups.stored(gid)

    def lacks_capability(self, ino: int) -> bool:
        """Whether *ino* is known to have no ``security.capability``: ``getxattr`` would say ENODATA, at twenty times the cost."""
        node = self.tree.nodes.get(ino)
        return node is not None and node.lacks_capability

    def getxattr(self, ino: int, name: bytes) -> bytes:
        """One attribute as a user of the mount names it; ENODATA, EOPNOTSUPP.

        Where there can be no ACL the answer is that there is none: of anything else the kernel makes an error of every permission check
        (__fuse_get_acl). Without SELinux an object that has no label is said to know of none: ls then asks no more, else of each object.
        """
        if name == CAPABILITY and self.lacks_capability(ino):
            raise error(errno.ENODATA)
        try:
            return self._xattr(ino, name)
        except OSError as exc:
            if exc.errno == errno.ENODATA and name == _LABEL and not self._selinux:
                raise error(errno.EOPNOTSUPP) from None
            raise

    def require_xattr(self, ino: int, name: bytes) -> None:
        """ENODATA unless the object has the attribute: before it is brought up to lose that."""
        self._xattr(ino, name)

    @unlocking(0)
    def _xattr(self, ino: int, name: bytes) -> bytes:
        node = self.tree.node(ino)
        stored = self._stored(name, node.layer)
        try:
            value = xattrs.get(self.tree.descriptors.place(node), stored)
        except OSError as exc:
            if name == CAPABILITY and exc.errno == errno.ENODATA:
                node.lacks_capability = True
            absent = exc.errno == errno.EOPNOTSUPP and name in (ACCESS, DEFAULT)
            if absent or exc.errno == errno.EOVERFLOW and name == CAPABILITY:  # of an idmapped layer: counts for nobody here
                raise error(errno.ENODATA) from None
            raise
        shown = self._shown_value(name, node.layer.ownership.value(name, value))
        if shown is None:
            raise error(errno.ENODATA)
        return shown

    def _is_to_be_seen(self, ino: int, name: bytes) -> bool:
        try:
            self._xattr(ino, name)
        except OSError as exc:
            if exc.errno != errno.ENODATA:
                raise
            return False
        return True

    def _shown_value(self, name: bytes, value: bytes) -> bytes | None:
        """An attribute's value with the ids that are shown, None when it is not to be seen."""
        if self._owners is None:
            return value
        if name in (ACCESS, DEFAULT):
            return self._owners.shown_acl(value)
        return self._owners.shown_capability(value) if name == CAPABILITY else value

    def _stored_value(self, name: bytes, value: bytes) -> bytes:
        """An attribute's value with the ids that are stored; EINVAL when there is none for one of them."""
        if self._owners is None:
            return value
        if name in (ACCESS, DEFAULT):
            return self._owners.stored_acl(value)
        return self._owners.stored_capability(value) if name == CAPABILITY else value

    @unlocking(0)
    def listxattr(self, ino: int) -> list[bytes]:
        """All names, as a user of the mount sees them."""
        node = self.tree.node(ino)
        try:
            own = map(node.layer.ownership.shown, xattrs.names(self.tree.descriptors.place(node)))
        except OSError as exc:
            if exc.errno == errno.EOPNOTSUPP:  # a mount point, which is not to be asked
                return []
            raise
        shown = [self.stack.names.shown(name) for name in own if name is not None]
        if self._owners is not None and CAPABILITY in shown and not self._is_to_be_seen(ino, CAPABILITY):
            shown.remove(CAPABILITY)
        return [name for name in shown if name is not None and (self._acl or name not in (ACCESS, DEFAULT))]

    @unlocking(0)
    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int = 0, *, kill_sgid: bool = False) -> None:
        """Set one; EEXIST, ENODATA with *flags* XATTR_CREATE, XATTR_REPLACE.

        *kill_sgid*: sgid goes as well, as the one who sets an access ACL is neither in the group nor root (posix_acl_update_mode).
        """
        self._stored(name, self.tree.node(ino).layer)  # before anything is copied up
        refuse(self.tree.descriptors.protection(self.tree.node(ino)))
        value = self._stored_value(name, value)
        node = self._up(ino, data=False)
        place = self.tree.descriptors.place(node)
        if name == CAPABILITY:
            node.lacks_capability = False
        xattrs.put(place, self._stored(name, node.layer), value, flags)
        if name == ACCESS:
            node.layer.ownership.follow_acl(place, value)
            mode = self.tree.stat(node).st_mode if kill_sgid else 0
            if mode & stat.S_ISGID:
                node.layer.ownership.change(place, None, None, mode & ~stat.S_ISGID)
        elif name == DEFAULT and node.directory is not None:
            node.directory.default_acl = None

    @unlocking(0)
    def removexattr(self, ino: int, name: bytes) -> None:
        """Remove one; ENODATA without it, and then nothing is copied up. An object in upper need not have the ACL that is removed."""
        node = self.tree.node(ino)
        stored = self._stored(name, node.layer)
        refuse(self.tree.descriptors.protection(node))
        if node.layer is not self.tree.upper:
            xattrs.get(self.tree.descriptors.place(node), stored)
        bring_up(self.tree, node, data=False)
        if name == DEFAULT and node.directory is not None:
            node.directory.default_acl = None
        try:
            xattrs.drop(self.tree.descriptors.place(node), self._stored(name, node.layer))
        except OSError as exc:
            if exc.errno != errno.ENODATA or name not in (ACCESS, DEFAULT):  # no ACL is not an error (vfs_remove_acl)
                raise

    def birth(self, ino: int) -> int | None:
        """When the topmost copy of *ino* was made, in nanoseconds (as ovl_getattr); None where its filesystem does not know."""
        try:
            return files.birth(self.tree.descriptors.path(self.tree.node(ino)))
        except OSError as exc:
            if exc.errno == errno.EOPNOTSUPP:  # a mount point, which is not to be asked
                return None
            raise

    @unlocking(0)
    def file_attributes(self, ino: int) -> int:
        """The flags that lsattr(1) shows of a file or directory (FS_IOC_GETFLAGS); ENOTTY for anything else, and where there are none."""
        return int.from_bytes(attributes(self.tree, self.tree.node(ino), FLAGS)[:4], sys.byteorder)

    @unlocking(0)
    def set_file_attributes(self, ino: int, flags: int) -> None:
        """Set them, as chattr(1) does. The kernel has asked before whether the caller is the owner, and for CAP_LINUX_IMMUTABLE."""
        set_attributes(self.tree, self.tree.node(ino), FLAGS, flags.to_bytes(4, sys.byteorder))

    @unlocking(0)
    def extended_file_attributes(self, ino: int) -> bytes:
        """The same as struct fsxattr, with the project (FS_IOC_FSGETXATTR)."""
        return attributes(self.tree, self.tree.node(ino), FSXATTR)

    @unlocking(0)
    def set_extended_file_attributes(self, ino: int, value: bytes) -> None:
        """Set them from a struct fsxattr."""
        set_attributes(self.tree, self.tree.node(ino), FSXATTR, value)

    def _stored(self, name: bytes, layer: Layer) -> bytes:
        """The name of an attribute on disk in *layer*.

        EOPNOTSUPP for an ACL under noacl, EINVAL for nothing but our prefix (xattr_resolve_name).
        """
        if not self._acl and name in (ACCESS, DEFAULT):
            raise error(errno.EOPNOTSUPP)
        if name == self.stack.names.prefix:
            raise error(errno.EINVAL)
        return layer.ownership.stored(self.stack.names.stored(name))

    # -- making ----------------------------------------------------------------------------------------------------------

    @unlocking((0, 1))
    def make_file(self, parent: int, name: bytes, mode: int, caller: Caller) -> tuple[Node, os.stat_result]:
        """A new regular file; EEXIST. Counts, as all of these. ``read`` and ``write`` work at once."""

        fd = -1

        def make(dir_fd: int, at: bytes, mode: int) -> int:
            nonlocal fd
            fd = os.open(at, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, stat.S_IMODE(mode), dir_fd=dir_fd)
            return fd

        try:
            made = self._made(parent, name, stat.S_IFREG | mode, caller, make)
        except BaseException:
            if fd >= 0:
                os.close(fd)
            raise
        self.tree.descriptors.keep_file(made[0], fd)
        return made

    @unlocking((0, 1))
    def make_directory(self, parent: int, name: bytes, mode: int, caller: Caller) -> tuple[Node, os.stat_result]:
        """A new directory, opaque where one was deleted: nothing of the lowers comes back in it."""
        return self._made(
            parent, name, stat.S_IFDIR | mode, caller, lambda dir_fd, at, mode: os.mkdir(at, stat.S_IMODE(mode), dir_fd=dir_fd)
        )

    @unlocking((0, 1))
    def make_special(
        self, parent: int, name: bytes, mode: int, device: int, caller: Caller
    ) -> tuple[Node, os.stat_result]:
        """mknod; *mode* with its type. EPERM for a character device 0:0, which would be a whiteout (ovl_mknod)."""
        if stat.S_ISCHR(mode) and device == 0:
            raise error(errno.EPERM)

        def make(dir_fd: int, at: bytes, mode: int) -> None:
            os.mknod(at, self.tree.upper.ownership.backing(mode), device, dir_fd=dir_fd)

        return self._made(parent, name, mode, caller, make, device)

    @unlocking((0, 1))
    def make_symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> tuple[Node, os.stat_result]:
        """A symlink to *target*."""
        return self._made(
            parent, name, stat.S_IFLNK | 0o777, caller, lambda dir_fd, at, _: os.symlink(target, at, dir_fd=dir_fd)
        )

    @unlocking(0)
    def make_unnamed(self, parent: int, mode: int, caller: Caller) -> tuple[Node, os.stat_result]:
        """A regular file without a name, as it would be in the directory *parent*: what O_TMPFILE wants. Counts.

        ``link`` makes it an ordinary one; until then it is gone when it is forgotten. EOPNOTSUPP where the filesystem of upper has none.
        """
        return self._shown(*self._maker.unnamed(self.tree.directory(parent), mode, caller))

    def _made(
        self, parent: int, name: bytes, mode: int, caller: Caller, make: Callable[[int, bytes, int], int | None], device: int = 0
    ) -> tuple[Node, os.stat_result]:
        return self._shown(*self._maker.make(self.tree.directory(parent), name, mode, caller, make, device))

    @unlocking(0, (1, 2))
    def link(self, ino: int, parent: int, name: bytes) -> tuple[Node, os.stat_result]:
        """One more name for *ino*, or a first. EPERM for a directory, ENOENT when it has no name left."""
        node = self.tree.node(ino)
        if node.directory is not None:
            raise error(errno.EPERM)
        tree = self.tree
        refuse(tree.descriptors.protection(node))
        directory = self._maker.vacant(tree.directory(parent), name)
        if node.orphan is not None:
            at_fd, at = self._maker.workplace(directory, name)
            tree.orphans.link(node, at_fd, at)
        else:
            assert node.parent is not None
            bring_up(tree, node, data=False)
            redirect_file(tree, node)
            tree.pass_on_impurity(node.parent, directory)
            source = tree.upper_fd(node.parent)
            at_fd, at = self._maker.workplace(directory, name)
            os.link(node.name, at, src_dir_fd=source, dst_dir_fd=at_fd, follow_symlinks=False)
        try:
            self._maker.settle(directory, name, at_fd, at, False)
        except BaseException:
            tree.work.discard(at)
            raise
        entry = self._maker.enter(directory, name, stat.S_IFREG)
        tree.add_name(node, directory, name, entry)
        node.lookups += 1
        st = tree.stat(node)
        entry.kind = stat.S_IFMT(st.st_mode)
        return self._shown(node, st)

    # -- removing and moving ---------------------------------------------------------------------------------------------

    @unlocking((0, 1))
    def unlink(self, parent: int, name: bytes) -> None:
        """Remove a non-directory; whoever has it open goes on using it."""
        directory = self.tree.directory(parent)
        entry = self.tree.need(directory, name)
        if entry.kind == stat.S_IFDIR:
            raise error(errno.EISDIR, name)
        self._remove(directory, name, entry)

    @unlocking((0, 1))
    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory; ENOTDIR, ENOTEMPTY."""
        tree = self.tree
        directory = tree.directory(parent)
        entry = tree.need(directory, name)
        if entry.kind != stat.S_IFDIR:
            raise error(errno.ENOTDIR, name)
        node, _ = tree.resolve(directory, name, entry)
        if tree.index(node).entries:
            tree.refuse_removal(directory, name, entry)
            raise error(errno.ENOTEMPTY, name)
        self._remove(directory, name, entry)

    def _remove(self, directory: Node, name: bytes, entry: LayerEntry) -> None:
        tree = self.tree
        tree.refuse_removal(directory, name, entry)
        copy_up_directory(tree, directory)
        tree.settle_whiteout(directory, name)
        index = tree.index(directory)
        node = entry.node if isinstance(entry.node, Node) else None
        if tree.hard_links is not None and entry.kind != stat.S_IFDIR:
            node, _ = tree.resolve(directory, name, entry)
            bring_name_up(tree, node, directory, name, entry)
        orphan = tree.orphans.prepare(node, directory, name) if node is not None and tree.is_last_name(node) else None
        try:
            self._take_away(directory, name, entry, orphan)
        except BaseException:
            if orphan is not None:
                tree.orphans.abandon(orphan)
            raise
        index.remove(name)
        if entry.below or entry.source is not self.stack.upper:
            index.whiteouts.add(name)
        if node is None or tree.drop_name(node, directory, name, last=orphan is not None):
            return
        if orphan is not None:
            tree.make_orphan(node, orphan)
        tree.bury(tree.nodes.reap(node))

    def _take_away(self, directory: Node, name: bytes, entry: LayerEntry, orphan: Orphan | None) -> None:
        """Remove *name* from upper, or cover it by a whiteout when something is below.

        A directory goes to work first: it may hold whiteouts.
        """
        tree = self.tree
        upper_fd, work = tree.upper_fd(directory), tree.work
        if entry.source is not tree.upper:
            work.cover(upper_fd, name)
            return
        if entry.kind != stat.S_IFDIR:
            if entry.below:
                work.remove_covered(upper_fd, name)
            else:
                os.unlink(name, dir_fd=upper_fd)
            return
        keep_as = None if orphan is None else orphan.work_name
        gone = keep_as or work.name()
        if entry.below:
            work.take_covered(upper_fd, name, gone)
        else:
            files.renameat2(upper_fd, name, work.fd, gone)
        if keep_as is None:
            work.discard(gone)

    @unlocking((0, 1), (2, 3))
    def rename(self, old_parent: int, old: bytes, new_parent: int, new: bytes, flags: int = 0) -> None:
        """renameat2 with NOREPLACE or EXCHANGE; EINVAL for other flags, EXDEV for a directory that cannot be redirected."""
        rename(self.tree, self.tree.directory(old_parent), old, self.tree.directory(new_parent), new, flags)

    @unlocking((0, 1))
    def to_bring_up_first(self, parent: int, name: bytes) -> list[int]:
        """The files that unlinking *name* would copy up: one of several names in a lower that stay one file (ovl_nlink_start)."""
        tree = self.tree
        directory = tree.nodes.get(parent)
        if tree.hard_links is None or directory is None or directory.directory is None:
            return []
        entry = tree.find(directory, name)
        node = None if entry is None or entry.kind == stat.S_IFDIR else tree.resolve(directory, name, entry)[0]
        if entry is None or node is None or node.layer is tree.upper or not tree.hard_links.is_tied(node):
            return []
        tree.hard_links.prefer_name(node, directory, name, entry)
        return [node.ino]

    @unlocking((0, 1), (2, 3))
    def to_bring_up(self, old_parent: int, old: bytes, new_parent: int, new: bytes, flags: int) -> list[int]:
        """The files that a rename would copy up: for callers who want to do that part beforehand."""
        tree = self.tree
        return [node.ino for node in to_bring_up(tree, tree.directory(old_parent), old, tree.directory(new_parent), new, flags)]

    def close(self) -> None:
        """Give back everything: descriptors, what unlinked files left in work, the locks."""
        self.tree.close()
        self.stack.close()
