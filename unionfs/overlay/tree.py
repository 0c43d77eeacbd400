"""From numbers and names to nodes: the live nodes, the merged entries of directories, attributes.

The verbs in union.py and rename.py stand on this, redirect.py and bring_up.py between them, and what compares or rewrites layers:
refresh.py, check.py, convert.py, diff.py. Where a verb changes upper, the methods here keep the index in step with it. The objects behind
the nodes are opened in descriptors.py; how those without a name live on is in orphans.py.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from unionfs.errors import error
from unionfs.linux import files, xattrs
from unionfs.overlay.backing import share_of_descriptors
from unionfs.overlay.copy_up import DataDraft, Work, decode_origin, encode_origin
from unionfs.overlay.descriptors import Descriptors
from unionfs.overlay.hard_links import HardLinks
from unionfs.overlay.layer import Layer
from unionfs.overlay.lookup import Data, data_of, lower_directories
from unionfs.overlay.merge import merge
from unionfs.overlay.node import ROOT_INO, Directory, Index, LayerEntry, Node, NodeTable, Orphan
from unionfs.overlay.orphans import Orphans
from unionfs.overlay.owners import changed
from unionfs.overlay.protection import refuse
from unionfs.overlay.stack import Stack
from unionfs.overlay.unlocked import Lender, Loose
from unionfs.overlay.whiteout import IMPURE, OPAQUE

if TYPE_CHECKING:  # most mounts watch nothing
    from unionfs.overlay.watch import Watcher

Result = TypeVar("Result")

NAME_MAX = 255


class Tree:
    """The merged tree of *stack*, with the live nodes in it."""

    def __init__(self, stack: Stack, *, static_links: bool = False) -> None:
        self.stack = stack
        #: Every directory shows the link count 1.
        self.static_links = static_links
        #: For steps that modes in upper forbid us.
        self.lender = Lender(stack.upper)
        self.nodes = NodeTable()
        share = share_of_descriptors(used=len(stack.lowers) + 32)
        self.descriptors = Descriptors(stack, self.lender, share)
        self.orphans = Orphans(stack, self.descriptors, share)
        #: Directories whose time of last change copying up has moved on, which whoever remembers attributes has to learn.
        self.restamped: set[Node] = set()
        #: Directories with an entry that got another number when it was copied up; see ``Union.take_renumbered``.
        self.renumbered: set[Node] = set()
        #: Those whose data are on their way up, in a thread or about to be.
        self.filling: dict[Node, DataDraft] = {}
        #: Told of every directory that is read, when the lowers may change.
        self.watcher: Watcher | None = None
        layers = (*((stack.upper,) if stack.upper else ()), *stack.lowers)
        for layer in layers:  # the first one's numbers are shown as they are
            self.nodes.natural(layer.device, 1 << 20)
        root = Node(ROOT_INO, None, b"", layers[0], Directory(tuple((layer, b"") for layer in self._merged_roots(layers))))
        root.kind = stat.S_IFDIR
        self.nodes.add(root)
        self.root = root
        #: None unless hard links of the lowers stay one file.
        self.hard_links = None if stack.index is None else HardLinks(self, stack.index, self.upper)
        if self.hard_links is not None:
            self.descriptors.index_directory = self.hard_links.directory

    def _merged_roots(self, layers: tuple[Layer, ...]) -> Iterator[Layer]:
        """The lowers of the root."""
        for layer in layers:
            if layer is not self.stack.upper:
                yield layer
            if layer.has_opaque_root(self.stack.names):
                return

    # -- upper -----------------------------------------------------------------------------------------------------------

    def allowed(self, step: Callable[[], Result], directory: Node, name: bytes | None = None) -> Result:
        """*step*, which is about *directory*, or *name* in it: again with bits lent where modes in upper forbid it (see unlocked.py)."""
        try:
            return step()
        except PermissionError as exc:
            return self.lender.retry(exc, step, [directory], lambda: [] if name is None else [self.upper_place(directory, name)])

    def upper_place(self, parent: Node, name: bytes) -> Loose | None:
        """Descriptor of *parent*'s copy in upper, and *name*; None when upper has nothing of that name."""
        entry = self.find(parent, name)
        return None if entry is None or entry.source is not self.stack.upper else (self.upper_fd(parent), name)

    def upper_fd(self, node: Node) -> int:
        """``directory_fd`` of upper's copy; the directory must be in upper."""
        return self.descriptors.directory_fd(node, self.upper)

    @property
    def upper(self) -> Layer:
        """The writable layer; OSError(EROFS) without one."""
        if self.stack.upper is None:
            raise error(errno.EROFS)
        return self.stack.upper

    @property
    def work(self) -> Work:
        """The work directory; OSError(EROFS) without one."""
        if self.stack.work is None:
            raise error(errno.EROFS)
        return self.stack.work

    def mark_impure(self, directory: Node) -> None:
        """Note on upper's copy of *directory* that it holds objects with an origin: only there is it looked for (ovl_set_impure)."""
        assert directory.directory is not None
        if self.upper not in directory.directory.impure:
            xattrs.put(files.path_at(self.upper_fd(directory), b""), self.stack.names.impure, IMPURE)
            directory.directory.impure += (self.upper,)

    def pass_on_impurity(self, source: Node, target: Node) -> None:
        """An object of *source* comes to *target*: if it may have an origin, *target* has to say so."""
        if source.directory is not None and self.upper in source.directory.impure:
            self.mark_impure(target)

    # -- attributes ------------------------------------------------------------------------------------------------------

    def stat(self, node: Node) -> os.stat_result:
        """lstat of *node*'s topmost copy. Number and link count for the user: ``node.shown`` and ``links``."""
        if node.orphan is not None:
            return self.stat_at(node, self.descriptors.place(node))
        if node.parent is None:
            return node.layer.root_stat()
        try:
            st = node.layer.stat(self.descriptors.directory_fd(node.parent, node.layer), node.name)
        except PermissionError as exc:
            return self.lender.retry(exc, partial(self.stat, node), [node.parent], lambda: ())
        return self._with_blocks(node, st) if node.ino in self.descriptors.data else st

    def stat_at(self, node: Node, place: files.Place) -> os.stat_result:
        """``stat`` of a *node* that was just found to be at *place*."""
        return node.layer.ownership.read(os.stat(place, follow_symlinks=files.is_descriptor(place)), place)

    def _with_blocks(self, node: Node, st: os.stat_result) -> os.stat_result:
        """Attributes of a metacopy with the space that its data take, as far as that is known (ovl_getattr)."""
        try:
            return changed(st, st_blocks=os.fstat(self.descriptors.file_fd(node, writable=False)).st_blocks)
        except OSError:
            return st

    def fresh_stat(self, node: Node) -> os.stat_result:
        """``stat``; ESTALE when what is there now is of another kind, which the kernel must not be told of this number."""
        st = self.stat(node)
        if stat.S_IFMT(st.st_mode) != node.kind:
            raise error(errno.ESTALE, node.name)
        return st

    def links(self, node: Node, st: os.stat_result) -> int:
        """The link count to show: 1 for a merged directory (as ovl_getattr), else the backing object's."""
        orphan = node.orphan
        if orphan is not None:
            return 0 if node.directory is not None or orphan.path is not None else st.st_nlink - orphan.links
        if self.hard_links is not None:
            return 1 if self.is_merged(node) else self.hard_links.links(node, st)
        return 1 if self.static_links and node.directory is not None or self.is_merged(node) else st.st_nlink

    @staticmethod
    def is_merged(node: Node) -> bool:
        """Whether *node* is a directory that more than one layer has a part in."""
        directory = node.directory
        if directory is None or not directory.lowers:
            return False
        return len(directory.lowers) > 1 or node.layer is not directory.lowers[0][0]

    def refuse_removal(self, parent: Node, name: bytes, entry: LayerEntry) -> None:
        """EPERM when file attributes forbid taking *name* out of *parent* (may_delete)."""
        refuse(self.descriptors.protection(parent))
        node = entry.node
        if isinstance(node, Node):
            refuse(self.descriptors.protection(node))
        else:
            refuse(self.descriptors.protection_at(entry.source, self.descriptors.directory_fd(parent, entry.source), name))

    # -- names -----------------------------------------------------------------------------------------------------------

    def directory(self, ino: int) -> Node:
        """The live directory *ino*; ENOTDIR, ESTALE."""
        node = self.node(ino)
        if node.directory is None:
            raise error(errno.ENOTDIR)
        return node

    def node(self, ino: int) -> Node:
        """The live node *ino*; ESTALE when there is none."""
        node = self.nodes.get(ino)
        if node is None:
            raise error(errno.ESTALE)
        return node

    def index(self, node: Node) -> Index:
        """The merged entries of the directory *node*, read from all layers at the first use."""
        directory = node.directory
        assert directory is not None
        if directory.index is None:
            directory.index = Index({}, set()) if node.orphan is not None else self.read_index(node)
        return directory.index

    def read_index(self, node: Node) -> Index:
        """The merged entries of the directory *node* as the layers have them now."""
        whiteouts: set[bytes] = set()
        return Index(merge(self._listings(node, whiteouts)), whiteouts)

    def _listings(self, node: Node, whiteouts: set[bytes]) -> Iterator[tuple[Layer, Iterator[tuple[bytes, int]]]]:
        directory = node.directory
        assert directory is not None
        upper = self.stack.upper
        directory.impure = ()
        if upper is not None and node.layer is upper:
            yield upper, self._upper_listing(node, upper, whiteouts)
        for layer, _ in directory.lowers:
            try:
                fd = self.descriptors.directory_fd(node, layer)
            except OSError as exc:
                if exc.errno == errno.EXDEV:  # a mount point, in a layer that is no private clone
                    continue
                raise
            if self.watcher is not None:  # before it is read: what changes meanwhile shall not go unseen
                self.watcher.add(node, layer, fd)
            yield layer, self._listing(directory, layer, fd)

    def _listing(self, directory: Directory, layer: Layer, fd: int) -> Iterator[tuple[bytes, int]]:
        marks = layer.own_marks(fd, self.stack.names)
        if marks.get(self.stack.names.impure) == IMPURE:
            directory.impure += (layer,)
        return layer.scan(fd, self.stack.names, marks)

    def _upper_listing(self, node: Node, upper: Layer, whiteouts: set[bytes]) -> Iterator[tuple[bytes, int]]:
        assert node.directory is not None
        for name, kind in self._listing(node.directory, upper, self.descriptors.directory_fd(node, upper)):
            if not kind:
                whiteouts.add(name)
            yield name, kind

    def settle_whiteout(self, directory: Node, name: bytes) -> None:
        """Before *name* changes: a whiteout of it in upper, which may be another program's, gets the form that is written here.

        A directory that has a ``.wh.`` file beside it hides its lowers by itself afterwards.
        """
        if not self.stack.names.whfiles:
            return
        index = self.index(directory)
        if name not in index.whiteouts:
            return
        fd = self.upper_fd(directory)
        entry = index.entries.get(name)
        if entry is None:
            self.work.convert_whiteout(fd, name)
            return
        if entry.kind == stat.S_IFDIR:
            xattrs.put(files.path_at(fd, name), self.stack.names.opaque, OPAQUE)
        self.work.uncover(fd, name)
        entry.below = True
        index.whiteouts.discard(name)

    def drop_whiteouts(self, directory: Node) -> None:
        """Remove all whiteouts from upper's copy of *directory*, which is opaque and needs none."""
        index, fd = self.index(directory), self.upper_fd(directory)
        for name in list(index.whiteouts):
            if name not in index.entries:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=fd)
            if self.stack.names.whfiles:
                self.work.uncover(fd, name)
            index.whiteouts.discard(name)

    def find(self, parent: Node, name: bytes) -> LayerEntry | None:
        """What *name* is in *parent*; None when there is nothing."""
        return self.index(parent).entries.get(name)

    def need(self, parent: Node, name: bytes) -> LayerEntry:
        """What *name* is in *parent*; ENOENT, ENAMETOOLONG."""
        entry = self.index(parent).entries.get(name)
        if entry is None:
            raise error(errno.ENAMETOOLONG if len(name) > NAME_MAX else errno.ENOENT, name)
        return entry

    def resolve(self, parent: Node, name: bytes, entry: LayerEntry) -> tuple[Node, os.stat_result]:
        """The node behind *entry*, made if it is not live, and its fresh attributes.

        ENOENT when the backing object has vanished, ESTALE when it has become something of another kind.
        """
        node = entry.node
        if isinstance(node, Node):
            return node, self.fresh_stat(node)
        fd = self.descriptors.directory_fd(parent, entry.source)
        try:
            st = entry.source.stat(fd, name)
        except FileNotFoundError:
            if entry.source is not self.stack.upper:  # a whiteout that an overlay below us lists and does not find
                self._forget_whiteout(parent, name, entry)
            raise
        if not st.st_size and entry.source.is_xattr_whiteout(fd, name, st, self.stack.names):
            self._forget_whiteout(parent, name, entry)
            raise error(errno.ENOENT, name)
        directory, data, number = self.examine(parent, name, entry, st)
        if directory is None and st.st_nlink > 1 and self.hard_links is not None:
            tied = self.hard_links.resolve(parent, name, entry, st, data)
            if tied is not None:
                return tied
        if directory is None and entry.source is self.stack.upper:
            known = self._same_upper_file(number, st)
            if known is not None:
                self.add_name(known, parent, name, entry)
                return known, st
        node = self._enter(Node(number, parent, name, entry.source, directory), entry, st)
        if data is not None:
            self.descriptors.data[node.ino] = data
            st = self._with_blocks(node, st)
        return node, st

    def made(self, parent: Node, name: bytes, entry: LayerEntry) -> tuple[Node, os.stat_result]:
        """The node of what has just been made in upper, and its attributes: it has no lower part and no marks, so none are looked for."""
        st = entry.source.stat(self.descriptors.directory_fd(parent, entry.source), name)
        directory = None
        if entry.kind == stat.S_IFDIR:
            directory = Directory(())
            directory.index = Index({}, set())  # not to be read: 8 system calls
            if parent.directory is not None and parent.directory.default_acl == b"":
                directory.default_acl = b""  # nothing to inherit
        node = Node(self.nodes.natural(st.st_dev, st.st_ino), parent, name, entry.source, directory)
        node.protection, node.lacks_capability = 0, True
        return self._enter(node, entry, st), st

    def made_unnamed(self, fd: int) -> tuple[Node, os.stat_result]:
        """The node of the file *fd*, which has just been made without a name on upper's filesystem, and its attributes."""
        path = files.path_at(fd, b"")
        st = self.upper.ownership.read(os.fstat(fd), path)
        node = Node(self.nodes.natural(st.st_dev, st.st_ino), None, b"", self.upper, None)
        node.protection = 0
        node.kind = stat.S_IFREG
        self.orphans.keep(node, self.orphans.prepare_unborn(fd))
        self.nodes.add(node)
        return node, st

    def _enter(self, node: Node, entry: LayerEntry, st: os.stat_result) -> Node:
        node.kind = stat.S_IFMT(st.st_mode)
        self.nodes.add(node)
        entry.node = node
        return node

    def examine(
        self, parent: Node, name: bytes, entry: LayerEntry, st: os.stat_result
    ) -> tuple[Directory | None, Data | None, int]:
        """What a node for *entry*, with the attributes *st*, has to know: its directory part, where its data are, its number."""
        directory = self._merged_directory(parent, name, entry) if stat.S_ISDIR(st.st_mode) else None
        return directory, self._data_of(parent, name, entry, st), self._number(parent, name, entry, st, directory)

    def _forget_whiteout(self, parent: Node, name: bytes, entry: LayerEntry) -> None:
        """*entry* is a whiteout in a directory that does not say it has such: the kernel lists it and finds nothing, here it then goes."""
        index = self.index(parent)
        index.remove(name)
        if entry.source is self.stack.upper:
            index.whiteouts.add(name)

    def _merged_directory(self, parent: Node, name: bytes, entry: LayerEntry) -> Directory:
        above = parent.directory
        assert above is not None
        sources = (entry.source, *entry.more)
        fd_in = partial(self.descriptors.directory_fd, parent)
        return Directory(*lower_directories(self.stack, above.lowers, fd_in, name, sources))

    def _data_of(self, parent: Node, name: bytes, entry: LayerEntry, st: os.stat_result) -> Data | None:
        """Where the data of a metacopy are; None for anything else.

        Looked for only where metacopies are to be expected: under such options, in directories the mark impure says it of, as whoever
        makes a metacopy by copying up sets it, and where a file has a size and no blocks. Elsewhere it would cost a call for each file.
        """
        above, source = parent.directory, entry.source
        assert above is not None
        hollow = st.st_size and not st.st_blocks
        if not stat.S_ISREG(st.st_mode) or not (hollow or self.stack.features.metacopy or self.stack.data or source in above.impure):
            return None
        marks = source.marks(self.descriptors.directory_fd(parent, source), name, self.stack.names)
        return data_of(self.stack, above.lowers, source, name, marks) if self.stack.names.metacopy in marks else None

    def _number(
        self, parent: Node, name: bytes, entry: LayerEntry, st: os.stat_result, directory: Directory | None
    ) -> int:
        """The number an object should have: that of the lower object it is or was copied up from, else upper's own.

        Not that of a lower file with several links: each of them may have been copied up by itself (ovl_getattr).
        """
        if directory is not None:
            if directory.lowers and directory.lowers[0][0] is not entry.source:
                st = self._stat_lower(*directory.lowers[0])
        elif entry.source is self.stack.upper and parent.directory is not None and entry.source in parent.directory.impure:
            value = entry.source.attribute(self.descriptors.directory_fd(parent, entry.source), name, self.stack.names.origin)
            origin = (decode_origin(value, self.stack.lowers) or self.unmoved_origin(parent, name, value)) if value else None
            if origin is not None and origin.st_nlink == 1:
                st = origin
        return self.nodes.natural(st.st_dev, st.st_ino)

    @staticmethod
    def _stat_lower(layer: Layer, path: bytes) -> os.stat_result:
        """Of the directory *path* in a lower."""
        try:
            fd = layer.open_directory(path)
        except OSError as exc:
            if exc.errno != errno.EXDEV:
                raise
        else:
            try:
                return os.fstat(fd)
            finally:
                os.close(fd)
        above, _, name = path.rpartition(b"/")  # a mount point, in a layer that is no private clone
        fd = layer.open_directory(above)
        try:
            return layer.stat(fd, name)
        finally:
            os.close(fd)

    def unmoved_origin(self, parent: Node, name: bytes, value: bytes) -> os.stat_result | None:
        """The lower object an ``origin`` names, for who may not open by handle: found only if it lies where it was copied up from."""
        assert parent.directory is not None
        for layer, _ in parent.directory.lowers:
            fd = self.descriptors.directory_fd(parent, layer)
            try:
                st = layer.stat(fd, name)
            except OSError:
                continue
            return st if encode_origin(layer, fd, name) == value else None
        return None

    def _same_upper_file(self, number: int, st: os.stat_result) -> Node | None:
        """The live node of the upper file *st* when another of its links is known already."""
        known = self.nodes.get(number)
        if known is None or known.kind != stat.S_IFMT(st.st_mode) or known.layer is not self.stack.upper:
            return None
        try:
            other = self.stat(known)
        except OSError:  # its name was taken away under us
            return None
        return known if (other.st_dev, other.st_ino) == (st.st_dev, st.st_ino) else None

    def add_name(self, node: Node, parent: Node, name: bytes, entry: LayerEntry) -> None:
        """*node*, a file in upper, has this name too."""
        entry.node = node
        if node.parent is None:
            self.orphans.drop(node)
            self.nodes.reparent(node, parent, name)
            return
        node.links = [*(node.links or ()), (parent, name)]
        parent.children += 1

    def is_last_name(self, node: Node) -> bool:
        """Whether *node* will be an orphan when a name of it, one in upper if it is tied to others, goes."""
        if self.hard_links is not None and self.hard_links.is_copied(node):
            return self.hard_links.is_last_name(node)
        return node.links is None

    def name_of(self, node: Node) -> tuple[Node, bytes] | None:
        """(directory, name) by which *node* is reached in the union; None when no name is known."""
        if node.links is not None:
            return node.links[-1]
        indexed = self.hard_links is not None and node.parent is self.hard_links.directory
        return None if node.parent is None or indexed else (node.parent, node.name)

    def drop_name(self, node: Node, parent: Node, name: bytes, *, last: bool = False) -> bool:
        """*node* lost this name; *last*: ``is_last_name`` said so. Returns whether another one is left (then it is no orphan)."""
        if self.hard_links is not None and self.hard_links.is_copied(node):
            return self.hard_links.drop_name(node, parent, name, last=last)
        if node.links is None:
            return False
        if node.parent is parent and node.name == name:
            parent, name = node.links[-1]
            node.links = node.links[:-1] or None
            self.bury(self.nodes.reparent(node, parent, name))
            parent.children -= 1
            return True
        node.links = [link for link in node.links if link != (parent, name)] or None
        parent.children -= 1
        self.bury(self.nodes.reap(parent))
        return True

    # -- what nodes hold -------------------------------------------------------------------------------------------------

    def make_orphan(self, node: Node, orphan: Orphan) -> None:
        """*node* has no name any more and lives on as *orphan* says."""
        self.orphans.keep(node, orphan)
        self.descriptors.drop_objects(node)
        if self.hard_links is not None:
            self.hard_links.forget(node)
        if node.directory is not None:
            self.descriptors.drop_directories(node)
            self._unwatch(node)
        self.bury(self.nodes.reparent(node, None, node.name))

    def lose(self, node: Node) -> None:
        """*node* was taken out of the layers under us. A file goes on with the descriptor that is cached of its data, if there is one."""
        self.descriptors.data.pop(node.ino, None)
        fd = self.descriptors.take_file(node)
        self.descriptors.forget(node)
        if fd is not None and self.orphans.held >= self.orphans.limit:
            os.close(fd)
            fd = None
        if node.directory is not None:
            node.directory.index = None
        self.make_orphan(node, Orphan() if fd is None else Orphan(fd=fd))
        self.bury(self.nodes.reap(node))

    def moved(self, node: Node, layer: Layer, directory: Directory | None, data: Data | None) -> None:
        """*node* has its topmost copy in *layer* from now on, and the lower parts of *directory*, or its data at *data*."""
        self.descriptors.forget(node)
        node.layer = layer
        if node.directory is not None and directory is not None:
            if node.directory.lowers != directory.lowers:
                self._unwatch(node)
            node.directory.lowers, node.directory.redirect = directory.lowers, directory.redirect
        elif data is not None:
            self.descriptors.data[node.ino] = data
        else:
            self.descriptors.data.pop(node.ino, None)

    def forget_lowers(self, node: Node) -> None:
        """The directory *node* is upper's alone from now on."""
        assert node.directory is not None
        self.descriptors.drop_directories(node)
        self._unwatch(node)
        node.directory.lowers, node.directory.redirect = (), None

    def bury(self, dead: list[Node]) -> None:
        """Give back all that the removed nodes *dead* held."""
        for node in dead:
            self.descriptors.data.pop(node.ino, None)
            self.filling.pop(node, None)
            self.descriptors.forget(node)
            self.orphans.drop(node)
            self._unwatch(node)
            if self.hard_links is not None:
                self.hard_links.forget(node)
            names = [(node.parent, node.name), *(node.links or ())]
            for parent, name in names:
                if parent is None or parent.directory is None or parent.directory.index is None:
                    continue
                entry = parent.directory.index.entries.get(name)
                if entry is not None and entry.node is node:
                    entry.node = None
            for parent, _ in node.links or ():
                parent.children -= 1
                self.bury(self.nodes.reap(parent))

    def _unwatch(self, node: Node) -> None:
        if self.watcher is not None and node.directory is not None:
            self.watcher.forget(node)

    @property
    def open_descriptors(self) -> int:
        """How many descriptors are held for nodes."""
        return len(self.descriptors) + self.orphans.held

    def close(self) -> None:
        """Close every descriptor the tree holds, not the layers', and remove what lived on in work."""
        for node in self.nodes:
            self.orphans.drop(node)
        self.descriptors.close()
        if self.watcher is not None:
            self.watcher.close()

