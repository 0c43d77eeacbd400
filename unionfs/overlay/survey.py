"""One layer as it is on disk, object by object with the marks of every program, nothing interpreted. fsck and convert stand on this.

A live mount may change the layer meanwhile: what vanishes is left out.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

from unionfs.linux import files, xattrs
from unionfs.overlay.features import Features
from unionfs.overlay.layer import Layer
from unionfs.overlay.stack import Stack, open_stack
from unionfs.overlay.unlocked import unlocked, where_allowed
from unionfs.overlay.whiteout import is_whiteout_device

#: Namespaces of overlay marks: the kernel's two, and fuse-overlayfs's own.
PREFIXES = (b"trusted.overlay.", b"user.overlay.", b"user.fuseoverlayfs.")
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


@dataclass(frozen=True)
class Object:
    """One name in a directory. ``marks``: its attributes in the namespaces PREFIXES."""

    name: bytes
    st: os.stat_result
    marks: Mapping[bytes, bytes]

    @property
    def is_directory(self) -> bool:
        """Whether it is one."""
        return stat.S_ISDIR(self.st.st_mode)

    @property
    def is_file(self) -> bool:
        """Whether it is a regular one."""
        return stat.S_ISREG(self.st.st_mode)

    @property
    def is_device_whiteout(self) -> bool:
        """Whether it is a whiteout as the kernel makes it."""
        return is_whiteout_device(self.st)


@dataclass(frozen=True)
class Listing:
    """A directory: ``path`` from the root of the layer (empty: the root), ``fd`` an O_PATH descriptor good until the next is asked for."""

    path: bytes
    fd: int
    marks: Mapping[bytes, bytes]
    objects: Sequence[Object]

    def below(self, name: bytes) -> bytes:
        """The path of *name* in it."""
        return self.path + b"/" + name if self.path else name


def walk(layer: Layer, *, lend: bool = False) -> Iterator[Listing]:
    """Every directory of *layer*, each before those in it. What the caller does to the names in a listing it may do.

    *lend*: the layer is an upper that is being changed, and the modes of what its owner has there are no obstacle (see unlocked.py): each
    directory has its owner's bits until the next is asked for. An error for lack of permission names the object.
    """
    todo = [b""]
    while todo:
        path = todo.pop()
        try:
            fd = _open_lent(layer, path) if lend else layer.open_directory(path)
        except OSError as exc:
            if path and exc.errno in (*_GONE, errno.EXDEV):  # EXDEV: a mount point, in a layer that is no private clone
                continue
            raise
        try:
            with unlocked(fd) if lend else nullcontext():
                with _named(os.path.join(layer.where, path)):
                    marks = marks_at(files.path_at(fd, b""))
                listing = Listing(path, fd, marks, tuple(_objects(layer, path, fd, lend=lend)))
                yield listing
            todo += [listing.below(found.name) for found in listing.objects if found.is_directory]
        finally:
            os.close(fd)


def _open_lent(layer: Layer, path: bytes) -> int:
    """``open_directory``, with the bits of each directory on the way lent in turn where it cannot be entered without."""
    try:
        return layer.open_directory(path)
    except PermissionError:
        if not path:
            raise
    parent, _, name = path.rpartition(b"/")
    fd = _open_lent(layer, parent)
    try:
        with unlocked(fd), _named(os.path.join(layer.where, path)):
            return layer.open_file(fd, name, os.O_PATH | os.O_DIRECTORY)
    finally:
        os.close(fd)


@contextmanager
def _named(path: bytes) -> Iterator[None]:
    """A lack of permission in the block is told of *path*, as the user knows the object."""
    try:
        yield
    except PermissionError as exc:
        raise OSError(exc.errno, exc.strerror, path) from exc


def _objects(layer: Layer, directory: bytes, dir_fd: int, *, lend: bool) -> Iterator[Object]:
    fd = layer.open_to_read(dir_fd)
    try:
        names = sorted(os.fsencode(name) for name in os.listdir(fd))
    finally:
        os.close(fd)
    for name in names:
        try:
            st = layer.stat(dir_fd, name)
            where = os.path.join(layer.where, directory, name)
            with layer.object_path(dir_fd, name) as path, _named(where):
                read = partial(marks_at, path)
                marks = where_allowed(read, dir_fd, name, where) if lend else read()
        except OSError as exc:
            if exc.errno in (*_GONE, errno.EXDEV):
                continue
            raise
        yield Object(name, st, marks)


def marks_at(path: bytes) -> dict[bytes, bytes]:
    """The overlay attributes of the object at a ``files.path_at`` path, of every namespace."""
    found = {}
    for name in xattrs.names(path):
        if name.startswith(PREFIXES):
            value = xattrs.find(path, name)
            if value is not None:
                found[name] = value
    return found


def open_for_reading(upper: bytes, lowers: Sequence[bytes], features: Features, data: Sequence[bytes] = ()) -> Stack:
    """*upper* on top of *lowers*, all of them lowers of a union that writes nothing and disturbs no mount. LayerError."""
    stack = open_stack([upper, *lowers], None, None, features, data=data)
    top = os.fstat(stack.lowers[0].root_fd)
    for layer in (*stack.lowers[1:], *stack.data):
        layer.traps = frozenset({(top.st_dev, top.st_ino)})
    return stack
