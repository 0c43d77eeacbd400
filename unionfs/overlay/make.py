"""Making objects: in place where one call makes them right, else in work, endowed and then moved to their name.

What the verbs of union.py that make something stand on. Attributes are as they are stored; the union shows them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from unionfs.errors import error
from unionfs.linux import files, xattrs
from unionfs.overlay.acl import ACCESS, DEFAULT, inherit
from unionfs.overlay.bring_up import copy_up_directory
from unionfs.overlay.node import LayerEntry, Node
from unionfs.overlay.ownership import PLAIN
from unionfs.overlay.protection import APPEND, refuse
from unionfs.overlay.tree import NAME_MAX, Tree
from unionfs.overlay.whiteout import OPAQUE


class Caller(NamedTuple):
    """Who asks: owner of what is made. ``in_group`` answers whether he is a member of a group besides ``gid``.

    ``umask``: what is taken from the mode of what he makes, unless the directory's default ACL decides; 0 where the kernel has seen to it.
    """

    uid: int
    gid: int
    in_group: Callable[[int], bool] = lambda _gid: False
    umask: int = 0

    def may_set_group_id(self, gid: int) -> bool:
        """Whether a file of the group *gid* (as it is shown) may have sgid if he says so (kernel in_group_or_capable)."""
        return self.uid == 0 or self.gid == gid or self.in_group(gid)


class Maker:
    """Makes objects in *tree*. Without *acl* nothing inherits any."""

    def __init__(self, tree: Tree, *, acl: bool) -> None:
        self._tree = tree
        self._acl = acl
        self._owner = os.geteuid(), os.getegid()
        self._owners = tree.stack.features.owners

    def vacant(self, directory: Node, name: bytes) -> Node:
        """*directory*, in upper, where *name* may be made.

        EEXIST, ENOENT (directory removed), ENAMETOOLONG, EROFS, EINVAL (a name that would be a mark).
        """
        tree = self._tree
        if tree.find(directory, name) is not None:
            raise error(errno.EEXIST, name)
        if len(name) > NAME_MAX:
            raise error(errno.ENAMETOOLONG)
        if tree.stack.names.is_mark(name):
            raise error(errno.EINVAL, name)
        if directory.orphan is not None:
            raise error(errno.ENOENT)
        refuse(tree.descriptors.protection(directory), APPEND)
        copy_up_directory(tree, directory)
        tree.settle_whiteout(directory, name)
        return directory

    def make(
        self, directory: Node, name: bytes, mode: int, caller: Caller, make: Callable[[int, bytes, int], int | None], device: int = 0
    ) -> tuple[Node, os.stat_result]:
        """Make an object by ``make(dir_fd, name, mode)``, which returns its descriptor if it has opened one.

        In place where one call makes it right; over a whiteout, or for an owner other than ourselves, it is built in work and moved in.
        """
        tree = self._tree
        self.vacant(directory, name)
        at_fd, at = self.workplace(directory, name, direct=self._is_ours(caller))
        mode = self._masked(directory, mode, caller)
        opened = make(at_fd, at, mode)
        if at_fd == tree.work.fd:
            try:
                self._endow(directory, files.path_at(at_fd, at) if opened is None else opened, mode, caller, device)
                self._settle_allowed(directory, name, at_fd, at, stat.S_ISDIR(mode))
            except BaseException:
                tree.work.discard(at)
                raise
        entry = self.enter(directory, name, stat.S_IFMT(mode))
        try:
            node, st = tree.made(directory, name, entry)
        except PermissionError as exc:  # the verb must not be done again: the object is there
            node, st = tree.lender.retry(exc, partial(tree.made, directory, name, entry), [directory], lambda: ())
        node.lookups += 1
        return node, st

    def unnamed(self, directory: Node, mode: int, caller: Caller) -> tuple[Node, os.stat_result]:
        """A regular file without a name, as it would be in *directory*. Counts."""
        tree = self._tree
        if directory.orphan is not None:
            raise error(errno.ENOENT)
        refuse(tree.descriptors.protection(directory), APPEND)
        copy_up_directory(tree, directory)
        mode = self._masked(directory, stat.S_IFREG | mode, caller)
        fd = os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=tree.work.fd)
        try:
            self._endow(directory, fd, mode, caller, 0)
            node, st = tree.made_unnamed(fd)
        except BaseException:
            os.close(fd)
            raise
        tree.descriptors.keep_file(node, fd)
        node.lookups += 1
        return node, st

    def _masked(self, directory: Node, mode: int, caller: Caller) -> int:
        """The *mode* with which something is made in *directory*: a default ACL takes the place of the umask (posix_acl_create).

        Under noacl there is none for the umask, though the filesystem below may go by it all the same (mode_strip_umask).
        """
        if stat.S_ISLNK(mode) or self._acl and self._default_acl(directory):
            return mode
        return mode & ~caller.umask

    def _default_acl(self, directory: Node) -> bytes:
        """What is made in *directory*, which is in upper, inherits; empty where there is none. Every verb that makes something asks."""
        assert directory.directory is not None
        found = directory.directory.default_acl
        if found is None:
            found = xattrs.find(files.path_at(self._tree.upper_fd(directory), b""), DEFAULT) or b""
            directory.directory.default_acl = found
        return found

    def _is_ours(self, caller: Caller) -> bool:
        """Whether what we make is as *caller* must have it, with no more done to it."""
        return self._tree.upper.ownership.attribute is None and self._stored_owner(caller) == self._owner

    def workplace(self, directory: Node, name: bytes, *, direct: bool = True) -> tuple[int, bytes]:
        """Where to make *name*: in place when *direct* and no whiteout is in the way, else in work."""
        if direct and name not in self._tree.index(directory).whiteouts:
            return self._tree.upper_fd(directory), name
        return self._tree.work.fd, self._tree.work.name()

    def _endow(self, directory: Node, place: files.Place, mode: int, caller: Caller, device: int) -> None:
        """Give what was made in work, and is at *place*, what it would have got in *directory*: owner, setgid group, default ACL, mode."""
        ownership = self._tree.upper.ownership
        above = self._tree.upper_fd(directory)
        parent = os.fstat(above)
        if ownership is not PLAIN:
            parent = ownership.read(parent, files.path_at(above, b""))
        uid, gid = self._stored_owner(caller)
        if parent.st_mode & stat.S_ISGID:
            gid = parent.st_gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
            elif mode & (stat.S_ISGID | stat.S_IXGRP) == stat.S_ISGID | stat.S_IXGRP:
                privileged = caller.may_set_group_id(self._shown(parent).st_gid)
                mode = mode if privileged else mode & ~stat.S_ISGID
        ownership.own(place, uid, gid)
        default = b"" if stat.S_ISLNK(mode) else self._default_acl(directory)
        if default:
            mode, access = inherit(default, mode)
            if access is not None:
                xattrs.put(place, ACCESS, access)
            if stat.S_ISDIR(mode):
                xattrs.put(place, DEFAULT, default)
        ownership.complete(place, uid, gid, mode, device)

    def _settle_allowed(self, directory: Node, name: bytes, at_fd: int, at: bytes, is_dir: bool) -> None:
        step = partial(self.settle, directory, name, at_fd, at, is_dir)
        try:
            step()
        except PermissionError as exc:
            self._tree.lender.retry(exc, step, [directory], lambda: [(at_fd, at)])

    def settle(self, directory: Node, name: bytes, at_fd: int, at: bytes, is_dir: bool) -> None:
        """Move what was made in work to its name, in one step that also takes the whiteout away."""
        tree = self._tree
        if at_fd != tree.work.fd:
            return
        upper_fd = tree.upper_fd(directory)
        if name not in tree.index(directory).whiteouts:
            files.renameat2(at_fd, at, upper_fd, name, files.RENAME_NOREPLACE if is_dir else 0)
            return
        if is_dir:
            xattrs.put(files.path_at(at_fd, at), self._tree.stack.names.opaque, OPAQUE)
        tree.work.place_over_whiteout(at, upper_fd, name, directory=is_dir)

    def enter(self, directory: Node, name: bytes, kind: int) -> LayerEntry:
        """The index entry of what was just made; a whiteout that was there says that something is below."""
        index = self._tree.index(directory)
        entry = index.add(name, self._tree.upper, kind)
        entry.below = name in index.whiteouts
        index.whiteouts.discard(name)
        return entry

    def _stored_owner(self, caller: Caller) -> tuple[int, int]:
        """(uid, gid) on disk of what *caller* makes."""
        if self._owners is None:
            return caller.uid, caller.gid
        return self._owners.users.stored(caller.uid), self._owners.groups.stored(caller.gid)

    def _shown(self, st: os.stat_result) -> os.stat_result:
        return st if self._owners is None else self._owners.shown(st)
