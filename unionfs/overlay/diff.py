"""What an upper changes, read from the directories themselves: no mount is needed, a live one does no harm.

The lowers are merged by the same code that serves them; upper's own names are held against that.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum

from unionfs.overlay.features import Features
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


def changes(upper: bytes, lowers: Sequence[bytes], *, userxattr: bool = False) -> list[Change]:
    """All changes that the directory *upper* makes to *lowers* (topmost first), sorted by path.

    A directory that is in upper counts as changed when there is one below. A deleted directory is one line, as in a whiteout; what an
    opaque directory hides is a line each, unless upper has the name again. Without *lowers* the marks in upper have to do: every whiteout
    is a deletion, and what carries no sign of having been copied up is new.

    Raises LayerError for a directory that cannot be opened, OSError for one that cannot be read.
    """
    features = Features(userxattr=userxattr)
    with ExitStack() as held:
        top = open_stack([upper], None, None, features)
        held.callback(top.close)
        before: Tree | None = None
        if lowers:
            below = open_stack(lowers, None, None, features)
            held.callback(below.close)
            before = Tree(below)
            held.callback(before.close)
        return sorted(_compare(top.lowers[0], before, top.names), key=lambda change: change.path)


@dataclass(frozen=True)
class _Directory:
    """A directory of upper that is still to be looked at. ``old``: what is there below; ``hides``: none of that shows through."""

    path: bytes
    old: Node | None
    hides: bool


def _compare(upper: Layer, before: Tree | None, names: XattrNames) -> Iterator[Change]:
    todo = [_Directory(b"", before.root if before else None, hides=False)]  # a root is always merged (ovl_get_root)
    while todo:
        directory = todo.pop()
        fd = upper.open_directory(directory.path)
        try:
            yield from _compare_directory(upper, fd, directory, before, names, todo)
        finally:
            os.close(fd)


def _compare_directory(
    upper: Layer, fd: int, directory: _Directory, before: Tree | None, names: XattrNames, todo: list[_Directory]
) -> Iterator[Change]:
    old = _old_entries(before, directory.old)
    seen = set()
    for name, kind in upper.scan(fd, names):
        path = directory.path + b"/" + name if directory.path else name
        entry = old.get(name)
        seen.add(name)
        if kind == 0:
            if entry is not None or before is None:
                yield Change(Kind.DELETED, b"/" + path)
            continue
        existed = entry is not None if before else upper.attribute(fd, name, names.origin) is not None
        yield Change(Kind.CHANGED if existed else Kind.ADDED, b"/" + path)
        if kind == stat.S_IFDIR:
            old_directory = _old_directory(before, directory.old, name, entry)
            todo.append(_Directory(path, old_directory, directory.hides or upper.is_opaque(fd, name, names)))
    if directory.hides:
        for name in old.keys() - seen:
            yield Change(Kind.DELETED, b"/" + (directory.path + b"/" + name if directory.path else name))


def _old_entries(before: Tree | None, node: Node | None) -> dict[bytes, LayerEntry]:
    return {} if before is None or node is None else before.index(node).entries


def _old_directory(before: Tree | None, parent: Node | None, name: bytes, entry: LayerEntry | None) -> Node | None:
    """The directory *name* as it is without upper, None when there is none."""
    if before is None or parent is None or entry is None or entry.kind != stat.S_IFDIR:
        return None
    return before.resolve(parent, name, entry)[0]
