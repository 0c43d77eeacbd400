"""Where the lower part of a name is: the way down through the layers as the kernel goes it (fs/overlayfs/namei.c ovl_lookup).

A directory merges with the directories of its name in the layers below, down to the first opaque one. A *redirect* on it sends the way
elsewhere: to another name in the same parent, or to an absolute path looked up from the root of the layers below. A *metacopy*, a regular
file with attributes only, finds its data the same way.

Most names never meet any of this: ``lower_directories`` takes the layers the merged listing has found, and only where a redirect turns up
does a ``_Way`` go down by itself.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from typing import NamedTuple

from unionfs.overlay.layer import Layer
from unionfs.overlay.stack import Stack
from unionfs.overlay.whiteout import check_metacopy, read_redirect

#: A layer and a path in it.
Place = tuple[Layer, bytes]


class Data(NamedTuple):
    """Where the data of a metacopy is. ``layer`` None: at *path* in one of the data-only layers, looked for when it is needed."""

    layer: Layer | None
    path: bytes


def lower_directories(
    stack: Stack, above: Sequence[Place], open_directory: Callable[[Layer], int], name: bytes, sources: Sequence[Layer]
) -> tuple[tuple[Place, ...], bytes | None]:
    """The lower directories that make up the directory *name*, topmost first, and the redirect that upper's copy carries.

    *above*: its parent's lower directories; *open_directory*: descriptors of the parent's directories; *sources*: the layers that have a
    directory of this name with nothing between them. OSError(EINVAL) for a redirect that is none, EPERM for one that is not to be followed.
    """
    found: list[Place] = []
    paths = dict(above)
    if stack.features.redirect.follow:
        bottom = stack.lowers[-1]
    elif above:
        bottom = above[-1][0]
    else:  # nowhere to go: marks do not count
        return (), None
    for layer in sources:
        if layer is not stack.upper:
            found.append((layer, _joined(paths[layer], name)))
        if layer is bottom:
            break
        marks = layer.marks(open_directory(layer), name, stack.names)
        if layer.is_opaque(open_directory(layer), name, stack.names, marks):
            break
        redirect = marks.get(stack.names.redirect)
        if redirect is not None:
            way = _Way(stack, above, layer, name, is_dir=True)
            way.turn(redirect, b"", b"")
            found += way.down()
            return tuple(found), read_redirect(redirect) if layer is stack.upper else None
    return tuple(found), None


def data_of(stack: Stack, above: Sequence[Place], source: Layer, name: bytes, marks: dict[bytes, bytes]) -> Data:
    """Where the data of the metacopy *name* in *source* is; *above*: its parent's lower directories, *marks*: its own marks.

    OSError(EIO) when there is none, EPERM when it is not to be followed. A metacopy in upper leads to a data-only layer only through
    one in a lower (ovl_lookup).
    """
    check_metacopy(marks[stack.names.metacopy])
    way = _Way(stack, above, source, name, metacopy=True)
    redirect = marks.get(stack.names.redirect)
    if redirect is not None:
        way.turn(redirect, b"", b"")
    places = way.down()
    if way.metacopy and stack.data and way.absolute and (places or source is not stack.upper):  # needs no metacopy=on
        return Data(None, way.name[1:])
    if not stack.features.metacopy:
        raise _error(errno.EPERM, name)
    if way.metacopy or not places:
        raise _error(errno.EIO, name)
    layer, path = places[-1]
    return Data(layer, path)


class _Way:
    """One way down (the kernel's struct ovl_lookup_data): what is looked for next, and whether to go on."""

    def __init__(
        self, stack: Stack, above: Sequence[Place], below: Layer, name: bytes, *, is_dir: bool = False, metacopy: bool = False
    ) -> None:
        """*below*: the layer that was seen last."""
        self._stack = stack
        self._roots = tuple((layer, b"") for layer in stack.lowers)
        self._above = tuple(above)
        self._depth = stack.lowers.index(below) if below in stack.lowers else -1
        #: Looked for in the parent's directories, or from the root when it starts with a slash.
        self.name = name
        self.is_dir = is_dir
        #: The object seen last has no data of its own.
        self.metacopy = metacopy
        self._stop = False

    @property
    def absolute(self) -> bool:
        """Whether the way goes by a path from the root."""
        return self.name.startswith(b"/")

    def turn(self, redirect: bytes, before: bytes, behind: bytes) -> None:
        """Go on as *redirect* says, found on a component of the name between *before* and *behind* (ovl_check_redirect)."""
        redirect = read_redirect(redirect)
        if not self._stack.features.redirect.follow:
            if self.metacopy and self._stack.data and redirect.startswith(b"/"):
                pass  # data-only layers are reached without
            else:
                raise _error(errno.EPERM, self.name)
        if redirect.startswith(b"/"):
            self._stop = False  # an opaque ancestor on the way here has no say any more
            self.name = redirect + behind
        else:
            self.name = before + redirect + behind

    def down(self) -> list[Place]:
        """Every place found on the way."""
        found: list[Place] = []
        depth = {layer: number for number, layer in enumerate(self._stack.lowers)}
        while not self._stop:
            parts = self._roots if self.absolute else self._above
            place = next((part for part in parts if depth[part[0]] > self._depth), None)
            if place is None:
                break
            self._depth = depth[place[0]]
            path = self._walk(*place)
            if path is not None:
                found.append((place[0], path))
        return found

    def _walk(self, layer: Layer, directory: bytes) -> bytes | None:
        """Look the name up in one layer; the path where it is (ovl_lookup_layer)."""
        if not self.absolute:
            return self._step(layer, directory, self.name, b"", b"")
        path: bytes | None = b""
        left = len(self.name) - 1  # counted from the end: a redirect on the way changes what is before
        while path is not None:
            start = len(self.name) - left
            component, slash, behind = self.name[start:].partition(b"/")
            path = self._step(layer, path, component, self.name[:start], slash + behind)
            if not slash:
                break
            left -= len(component) + 1
        return path

    def _step(self, layer: Layer, directory: bytes, name: bytes, before: bytes, behind: bytes) -> bytes | None:
        """One component in one layer (ovl_lookup_single)."""
        try:
            fd = layer.open_directory(directory)
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.EXDEV, errno.ELOOP):
                return None
            raise
        try:
            return self._judge(layer, fd, name, before, behind, _joined(directory, name))
        finally:
            os.close(fd)

    def _judge(self, layer: Layer, fd: int, name: bytes, before: bytes, behind: bytes, path: bytes) -> bytes | None:
        names = self._stack.names
        kind = layer.kind(fd, name, names)
        if kind is None:
            return None
        directory = kind == stat.S_IFDIR
        wanted = directory if behind else directory == self.is_dir and (not self.metacopy or kind == stat.S_IFREG)
        if not wanted:  # a whiteout, or something else of this name: nothing below is part of it
            self._stop = True
            return None
        last = layer is self._stack.lowers[-1]
        marks = layer.marks(fd, name, names) if not last or not directory else {}
        if not directory:
            mark = marks.get(names.metacopy)
            self.metacopy = mark is not None
            self._stop = mark is None
            if mark is None:
                return path
            check_metacopy(mark)
        elif layer.is_opaque(fd, name, names, marks):
            self._stop = True
            return path
        redirect = marks.get(names.redirect)
        if redirect is not None:
            self.turn(redirect, before, behind)
        return path


def _joined(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


def _error(code: int, name: bytes) -> OSError:
    return OSError(code, os.strerror(code), name)
