"""Layers that were changed under the tree: what is remembered of a directory is compared with what the layers say now.

Nodes stay what they were where that can be told: an object of upper that still has its name, and an object of a lower that has its name and
its number. Any other loses its name and gets a successor at the next look-up. Each step deals with one directory and leaves the tree whole,
so other verbs may run between two.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from typing import TypeVar

from unionfs.overlay.lookup import Data
from unionfs.overlay.node import Directory, Index, LayerEntry, Node, is_ours
from unionfs.overlay.tree import Tree

Result = TypeVar("Result")


class Outdated:
    """What the kernel has to forget. ``numbers``: of objects, with attributes and data. ``names``: in directories, by their numbers."""

    def __init__(self, numbers: Iterable[int] = (), names: Iterable[tuple[int, bytes]] = ()) -> None:
        self.numbers = set(numbers)
        self.names = set(names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Outdated) and (self.numbers, self.names) == (other.numbers, other.names)

    def __len__(self) -> int:
        return len(self.numbers) + len(self.names)

    def add(self, other: Outdated) -> None:
        """Take over what *other* says."""
        self.numbers |= other.numbers
        self.names |= other.names


def refresh(tree: Tree, path: bytes = b"") -> Iterator[Outdated]:
    """Look at everything anew that is remembered of *path* and what is below it; symlinks in *path* are not followed.

    What leads to *path* is looked at first: it may have gone, or come from elsewhere.
    """
    node = tree.root
    for name in path.split(b"/") if path else ():
        comparison = _Comparison(tree, node, {name})
        comparison.run()
        yield comparison.outdated
        below = _child(node, name)
        if below is None:
            return
        node = below
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if _is_live(tree, node):
            comparison = _Comparison(tree, node, None)
            comparison.run()
            yield comparison.outdated
            waiting += comparison.directories


def refresh_directory(tree: Tree, node: Node, names: Collection[bytes] | None = None) -> Iterator[Outdated]:
    """Look at the directory *node* anew, and below it only where it is made of other parts now.

    *names*: those whose objects may have changed though they are there as before; None: all.
    """
    waiting = [(node, names)]
    while waiting:
        node, names = waiting.pop()
        if _is_live(tree, node):
            comparison = _Comparison(tree, node, names)
            comparison.run()
            yield comparison.outdated
            waiting += [(below, None) for below in comparison.changed]


def refresh_data(tree: Tree, node: Node, names: Collection[bytes]) -> Outdated:
    """The data of these files in the directory *node* were written to; that they are the same files is known."""
    outdated = Outdated()
    index = node.directory.index if node.directory is not None else None
    for name in names if index is not None else ():
        entry = index.entries.get(name) if index is not None else None
        if entry is not None and isinstance(entry.node, Node):
            outdated.numbers.add(entry.node.ino)
    return outdated


def _child(node: Node, name: bytes) -> Node | None:
    index = node.directory.index if node.directory is not None else None
    entry = index.entries.get(name) if index is not None else None
    return entry.node if entry is not None and isinstance(entry.node, Node) and entry.node.directory is not None else None


def _is_live(tree: Tree, node: Node) -> bool:
    return tree.nodes.get(node.ino) is node and node.orphan is None


class _Comparison:
    """One directory, as it is remembered and as it is now."""

    def __init__(self, tree: Tree, node: Node, names: Collection[bytes] | None) -> None:
        self._tree = tree
        self._node = node
        self._names = names
        self.outdated = Outdated()
        #: Live directories in it, and those of them that are made of other parts than before.
        self.directories: list[Node] = []
        self.changed: list[Node] = []

    def run(self) -> None:
        """Bring the index up to date, in place: the offsets of listings stay valid."""
        tree, node = self._tree, self._node
        assert node.directory is not None
        self.outdated.numbers.add(node.ino)
        tree.descriptors.forget(node)
        index = node.directory.index
        if index is None:
            return
        node.lookups += 1  # it shall not die when what is below it does
        try:
            self._compare(index)
        finally:
            tree.bury(tree.nodes.forget(node.ino, 1))

    def _compare(self, index: Index) -> None:
        try:
            fresh = self._allowed(partial(self._tree.read_index, self._node))
        except OSError:  # whoever asks next is told why
            self._lose_all(index)
            return
        for name in [name for name in index.entries if name not in fresh.entries]:
            self._remove(index, name)
        for name, entry in fresh.entries.items():
            known = index.entries.get(name)
            if known is not None and known.kind == entry.kind and self._stays(name, known, entry):
                known.source, known.more, known.below = entry.source, entry.more, entry.below
                continue
            if known is not None:
                self._remove(index, name)
            added = index.add(name, entry.source, entry.kind)
            added.more, added.below = entry.more, entry.below
            self.outdated.names.add((self._node.ino, name))
        index.whiteouts = fresh.whiteouts

    def _lose_all(self, index: Index) -> None:
        node = self._node
        for name in list(index.entries):
            self._remove(index, name)
        assert node.directory is not None
        node.directory.index = None
        if node.parent is not None:  # names the kernel knows to be missing go with the directory's own
            self.outdated.names.add((node.parent.ino, node.name))

    def _remove(self, index: Index, name: bytes) -> None:
        entry = index.remove(name)
        if isinstance(entry.node, Node):
            self.outdated.names.add((self._node.ino, name))
            _lose(self._tree, entry.node, self._node, name)

    def _stays(self, name: bytes, known: LayerEntry, entry: LayerEntry) -> bool:
        """Whether the node of *known*, if it has one, can go on as what *entry* says; then it does."""
        node = known.node
        if not isinstance(node, Node):
            return True
        same_place = (known.source, known.more) == (entry.source, entry.more)
        if self._names is not None and name not in self._names and same_place:
            return True
        tree = self._tree
        try:
            st, (directory, data, number) = self._allowed(partial(self._examine, name, entry))
        except OSError:
            return False
        if stat.S_IFMT(st.st_mode) != node.kind or not self._is_same(node, entry, number):
            return False
        if tree.hard_links is not None and tree.hard_links.is_tied(node):  # it may be reached by another name, or lie in the index
            self.outdated.numbers.add(node.ino)
            return same_place
        other_parts = node.directory is not None and directory is not None and (
            node.directory.lowers != directory.lowers or node.layer is not entry.source
        )  # fmt: skip
        tree.moved(node, entry.source, directory, data)
        node.protection, node.lacks_capability = None, False
        self.outdated.numbers.add(node.ino)
        if node.directory is not None:
            node.directory.default_acl = None
            self.directories.append(node)
        if other_parts:
            self.changed.append(node)
        return True

    def _examine(self, name: bytes, entry: LayerEntry) -> tuple[os.stat_result, tuple[Directory | None, Data | None, int]]:
        fd = self._tree.descriptors.directory_fd(self._node, entry.source)
        st = entry.source.stat(fd, name)
        if entry.source.is_xattr_whiteout(fd, name, st, self._tree.stack.names):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return st, self._tree.examine(self._node, name, entry, st)

    def _allowed(self, step: Callable[[], Result]) -> Result:
        """*step*, which only looks, with the owner's permissions in upper if it needs them."""
        try:
            return step()
        except PermissionError as exc:
            return self._tree.lender.retry(exc, step, [self._node], lambda: ())

    def _is_same(self, node: Node, entry: LayerEntry, number: int) -> bool:
        """Whether *node* is the object that should have *number*.

        Upper is ours: what has its name there still is what it was. A number of our own says nothing of the object: the place has to do.
        """
        if node.layer is entry.source and (node.layer is self._tree.stack.upper or is_ours(node.shown)):
            return True
        return number == node.shown


def _lose(tree: Tree, node: Node, parent: Node, name: bytes) -> None:
    """*name* in *parent* is gone, and with it, if it was a directory, everything below it."""
    found = [(node, parent, name)]
    for above, _, _ in found:
        index = above.directory.index if above.directory is not None else None
        if index is not None:
            found += [(entry.node, above, below) for below, entry in index.entries.items() if isinstance(entry.node, Node)]
    for lost, its_parent, its_name in reversed(found):
        if tree.nodes.get(lost.ino) is lost and not tree.drop_name(lost, its_parent, its_name):
            tree.lose(lost)
