"""Lower hard links that stay one file (``index=on``): all their names are one node, before it is copied up and after.

Copied up, the file lies in the index (see index_dir.py), and is reached there: its node's first name is the entry in the index, all names
in the union are further links of it. Not all of them need be links in upper: the others are found in the lower, and that they mean the copy
follows from the index. The kernel makes a link of the name that a file is changed by. We are told numbers, not names, so every name that is
known becomes one: who reads upper without its index, to pack it or at a mount with index=off, finds the change by the name it was made by.

What the tree does for such a node: ``resolve`` instead of making a node, ``drop_name`` after a name is gone. What bring_up.py does:
``draft_marks`` and ``publish`` in copying up, ``link_up`` of all known names before the file is changed, and of a name before that is.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from unionfs.linux import files, xattrs
from unionfs.overlay.copy_up import Draft, decode_origin, encode_origin
from unionfs.overlay.index_dir import IndexDirectory, entry_name
from unionfs.overlay.layer import Layer
from unionfs.overlay.lookup import Data
from unionfs.overlay.node import Directory, LayerEntry, Node
from unionfs.overlay.whiteout import is_whiteout_device

if TYPE_CHECKING:
    from unionfs.overlay.tree import Tree


class _Tie:
    """What ties the names of one live file: its origin. ``more``: once copied up, how many more links are shown than the copy has."""

    __slots__ = ("more", "origin")

    def __init__(self, origin: bytes) -> None:
        self.origin = origin
        self.more: int | None = None


class HardLinks:
    """The tied files of *tree*. ``directory``: stands for the index as the parent of what lies there; in no table and in no listing."""

    def __init__(self, tree: Tree, index: IndexDirectory, upper: Layer) -> None:
        self._tree = tree
        self._index = index
        self._upper = upper
        self.directory = Node(0, tree.root, b"", upper, Directory(()))
        assert self.directory.directory is not None
        self.directory.directory.impure = (upper,)  # so is any directory that gets a link of something in it
        self._nodes: dict[bytes, Node] = {}
        self._ties: dict[int, _Tie] = {}

    def forget(self, node: Node) -> None:
        """*node* is dead, or a file like any other from now on."""
        tie = self._ties.pop(node.ino, None)
        if tie is not None:
            del self._nodes[tie.origin]

    # -- looking ---------------------------------------------------------------------------------------------------------

    def resolve(
        self, parent: Node, name: bytes, entry: LayerEntry, st: os.stat_result, data: Data | None
    ) -> tuple[Node, os.stat_result] | None:
        """The node behind *entry*, a file with several links, and its attributes; None for one that is not tied to others.

        *st* and *data* are those of the name's own object. EIO when what the index has of it is something else (ovl_lookup_index).
        """
        tree = self._tree
        from_upper = entry.source is self._upper
        origin = self._origin(parent, name, entry, st)
        copy = None if origin is None else self._copy(origin, st)
        if origin is None or (from_upper and (copy is None or (copy.st_dev, copy.st_ino) != (st.st_dev, st.st_ino))):
            return None
        node = self._nodes.get(origin)
        if node is not None:
            tree.add_name(node, parent, name, entry)
            return node, tree.fresh_stat(node)
        lower = (decode_origin(origin, tree.stack.lowers) or tree.unmoved_origin(parent, name, origin)) if from_upper else st
        number = st if lower is None else lower
        ino = tree.nodes.natural(number.st_dev, number.st_ino)
        if copy is None:
            node = Node(ino, parent, name, entry.source, None)
            tree.nodes.add(node)
            entry.node = node
        else:
            node = Node(ino, self.directory, entry_name(origin), self._upper, None)
            tree.nodes.add(node)
            tree.add_name(node, parent, name, entry)
        node.kind = stat.S_IFMT(st.st_mode)
        self._nodes[origin] = node
        self._ties[node.ino] = tie = _Tie(origin)
        if copy is not None:
            tie.more = self._index.read_nlink(node.name, None if lower is None else lower.st_nlink)
            st = tree.stat(node)
            data = self._data_of_copy(parent, name, entry, node, data)
        if data is not None:
            tree.descriptors.data[node.ino] = data
        return node, st

    def _origin(self, parent: Node, name: bytes, entry: LayerEntry, st: os.stat_result) -> bytes | None:
        """The mark that the copy of *entry*'s object has or would have; None when it can have no entry in the index."""
        tree, names = self._tree, self._tree.stack.names
        if names.userxattr and not stat.S_ISREG(st.st_mode):  # can carry no marks
            return None
        fd = tree.descriptors.directory_fd(parent, entry.source)
        if entry.source is self._upper:
            assert parent.directory is not None
            return entry.source.attribute(fd, name, names.origin) or None if self._upper in parent.directory.impure else None
        return encode_origin(entry.source, fd, name) or None

    def _copy(self, origin: bytes, st: os.stat_result) -> os.stat_result | None:
        """The copy in the index of an object *st*, if there is one."""
        entry = entry_name(origin)
        if entry not in self._index.entries:
            return None
        assert self._upper is not None
        found = self._upper.ownership.read(self._index.stat(entry), files.path_at(self._index.fd, entry))
        if is_whiteout_device(found) or stat.S_IFMT(found.st_mode) != stat.S_IFMT(st.st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO), entry)
        return found

    def _data_of_copy(self, parent: Node, name: bytes, entry: LayerEntry, node: Node, data: Data | None) -> Data | None:
        """Where the data of the copy are, if it is a metacopy."""
        if entry.source is self._upper:
            return data
        if xattrs.find(self._tree.descriptors.place(node), self._tree.stack.names.metacopy) is None:
            return None
        above = self._tree.descriptors.directory_path(parent, entry.source)
        return data or Data(entry.source, above + b"/" + name if above else name)

    def links(self, node: Node, st: os.stat_result) -> int:
        """The link count to show of *node*, tied or not, which has a name."""
        tie = self._ties.get(node.ino)
        return st.st_nlink if tie is None or tie.more is None else st.st_nlink + tie.more

    def is_tied(self, node: Node) -> bool:
        """Whether several names of a lower make up this node."""
        return node.ino in self._ties

    def is_copied(self, node: Node) -> bool:
        """Whether this node is such a one, and lies in the index."""
        tie = self._ties.get(node.ino)
        return tie is not None and tie.more is not None

    def is_last_name(self, node: Node) -> bool:
        """Whether the tied *node* shows one name only; preconditions: it is copied up."""
        return self.links(node, self._index.stat(node.name)) <= 1

    # -- copying up ------------------------------------------------------------------------------------------------------

    def draft_marks(self, node: Node, st: os.stat_result) -> tuple[bytes | None, bytes | None]:
        """(origin, nlink) for a copy of *node*, in the lower *st*; None when it is not tied, and copying it up breaks the link."""
        tie = self._ties.get(node.ino)
        return (None, None) if tie is None else (tie.origin, b"U%+d" % (st.st_nlink - 1))

    def publish(self, node: Node, draft: Draft) -> None:
        """Put the built *draft* of the tied *node* in the index (ovl_do_copy_up). The name it was asked for by is to be linked next."""
        tree, tie = self._tree, self._ties[node.ino]
        assert node.parent is not None
        first, entry = (node.parent, node.name), entry_name(tie.origin)
        files.renameat2(tree.work.fd, draft.work_name, self._index.fd, entry)
        self._index.entries.add(entry)
        if tree.stack.strict:
            files.sync_directory(self._index.fd)
        tie.more = draft.st.st_nlink - 1
        node.layer = self._upper
        node.links = [first, *(node.links or ())]
        first[0].children += 1
        tree.bury(tree.nodes.reparent(node, self.directory, entry))

    def prefer_name(self, node: Node, parent: Node, name: bytes, entry: LayerEntry) -> None:
        """If the tied *node* is still to be copied up, it is by this name."""
        if node.layer is self._upper or node.links is None or (node.parent is parent and node.name == name):
            return
        assert node.parent is not None
        node.links = [link for link in node.links if link != (parent, name)] + [(node.parent, node.name)]
        node.parent, node.name, node.layer = parent, name, entry.source  # the same file may lie in several lowers

    def link_up(self, node: Node, parent: Node, name: bytes, entry: LayerEntry) -> None:
        """Give the copy this name in upper, too (ovl_link_up).

        The mark nlink is at no moment wrong: it counts from the lower while the number of the copy's links changes.
        """
        tree, tie, index = self._tree, self._ties[node.ino], self._index
        lower = entry.source.stat(tree.descriptors.directory_fd(parent, entry.source), name).st_nlink
        count = index.stat(node.name).st_nlink
        assert tie.more is not None
        shown = count + tie.more
        parent_fd = tree.upper_fd(parent)
        times = os.fstat(parent_fd)

        def step() -> None:
            tree.mark_impure(parent)
            index.write_nlink(node.name, b"L", shown - lower)
            os.link(node.name, name, src_dir_fd=index.fd, dst_dir_fd=parent_fd, follow_symlinks=False)
            files.utimens(files.path_at(parent_fd, b""), times.st_atime_ns, times.st_mtime_ns)
            index.write_nlink(node.name, b"U", shown - count - 1)

        try:
            step()
        except PermissionError as exc:
            tree.lender.retry(exc, step, [parent], lambda: [(index.fd, node.name)])
        tie.more = shown - count - 1
        if tree.stack.strict:
            files.sync_directory(parent_fd)
        entry.source, entry.below = self._upper, True

    # -- removing --------------------------------------------------------------------------------------------------------

    def drop_name(self, node: Node, parent: Node, name: bytes, *, last: bool) -> bool:
        """As ``Tree.drop_name``, for a tied node in upper. With its *last* name its entry in the index goes (ovl_cleanup_index)."""
        tree = self._tree
        node.links = [link for link in node.links or () if link != (parent, name)] or None
        parent.children -= 1
        tree.bury(tree.nodes.reap(parent))
        if not last:
            return True
        self._index.remove(node.name)
        self.forget(node)
        return False
