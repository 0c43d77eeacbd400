"""What an upper changes, read from the directories themselves: no mount is needed, a live one does no harm.

Two trees are merged by the code that serves them, the lowers alone and the lowers with upper on top, and compared where they can differ:
so redirects, metacopies and opaque directories count for what they show.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum

from unionfs.errors import LayerError, printable
from unionfs.overlay.copy_up import encode_origin
from unionfs.overlay.features import DEFAULTS, Features
from unionfs.overlay.index_dir import entry_name
from unionfs.overlay.layer import Layer
from unionfs.overlay.node import LayerEntry, Node
from unionfs.overlay.stack import open_stack
from unionfs.overlay.tree import Tree
from unionfs.overlay.whiteout import XattrNames


class Kind(Enum):
    """What happened to a path, in the letters of ``docker diff``."""

    ADDED = "A"
    CHANGED = "C"
    DELETED = "D"


@dataclass(frozen=True)
class Change:
    """``path`` starts with a slash: the root of the union."""

    kind: Kind
    path: bytes


def changes(
    upper: bytes, lowers: Sequence[bytes], features: Features = DEFAULTS, *, data: Sequence[bytes] = (), work: bytes | None = None
) -> list[Change]:
    """All changes that the directory *upper* makes to *lowers* (topmost first), sorted by path; *features* as a mount would have them.

    A directory that is in upper counts as changed when there is one below. A deleted directory is one line, as in a whiteout, and so is
    each name that an opaque directory hides. A directory that was moved is deleted in one place, and in the other everything below it is
    added, as who packs a layer needs it. With ``features.index``, whose entries are in *work*, a name in a lower changes with the other
    names of its file. Without *lowers* the marks in upper have to do: every whiteout is a deletion, and what carries no
    sign of having been copied up is new.

    Raises LayerError for a directory that cannot be opened, OSError for one that cannot be read.
    """
    with ExitStack() as held:
        top = open_stack([upper, *lowers], None, None, features, data=data)
        held.callback(top.close)
        if not lowers:
            found = _by_marks(top.lowers[0], top.names)
        else:
            after = Tree(top)
            held.callback(after.close)
            below = open_stack(lowers, None, None, features, data=data)
            held.callback(below.close)
            before = Tree(below)
            held.callback(before.close)
            found = _Comparison(after, before).changes()
            if features.index and work is not None:
                found = _with_hard_links(after, list(found), _index_entries(work))
        return sorted(found, key=lambda change: change.path)


@dataclass(frozen=True)
class _Pair:
    """A directory that is still to be looked at, as it is and as it was. ``same``: apart from upper's part the two are one."""

    path: bytes
    new: Node
    old: Node | None
    same: bool


class _Comparison:
    """*after*: the tree with upper as its topmost lower; *before*: the tree without it."""

    def __init__(self, after: Tree, before: Tree) -> None:
        self._after = after
        self._before = before
        self._upper = after.stack.lowers[0]
        self._old_layer = dict(zip(after.stack.lowers[1:], before.stack.lowers, strict=True))

    def changes(self) -> Iterator[Change]:
        """Every change, in no order."""
        todo = [self._pair(b"", self._after.root, self._before.root)]
        while todo:
            yield from self._compare(todo.pop(), todo)

    def _pair(self, path: bytes, new: Node, old: Node | None) -> _Pair:
        return _Pair(path, new, old, old is not None and self._places(new) == _lowers(old))

    def _places(self, node: Node) -> tuple[tuple[Layer, bytes], ...]:
        """The lower directories of *node* as the other tree names them."""
        return tuple((self._old_layer[layer], path) for layer, path in _lowers(node) if layer is not self._upper)

    def _compare(self, pair: _Pair, todo: list[_Pair]) -> Iterator[Change]:
        new = self._after.index(pair.new).entries
        old = self._before.index(pair.old).entries if pair.old else {}
        for name in old.keys() - new.keys():
            yield Change(Kind.DELETED, b"/" + _join(pair.path, name))
        for name, entry in new.items():
            if entry.source is not self._upper and pair.same:
                continue
            path, was = _join(pair.path, name), old.get(name)
            if was is None:
                yield Change(Kind.ADDED, b"/" + path)
            elif entry.source is self._upper or not self._is_same_object(pair, name, entry, was):
                yield Change(Kind.CHANGED, b"/" + path)
            if entry.kind == stat.S_IFDIR:
                below = self._pair(path, self._after.resolve(pair.new, name, entry)[0], self._old_directory(pair.old, name, was))
                if _lowers(below.new)[0][0] is self._upper or not below.same:
                    todo.append(below)

    def _is_same_object(self, pair: _Pair, name: bytes, entry: LayerEntry, was: LayerEntry) -> bool:
        """Whether a lower object under this name is the one that was there before."""
        assert pair.old is not None
        if self._old_layer[entry.source] is not was.source:
            return False
        new, old = self._after.descriptors, self._before.descriptors
        return new.directory_path(pair.new, entry.source) == old.directory_path(pair.old, was.source)

    def _old_directory(self, parent: Node | None, name: bytes, was: LayerEntry | None) -> Node | None:
        """The directory *name* as it was, None when there was none."""
        if parent is None or was is None or was.kind != stat.S_IFDIR:
            return None
        return self._before.resolve(parent, name, was)[0]


def _index_entries(work: bytes) -> frozenset[bytes]:
    try:
        return frozenset(os.listdir(os.path.join(work, b"index")))
    except FileNotFoundError:
        return frozenset()
    except OSError as exc:
        raise LayerError(f"work directory {printable(work)}: {exc.strerror}") from exc


def _with_hard_links(after: Tree, found: list[Change], index: frozenset[bytes]) -> Iterator[Change]:
    """*found*, and the names that are in lowers only of files that are in the *index*: they show what is there."""
    yield from found
    if not index:
        return
    told = {change.path for change in found}
    todo = [(b"", after.root)]
    while todo:
        directory, node = todo.pop()
        for name, entry in after.index(node).entries.items():
            path = _join(directory, name)
            if entry.kind == stat.S_IFDIR:
                todo.append((path, after.resolve(node, name, entry)[0]))
            elif entry.source is not after.stack.lowers[0] and b"/" + path not in told:
                fd = after.descriptors.directory_fd(node, entry.source)
                if entry.source.stat(fd, name).st_nlink > 1 and entry_name(encode_origin(entry.source, fd, name)) in index:
                    yield Change(Kind.CHANGED, b"/" + path)


def _lowers(node: Node) -> tuple[tuple[Layer, bytes], ...]:
    assert node.directory is not None
    return node.directory.lowers


def _join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


def _by_marks(upper: Layer, names: XattrNames) -> Iterator[Change]:
    """What *upper* alone tells."""
    todo = [b""]
    while todo:
        directory = todo.pop()
        fd = upper.open_directory(directory)
        try:
            seen = set()
            for name, kind in upper.scan(fd, names):
                if name in seen:  # a whiteout beside what has come in the place of what it hides
                    continue
                seen.add(name)
                path = _join(directory, name)
                if kind == 0:
                    yield Change(Kind.DELETED, b"/" + path)
                    continue
                existed = upper.attribute(fd, name, names.origin) is not None and upper.attribute(fd, name, names.redirect) is None
                yield Change(Kind.CHANGED if existed else Kind.ADDED, b"/" + path)
                if kind == stat.S_IFDIR:
                    todo.append(path)
        finally:
            os.close(fd)
