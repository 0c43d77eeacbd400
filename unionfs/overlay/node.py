"""Live objects of a union: what the kernel knows by number.

A Node lives from the look-up that told the kernel its number until the kernel forgets it, and longer while nodes below it live: paths are
read off the chain of parents. Pure bookkeeping; the one lock that matters is described in union.py.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias

from unionfs.overlay.merge import Entry

if TYPE_CHECKING:
    from unionfs.overlay.layer import Layer

ROOT_INO = 1
#: Numbers from here on are handed out by us; below are the backing filesystems' own.
_SYNTHETIC = 1 << 62
#: The backing filesystem's position in the table of devices sits above its own inode number.
_DEVICE_SHIFT = 48

LayerEntry: TypeAlias = "Entry[Layer]"


def is_ours(number: int) -> bool:
    """Whether *number* was handed out by us, and says nothing of the object."""
    return number >= _SYNTHETIC


class Index:
    """The merged entries of one directory, with listing offsets that stay valid while it changes.

    A cookie is an entry's place in the listing. New names get higher ones, removed names leave a hole, nothing ever moves.
    """

    __slots__ = ("_cookies", "_names", "_next", "entries", "whiteouts")

    def __init__(self, entries: dict[bytes, LayerEntry], whiteouts: set[bytes]) -> None:
        self.entries = entries
        #: Names of whiteouts that are there in upper.
        self.whiteouts = whiteouts
        self._next = len(entries) + 1
        self._names: list[bytes] | None = None
        self._cookies = array("Q")

    def add(self, name: bytes, source: Layer, kind: int) -> LayerEntry:
        """A new entry at the end of the listing."""
        entry = Entry(source, kind, self._next)
        self._next += 1
        self.entries[name] = entry
        if self._names is not None:
            self._names.append(name)
            self._cookies.append(entry.cookie)
        return entry

    def remove(self, name: bytes) -> LayerEntry:
        """Take *name* out; its place stays a hole."""
        return self.entries.pop(name)

    def listing(self, after: int) -> Iterator[tuple[bytes, LayerEntry]]:
        """Entries whose cookie is greater than *after*, in order."""
        if self._names is None or len(self._names) > 2 * len(self.entries) + 1024:
            # a dict keeps insertion order, and a name that comes back is inserted anew: order of cookies
            self._names = list(self.entries)
            self._cookies = array("Q", (e.cookie for e in self.entries.values()))
        names, cookies, get = self._names, self._cookies, self.entries.get
        for position in range(bisect_right(cookies, after), len(names)):
            name = names[position]
            entry = get(name)
            if entry is not None and entry.cookie == cookies[position]:
                yield name, entry


class Directory:
    """What a Node that is a directory has besides: the lower directories merged into it, and their index once it was needed.

    ``lowers``: (layer, path in it), topmost first. ``redirect``: the mark on upper's copy that says where they are, if it has one.
    ``impure``: the layers whose copy carries the impure mark; known once there is an index.
    ``default_acl``: that of upper's copy, once something was made there; empty where it has none.
    """

    __slots__ = ("default_acl", "impure", "index", "lowers", "redirect")

    def __init__(self, lowers: tuple[tuple[Layer, bytes], ...], redirect: bytes | None = None) -> None:
        self.lowers = lowers
        self.redirect = redirect
        self.index: Index | None = None
        self.impure: tuple[Layer, ...] = ()
        self.default_acl: bytes | None = None


class Orphan:
    """Where an object without a name lives on: a held descriptor, a name in work, or a path in a lower.

    With none of these it is gone: somebody took it out of the layers under us.
    """

    __slots__ = ("fd", "links", "path", "unborn", "work_name")

    def __init__(
        self, *, fd: int = -1, work_name: bytes | None = None, path: bytes | None = None, links: int = 0, unborn: bool = False
    ) -> None:
        self.fd = fd
        self.work_name = work_name
        self.path = path
        #: Links of the backing object that are our doing and must not be counted.
        self.links = links
        #: It never had a name, and may get one.
        self.unborn = unborn


class Node:
    """One live object.

    ``ino``: its number among all that is live. ``shown``: its number in stat and listings; only several names of one file that are
    objects of their own share one. ``parent``, ``name``: the name it is reached by. ``layer``: the topmost layer that has it.
    ``lookups``: how often the kernel was told its number. ``children``: nodes that name this one as parent.
    ``links``: its further known names (hard links in upper), None for most. ``orphan``: set once it has no name.
    """

    __slots__ = (
        "children", "directory", "ino", "kind", "lacks_capability", "layer", "links", "lookups", "name", "orphan", "parent",
        "protection", "shown",
    )  # fmt: skip

    def __init__(
        self, ino: int, parent: Node | None, name: bytes, layer: Layer, directory: Directory | None
    ) -> None:
        self.ino = self.shown = ino
        self.parent = parent
        self.name = name
        self.layer = layer
        self.directory = directory
        #: S_IFDIR, S_IFREG ... as the kernel was told: never another one with this number. 0: not known.
        self.kind = 0
        #: Its file attributes, as of protection.py, once something asked for them.
        self.protection: int | None = None
        #: It is known to have no file capabilities: the kernel asks before the first write to each file, and at every exec.
        self.lacks_capability = False
        self.lookups = 0
        self.children = 0
        self.links: list[tuple[Node, bytes]] | None = None
        self.orphan: Orphan | None = None

    def path(self) -> bytes:
        """Its path from the root of the union, without a leading slash; empty for the root."""
        parts: list[bytes] = []
        node: Node = self
        while node.parent is not None:
            parts.append(node.name)
            node = node.parent
        return b"/".join(reversed(parts))


class NodeTable:
    """All live nodes by number, and the rule that gives numbers.

    A number is the backing object's own, with the position of its filesystem above bit 48 (the first device has position 0: with all layers
    on one filesystem numbers are the backing ones). Where that is taken by another live object, or does not fit, the number is one of ours;
    a file that only lost it to another name of its own still shows it, as the kernel's overlayfs shows hard links of a lower.
    """

    def __init__(self) -> None:
        self._nodes: dict[int, Node] = {}
        self._devices: dict[int, int] = {}
        self._next = _SYNTHETIC

    def __len__(self) -> int:
        return len(self._nodes)

    def __getitem__(self, ino: int) -> Node:
        return self._nodes[ino]

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def get(self, ino: int) -> Node | None:
        """The live node with this number, if any."""
        return self._nodes.get(ino)

    def natural(self, device: int, ino: int) -> int:
        """The number an object with this identity gets when nothing speaks against it; 0 when it does not fit."""
        position = self._devices.setdefault(device, len(self._devices))
        if ino >= 1 << _DEVICE_SHIFT and (position or ino >= _SYNTHETIC):
            return 0
        number = ino | position << _DEVICE_SHIFT
        return number if number > ROOT_INO and number < _SYNTHETIC else 0

    def add(self, node: Node) -> None:
        """Enter *node*; a number that is 0 or taken is replaced by one of ours."""
        if node.ino == 0 or node.ino in self._nodes:
            if node.ino == 0 or node.directory is not None:  # who walks a tree takes one directory seen twice for a loop
                node.shown = self._next
            node.ino = self._next
            self._next += 1
        self._nodes[node.ino] = node
        if node.parent is not None:
            node.parent.children += 1

    def reparent(self, node: Node, parent: Node | None, name: bytes) -> list[Node]:
        """Let *node* be reached by *name* in *parent* from now on (None: by no name); returns the nodes that died of it."""
        old = node.parent
        node.parent, node.name = parent, name
        if parent is not None:
            parent.children += 1
        if old is None:
            return []
        old.children -= 1
        return self.reap(old)

    def forget(self, ino: int, count: int) -> list[Node]:
        """The kernel gives back *count* look-ups of *ino*; returns the nodes that died of it, children before parents."""
        node = self._nodes.get(ino)
        if node is None:
            return []
        node.lookups = max(0, node.lookups - count)
        return self.reap(node)

    def shrink(self) -> None:
        """Give the table's own memory back: a dict never does by itself."""
        self._nodes = dict(self._nodes)

    def reap(self, node: Node) -> list[Node]:
        """Remove *node* if neither the kernel nor a child needs it, then its parents likewise; returns the removed ones."""
        dead: list[Node] = []
        current: Node | None = node
        while current is not None and not current.lookups and not current.children:
            if current.ino == ROOT_INO or self._nodes.get(current.ino) is not current:
                break
            del self._nodes[current.ino]
            dead.append(current)
            current = current.parent
            if current is not None:
                current.children -= 1
        return dead
