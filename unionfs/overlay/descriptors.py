"""From a node to its backing object: descriptors of it from bounded caches, a path for system calls that take no descriptor.

The tree owns the only ``Descriptors``; whatever opens, reads or changes a backing object asks it: the verbs (union.py, rename.py,
redirect.py), bring_up.py, orphans.py and hard_links.py, refresh.py, and what works without a mount (check.py, convert.py, diff.py). File
attributes are read here, too: a file that may only grow has to be opened so.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from unionfs.errors import error
from unionfs.linux import files, xattrs
from unionfs.overlay.backing import FdCache
from unionfs.overlay.layer import Layer
from unionfs.overlay.lookup import Data
from unionfs.overlay.node import Node
from unionfs.overlay.protection import APPEND, decode
from unionfs.overlay.stack import Stack
from unionfs.overlay.unlocked import Lender, Loose


class Descriptors:
    """Descriptors of the objects in *stack*, *share* of each kind at most."""

    def __init__(self, stack: Stack, lender: Lender, share: int) -> None:
        self._stack = stack
        self._lender = lender
        self._directories: FdCache[tuple[Node, Layer]] = FdCache(share)
        self._files: FdCache[tuple[int, bool]] = FdCache(share)
        #: O_PATH descriptors of objects that no path may stand for; by number, and whether of the writable copy.
        self._objects: FdCache[tuple[int, bool]] = FdCache(share)
        #: Where the data of metacopies are, by number.
        self.data: dict[int, Data] = {}
        #: The node that stands for the index of hard links, if there is one.
        self.index_directory: Node | None = None

    def __len__(self) -> int:
        return len(self._directories) + len(self._files) + len(self._objects)

    def directory_fd(self, node: Node, layer: Layer) -> int:
        """O_PATH descriptor of *layer*'s copy of the directory *node*; borrowed from a cache, for use within one verb."""
        if node.parent is None and node.orphan is None:
            return layer.root_fd
        key = (node, layer)
        fd = self._directories.get(key)
        if fd is None:
            fd = self._open_directory(node, layer)
            self._directories.put(key, fd)
        return fd

    def _open_directory(self, node: Node, layer: Layer) -> int:
        if node.orphan is not None:
            raise error(errno.ENOENT, node.name)
        if node is self.index_directory and self._stack.index is not None:
            return os.dup(self._stack.index.fd)
        return layer.open_directory(self.directory_path(node, layer))

    def directory_path(self, node: Node, layer: Layer) -> bytes:
        """Where *layer* has the directory *node*."""
        if layer is self._stack.upper:
            return node.path()
        assert node.directory is not None
        for lower, path in node.directory.lowers:
            if lower is layer:
                return path
        raise error(errno.ESTALE, node.name)

    def file_fd(self, node: Node, *, writable: bool) -> int:
        """A descriptor of the data of the regular file *node*, borrowed as ``directory_fd``. Writable only when the file is in upper."""
        fd = self._files.get((node.ino, True))
        if fd is not None:
            return fd
        if not writable:
            return self._files.open((node.ino, False), lambda: self.open_file(node, os.O_RDONLY))
        fd = self.open_file(node, os.O_RDWR | (os.O_APPEND if self.protection(node) & APPEND else 0))
        self._files.put((node.ino, True), fd)
        self._files.drop((node.ino, False))
        return fd

    def keep_file(self, node: Node, fd: int) -> None:
        """Cache *fd*, open for reading and writing, as the data of *node*."""
        self._files.put((node.ino, True), fd)

    def take_file(self, node: Node) -> int | None:
        """The cached descriptor of the data of *node*, the writable one if there is one, from now on the caller's to close."""
        fd = self._files.take((node.ino, True))
        return self._files.take((node.ino, False)) if fd is None else fd

    def open_file(self, node: Node, flags: int) -> int:
        """A new descriptor of *node*'s topmost copy, the caller's to close; with O_RDONLY of its data, wherever they are."""
        try:
            return self._open_allowed(node, flags)
        except PermissionError as exc:
            above = () if node.parent is None else (node.parent,)
            return self._lender.retry(exc, partial(self._open_allowed, node, flags), above, lambda: [self.own_place(node)])

    def _open_allowed(self, node: Node, flags: int) -> int:
        orphan = node.orphan
        if flags == os.O_RDONLY and (data := self.data.get(node.ino)) is not None:
            return self._open_data(data)
        if orphan is None:
            assert node.parent is not None
            return node.layer.open_file(self.directory_fd(node.parent, node.layer), node.name, flags)
        if orphan.fd >= 0:
            return files.reopen(orphan.fd, flags)
        if orphan.work_name is not None:
            return os.open(orphan.work_name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._work_fd)
        with self.orphan_directory(node) as (dir_fd, name):
            return node.layer.open_file(dir_fd, name, flags)

    def _open_data(self, data: Data) -> int:
        """The data of a metacopy, for reading. EIO when no data-only layer has them as a regular file (ovl_maybe_lookup_lowerdata)."""
        parent, _, name = data.path.rpartition(b"/")
        for layer in self._stack.data if data.layer is None else (data.layer,):
            fd = self._data_in(layer, parent, name)
            if fd >= 0:
                return fd
        raise error(errno.EIO, data.path)

    @staticmethod
    def _data_in(layer: Layer, parent: bytes, name: bytes) -> int:
        """A descriptor of *name* in the directory *parent* of *layer*, for reading; -1 where that is no regular file."""
        try:
            directory = layer.open_directory(parent)
        except (FileNotFoundError, NotADirectoryError):
            return -1
        try:
            return layer.open_file(directory, name, os.O_RDONLY) if stat.S_ISREG(layer.stat(directory, name).st_mode) else -1
        except FileNotFoundError:
            return -1
        finally:
            os.close(directory)

    def is_metacopy(self, node: Node) -> bool:
        """Whether the data of *node* are not with its topmost copy."""
        return node.ino in self.data

    def drop_lower_data(self, node: Node) -> None:
        """The data of *node* are with its topmost copy from now on: what is open of those in a lower is closed."""
        self.data.pop(node.ino, None)
        self._files.drop((node.ino, False))

    def own_place(self, node: Node) -> Node | Loose:
        """*node*, or where in work it is."""
        orphan = node.orphan
        return node if orphan is None or orphan.work_name is None else (self._work_fd, orphan.work_name)

    def place(self, node: Node) -> files.Place:
        """*node*'s topmost copy, valid within one verb: a descriptor if one is open for writing, else its ``path``."""
        opened = self._files.get((node.ino, True))
        return self.path(node) if opened is None else opened

    def path(self, node: Node) -> bytes:
        """A ``files.path_at`` path of *node*'s topmost copy, valid within one verb. EOPNOTSUPP for a mount point in no private clone."""
        orphan = node.orphan
        if orphan is None:
            if node.parent is None:
                return files.path_at(node.layer.root_fd, b"")
            if node.layer.private:
                return files.path_at(self.directory_fd(node.parent, node.layer), node.name)
        elif orphan.fd >= 0:
            return files.path_at(orphan.fd, b"")
        elif orphan.work_name is not None:
            return files.path_at(self._work_fd, orphan.work_name)
        try:
            fd = self._objects.open((node.ino, node.layer is self._stack.upper), lambda: self.open_file(node, os.O_PATH))
        except OSError as exc:
            raise error(errno.EOPNOTSUPP) if exc.errno == errno.EXDEV else exc from None
        return files.path_at(fd, b"")

    @contextmanager
    def orphan_directory(self, node: Node) -> Iterator[tuple[int, bytes]]:
        """(directory descriptor, name) of an orphan that lives on in a lower; ESTALE for one that does not live on."""
        assert node.orphan is not None
        if node.orphan.path is None:
            raise error(errno.ESTALE, node.name)
        parent, _, name = node.orphan.path.rpartition(b"/")
        fd = node.layer.open_directory(parent)
        try:
            yield fd, name
        finally:
            os.close(fd)

    @property
    def _work_fd(self) -> int:
        """Of the work directory, which is there if something has a name in it."""
        assert self._stack.work is not None
        return self._stack.work.fd

    def forget(self, node: Node) -> None:
        """Close what is cached of *node*: it is opened anew when it is needed."""
        self._files.drop((node.ino, True))
        self._files.drop((node.ino, False))
        self.drop_objects(node)
        if node.directory is not None:
            self.drop_directories(node)

    def drop_objects(self, node: Node) -> None:
        """Close what ``place`` has opened of *node*."""
        self._objects.drop((node.ino, True))
        self._objects.drop((node.ino, False))

    def drop_directories(self, node: Node) -> None:
        """Close what is cached of the directory *node* in all layers."""
        assert node.directory is not None
        for layer, _ in node.directory.lowers:
            self._directories.drop((node, layer))
        if self._stack.upper is not None:
            self._directories.drop((node, self._stack.upper))

    def close(self) -> None:
        """Close everything."""
        self._directories.clear()
        self._files.clear()
        self._objects.clear()

    def protection(self, node: Node) -> int:
        """The file attributes of *node* that forbid changes: read once, as nobody else may change the layers."""
        if node.protection is None:
            if node.parent is None:  # an orphan has none, or it would still have its name
                node.protection = 0 if node.orphan is not None else self.protection_at(node.layer, node.layer.root_fd, b"")
            else:
                node.protection = self._protection_allowed(node, node.parent)
        return node.protection

    def _protection_allowed(self, node: Node, parent: Node) -> int:
        try:
            return self._named_protection(node, parent)
        except PermissionError as exc:
            return self._lender.retry(exc, partial(self._named_protection, node, parent), [parent], lambda: ())

    def _named_protection(self, node: Node, parent: Node) -> int:
        return self.protection_at(node.layer, self.directory_fd(parent, node.layer), node.name)

    def protection_at(self, layer: Layer, dir_fd: int, name: bytes) -> int:
        """The same of *name* in the directory *dir_fd* of *layer*, or of that itself (b""), as on disk now."""
        found = layer.protection(dir_fd, name)
        if layer is self._stack.upper:
            try:
                kept = layer.attribute(dir_fd, name, self._stack.names.protattr) if name else xattrs.find(
                    files.path_at(dir_fd, b""), self._stack.names.protattr
                )  # fmt: skip
            except PermissionError:  # a user's file without a mode
                kept = None
            return found if kept is None else decode(kept)
        return found
