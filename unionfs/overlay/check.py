"""What is wrong with an upper and its work directory, and making it right: the library of ``unionfs fsck``.

The rules are those by which the kernel reads a layer (fs/overlayfs/namei.c, util.c). A repair changes what no reader could have meant, or
what a mount would do anyway; where data might be lost or two readings are possible, a finding stays for a person to decide. Each repair is
one system call, or two in an order that keeps what is shown after the first: a kill leaves at most something that is found again.
Lowers are only read.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass
from enum import Enum
from functools import partial

from unionfs.errors import InUseError, LayerError, printable
from unionfs.linux import files, xattrs
from unionfs.linux.overlays import refuse_if_kernel_has
from unionfs.linux.process import may_follow_handles
from unionfs.overlay.copy_up import decode_origin, remove_tree
from unionfs.overlay.features import DEFAULTS, Features, Redirect
from unionfs.overlay.index_dir import origin_of, read_nlink
from unionfs.overlay.layer import Layer
from unionfs.overlay.lookup import data_of
from unionfs.overlay.node import Directory, Node
from unionfs.overlay.stack import hold
from unionfs.overlay.survey import PREFIXES, Listing, Object, marks_at, open_for_reading, walk
from unionfs.overlay.tree import Tree
from unionfs.overlay.whiteout import (
    CONVERSION,
    FILE_PREFIX,
    HOLDS_XATTR_WHITEOUTS,
    IMPURE,
    OPAQUE,
    OPAQUE_DEVICE,
    OPAQUE_FILE,
    XattrNames,
    check_metacopy,
    hidden_by_file,
    is_whiteout_device,
    read_redirect,
)


class Kind(Enum):
    """What can be wrong."""

    REDIRECT = "redirect"
    METACOPY = "metacopy"
    WHITEOUT = "whiteout"
    OPAQUE = "opaque"
    IMPURE = "impure"
    MISPLACED = "misplaced"
    ENCODING = "encoding"
    ORIGIN = "origin"
    INDEX = "index"
    WORK = "work"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with *path*, which starts with the directory it is in as the caller named that.

    ``text`` says what in a few words. ``repairable``: a repair makes it right; what is not is left to a person. ``harmless``: no reader
    minds it, it is only worth knowing.
    """

    kind: Kind
    path: bytes
    text: str
    repairable: bool = False
    harmless: bool = False


_Repair = Callable[[], None]
_Found = tuple[Finding, _Repair | None]


def check(
    upper: bytes,
    lowers: Sequence[bytes],
    work: bytes | None,
    features: Features = DEFAULTS,
    *,
    data: Sequence[bytes] = (),
    repair: bool = False,
) -> list[Finding]:
    """Everything wrong with *upper* over *lowers* (topmost first) and its *work*, if it has one, as a mount with *features* would meet it.

    With *repair* what is repairable has been repaired on return. Redirects and metacopies are looked at whether or not the features follow
    them; what they do not follow is told once for all. Raises LayerError, InUseError (a repair while a mount has the upper), OSError.
    """
    with ExitStack() as held:
        live = False
        try:
            top, place = _hold(held, upper, work)
        except InUseError:
            if repair:
                raise
            live = True
        if not repair:
            held.close()
        followed = Redirect.NOFOLLOW if features.userxattr else Redirect.FOLLOW
        wanted = features._replace(redirect=followed, metacopy=not features.userxattr)
        stack = open_for_reading(upper, lowers, wanted, data)
        held.callback(stack.close)
        tree = Tree(stack)
        held.callback(tree.close)
        found = _Upper(tree, upper, top if repair else stack.lowers[0], features).findings()
        findings = list(_settled(found, repair=repair))
        if work is not None and not live:
            place = place if repair and place is not None else _open_work(held, work)
            findings += _settled(_in_work(place, work, stack.lowers[1:], stack.names), repair=repair)
        return findings


def _hold(held: ExitStack, upper: bytes, work: bytes | None) -> tuple[Layer, Layer | None]:
    """Upper and work, with no mount on them until *held* is closed."""
    refuse_if_kernel_has(upper, *(() if work is None else (work,)))
    return _hold_one(held, upper, "upper"), None if work is None else _hold_one(held, work, "work")


def _hold_one(held: ExitStack, path: bytes, what: str) -> Layer:
    layer, lock = hold(path, what)
    held.callback(os.close, lock)
    held.callback(layer.close)
    return layer


def _open_work(held: ExitStack, work: bytes) -> Layer:
    try:
        fd = os.open(work, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise LayerError(f"work directory {printable(work)}: {exc.strerror}") from exc
    layer = Layer(fd, private=False, where=work)
    held.callback(layer.close)
    return layer


def _settled(found: Iterator[_Found], *, repair: bool) -> Iterator[Finding]:
    for finding, action in found:
        if repair and action is not None:
            action()
        yield finding


@dataclass
class _Unread:
    """What is all right but not for the mount's own options: the first path in order, and how many."""

    first: bytes = b""
    number: int = 0

    def count(self, where: bytes) -> None:
        """One more."""
        self.first = min(self.first, where) if self.number else where
        self.number += 1

    def finding(self, kind: Kind, text: str, cure: str) -> Iterator[_Found]:
        """One for all of them, if there is any."""
        if self.number:
            more = f", and so with {self.number - 1} more" if self.number > 1 else ""
            yield Finding(kind, self.first, f"{text}{more}: mount with {cure}"), None


class _Upper:
    """One pass over the upper.

    *layer*: where it is read, and changed when that is wanted; *tree* has it as its topmost lower and follows everything; *features*: those
    of the mount that is to read it.
    """

    def __init__(self, tree: Tree, where: bytes, layer: Layer, features: Features) -> None:
        self._tree = tree
        #: The layers as they are to a mount that follows everything, and to one with the features given.
        self._complete = copy(tree.stack)
        self._complete.upper = tree.stack.lowers[0]
        self._mounted = copy(self._complete)
        self._mounted.features = features
        self._unread_redirects, self._unread_metacopies = _Unread(), _Unread()
        self._names = tree.stack.names
        self._where = where
        self._layer = layer
        #: Directories seen but not yet visited, with their nodes; None: what is below them is not known.
        self._nodes: dict[bytes, Node | None] = {b"": tree.root}
        #: The upper directory that shows each lower one.
        self._shown: dict[tuple[Layer, bytes], bytes] = {}
        #: Stands for every directory that no lower has a part in although the tree thinks otherwise.
        self._alone = Node(0, None, b"", layer, None)
        self._handles = _can_open_handles(tree.stack.lowers[1:])

    def findings(self) -> Iterator[_Found]:
        """All of them; each may be repaired before the next is asked for."""
        root = _root_object(self._layer)
        if any(prefix + CONVERSION in root.marks for prefix in PREFIXES):
            yield Finding(Kind.ENCODING, self._where, "its conversion was interrupted and has to be finished (unionfs convert)"), None
        yield from self._opacity(self._where, files.path_at(self._layer.root_fd, b""), root)
        for listing in walk(self._layer):
            node = self._nodes.pop(listing.path, None)
            yield from self._impurity(listing)
            for found in listing.objects:
                if self._is_whiteout(listing, found):
                    yield from self._whiteout(listing, found, node)
                    continue
                yield from self._object(listing, found, node)
        yield from self._unread_redirects.finding(Kind.REDIRECT, "its redirect is not followed", "redirect_dir=follow")
        yield from self._unread_metacopies.finding(Kind.METACOPY, "its data are in a lower directory", "metacopy=on")

    def _at(self, listing: Listing, name: bytes) -> bytes:
        return os.path.join(self._where, listing.below(name))

    # -- directories -----------------------------------------------------------------------------------------------------

    def _object(self, listing: Listing, found: Object, parent: Node | None) -> Iterator[_Found]:
        path = files.path_at(listing.fd, found.name)
        where = self._at(listing, found.name)
        yield from self._misplaced(where, path, found)
        yield from self._foreign(listing, found, parent)
        yield from self._origin(where, found)
        if found.is_directory:
            yield from self._opacity(where, path, found)
            yield from self._directory(listing, found, parent)
        elif found.is_file and self._names.metacopy in found.marks:
            yield from self._metacopy(listing, found, parent)

    def _directory(self, listing: Listing, found: Object, parent: Node | None) -> Iterator[_Found]:
        """Its redirect, and where it leads."""
        where, path = self._at(listing, found.name), files.path_at(listing.fd, found.name)
        redirect = found.marks.get(self._names.redirect)
        opaque = found.marks.get(self._names.opaque) == OPAQUE
        relative = listing.below(found.name)
        self._nodes[relative] = None
        if redirect is not None and not opaque:
            if self._tree.stack.features.userxattr:
                yield Finding(Kind.REDIRECT, where, f"redirect to {printable(redirect)}, which userxattr refuses"), None
                return
            try:
                read_redirect(redirect)
            except OSError:
                yield self._cut(where, path, f"invalid redirect {printable(redirect)}")
                self._nodes[relative] = self._alone
                return
        if parent is None:
            return
        try:
            node = self._resolve(parent, found.name)
        except OSError as exc:
            if exc.errno not in (errno.EINVAL, errno.EPERM, errno.EIO):
                raise
            yield Finding(Kind.REDIRECT, where, "its way through the lower directories ends at an invalid redirect there"), None
            return
        self._nodes[relative] = node
        if node is None or opaque or node.directory is None:
            return
        lower = next((place for place in node.directory.lowers if place[0] is not self._tree.stack.lowers[0]), None)
        if lower is None:
            if redirect is not None:
                yield self._cut(where, path, f"redirect to {printable(redirect)}, which is in no lower directory")
            return
        if redirect is not None and not self._mounted.features.redirect.follow:
            self._unread_redirects.count(where)
        first = self._shown.setdefault(lower, where)
        if first != where:
            yield Finding(Kind.REDIRECT, where, f"shows the same lower directory {printable(b'/' + lower[1])} as {printable(first)}"), None

    def _cut(self, where: bytes, path: bytes, text: str) -> _Found:
        """A redirect that leads nowhere is replaced by opaqueness: what is shown stays, whatever a lower has under the new name."""
        return Finding(Kind.REDIRECT, where, text, repairable=True), partial(self._make_opaque_instead, path)

    def _make_opaque_instead(self, path: bytes) -> None:
        xattrs.put(path, self._names.opaque, OPAQUE)
        xattrs.discard(path, self._names.redirect)

    def _resolve(self, parent: Node, name: bytes) -> Node | None:
        """The node of *name*; None when it has gone, or is not what upper has."""
        if parent.directory is None:
            return self._alone
        entry = self._tree.find(parent, name)
        if entry is None or entry.source is not self._tree.stack.lowers[0]:
            return None
        try:
            return self._tree.resolve(parent, name, entry)[0]
        except FileNotFoundError:
            return None

    def _opacity(self, where: bytes, path: bytes, found: Object) -> Iterator[_Found]:
        value = found.marks.get(self._names.opaque)
        if value not in (None, OPAQUE, HOLDS_XATTR_WHITEOUTS):
            text = f"opaque is {printable(value or b'')!r}, which means nothing"
            yield self._drop(Kind.OPAQUE, where, path, self._names.opaque, text)

    def _impurity(self, listing: Listing) -> Iterator[_Found]:
        """The mark without which entries that come from below show other numbers in a listing than to stat."""
        if listing.marks.get(self._names.impure) == IMPURE:
            return
        for found in listing.objects:
            linked = not found.is_directory and found.st.st_nlink > 1  # a link elsewhere is made without the mark, by the kernel too
            if not linked and found.marks.get(self._names.origin):
                path = files.path_at(listing.fd, b"")
                where = os.path.join(self._where, listing.path) if listing.path else self._where
                text = f"holds {printable(found.name)}, which comes from below, but is not marked impure"
                yield Finding(Kind.IMPURE, where, text, repairable=True), partial(xattrs.put, path, self._names.impure, IMPURE)
                return

    # -- other objects ---------------------------------------------------------------------------------------------------

    def _metacopy(self, listing: Listing, found: Object, parent: Node | None) -> Iterator[_Found]:
        """Its data; they are never given up here, as they may come back with the right lower directories."""
        where = self._at(listing, found.name)
        if self._tree.stack.features.userxattr:
            yield Finding(Kind.METACOPY, where, "its data are in a lower directory, which userxattr refuses"), None
            return
        try:
            check_metacopy(found.marks[self._names.metacopy])
        except OSError:
            yield Finding(Kind.METACOPY, where, "invalid metacopy mark"), None
            return
        if parent is None:
            return
        try:
            node = self._resolve(parent, found.name)
            if node is not None and parent.directory is not None:
                # The tree takes upper for a lower, from which a data-only layer is reached directly; from an upper it is not.
                data_of(self._complete, parent.directory.lowers, self._complete.lowers[0], found.name, dict(found.marks))
                self._tree.descriptors.file_fd(node, writable=False)
                if not self._is_read(found, parent.directory):
                    self._unread_metacopies.count(where)
                return
        except OSError as exc:
            if exc.errno not in (errno.EIO, errno.EINVAL, errno.EPERM):
                raise
        else:
            if node is None:
                return
        yield Finding(Kind.METACOPY, where, "its data are in no lower directory"), None

    def _is_read(self, found: Object, directory: Directory) -> bool:
        """Whether the mount's own options find the data of the metacopy *found*: in a data-only layer it needs none."""
        try:
            data_of(self._mounted, directory.lowers, self._mounted.lowers[0], found.name, dict(found.marks))
        except OSError as exc:
            if exc.errno != errno.EPERM:
                raise
            return False
        return True

    def _is_whiteout(self, listing: Listing, found: Object) -> bool:
        if found.name.startswith(FILE_PREFIX):  # a mark of another program, whatever it is: fuse-overlayfs has a device for opaque
            return False
        marked = listing.marks.get(self._names.opaque) == HOLDS_XATTR_WHITEOUTS
        return found.is_device_whiteout or marked and found.is_file and found.st.st_size == 0 and self._names.whiteout in found.marks

    def _whiteout(self, listing: Listing, found: Object, parent: Node | None) -> Iterator[_Found]:
        where = self._at(listing, found.name)
        if not found.is_device_whiteout:
            yield Finding(Kind.WHITEOUT, where, "a whiteout by attribute, which an upper cannot have"), None
        elif parent is not None and self._is_unmerged(parent):
            text = "a whiteout in a directory that no lower has a part in"
            yield Finding(Kind.WHITEOUT, where, text, repairable=True), partial(_unlink_quietly, listing.fd, found.name)

    def _is_unmerged(self, node: Node) -> bool:
        if node.directory is None:
            return True
        upper = self._tree.stack.lowers[0]
        return node.parent is not None and all(layer is upper for layer, _ in node.directory.lowers)

    def _misplaced(self, where: bytes, path: bytes, found: Object) -> Iterator[_Found]:
        """Marks on objects of a kind that cannot have them."""
        names = self._names
        wrong = [] if found.is_directory else [names.opaque, names.impure]
        if not (found.is_file and found.st.st_size == 0):
            wrong.append(names.whiteout)
        if not found.is_file:
            wrong.append(names.metacopy)
        if not (found.is_directory or found.is_file):
            wrong.append(names.redirect)
        for name in wrong:
            if name in found.marks:
                yield self._drop(Kind.MISPLACED, where, path, name, f"{printable(name)} on {_KINDS[stat.S_IFMT(found.st.st_mode)]}")

    def _drop(self, kind: Kind, where: bytes, path: bytes, name: bytes, text: str) -> _Found:
        return Finding(kind, where, text, repairable=True), partial(xattrs.discard, path, name)

    def _origin(self, where: bytes, found: Object) -> Iterator[_Found]:
        value = found.marks.get(self._names.origin)
        if value and self._handles and decode_origin(value, self._tree.stack.lowers[1:]) is None:
            yield Finding(Kind.ORIGIN, where, "its origin is in no lower directory: its inode number is its own", harmless=True), None

    # -- other programs --------------------------------------------------------------------------------------------------

    def _foreign(self, listing: Listing, found: Object, parent: Node | None) -> Iterator[_Found]:
        """Marks this mount does not read, where another reader would show something else. Converting the upper settles them."""
        where = self._at(listing, found.name)
        if found.name.startswith(FILE_PREFIX) and not self._tree.stack.features.whfiles:
            hides = self._hides(listing, found, parent)
            text = "a whiteout file, which only whfiles reads" if hides else "with whfiles this were a whiteout"
            yield Finding(Kind.ENCODING, where, text, harmless=not hides), None
        for name in self._foreign_marks(found):
            nested = name.startswith(b"user.overlay.")  # what an overlay in the mount, of an ordinary user, has stored
            yield Finding(Kind.ENCODING, where, f"{printable(name)}, which this mount does not read", harmless=nested), None

    def _hides(self, listing: Listing, found: Object, parent: Node | None) -> bool:
        """Whether something is shown that the file *found* would hide."""
        if parent is None or parent.directory is None:
            return False
        if found.name in (OPAQUE_FILE, OPAQUE_DEVICE):
            return not self._is_unmerged(parent) and listing.path != b""
        hidden = hidden_by_file(found.name)
        return hidden is not None and self._tree.find(parent, hidden) is not None

    def _foreign_marks(self, found: Object) -> Iterator[bytes]:
        own = self._names
        for prefix in PREFIXES:
            if prefix == own.prefix or self._tree.stack.features.whfiles:
                continue
            if found.is_directory and found.marks.get(prefix + b"opaque") == OPAQUE and found.marks.get(own.opaque) != OPAQUE:
                yield prefix + b"opaque"
            if found.is_directory and prefix + b"redirect" in found.marks:
                yield prefix + b"redirect"
            if found.is_file and prefix + b"metacopy" in found.marks:
                yield prefix + b"metacopy"


_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFREG: "a file",
    stat.S_IFLNK: "a symlink",
    stat.S_IFIFO: "a fifo",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _root_object(layer: Layer) -> Object:
    return Object(b"", os.fstat(layer.root_fd), marks_at(files.path_at(layer.root_fd, b"")))


def _unlink_quietly(dir_fd: int, name: bytes) -> None:
    """Remove *name* and leave the times of its directory as they were."""
    with files.kept_times(dir_fd):
        os.unlink(name, dir_fd=dir_fd)


def _can_open_handles(layers: Sequence[Layer]) -> bool:
    """Whether file handles in all *layers* can be followed: it takes privilege, and filesystems that have them."""
    if not may_follow_handles():
        return False
    for layer in layers:
        try:
            kind, handle = files.file_handle(layer.root_fd, b".")
            with layer.for_handles() as mount_fd:
                os.close(files.open_by_handle(mount_fd, kind, handle))
        except OSError:
            return False
    return bool(layers)


# -- the work directory --------------------------------------------------------------------------------------------------


def _in_work(place: Layer, where: bytes, lowers: Sequence[Layer], names: XattrNames) -> Iterator[_Found]:
    for name in _names_in(place, b"work"):
        if name == b"incompat":
            for mark in _names_in(place, b"work/incompat"):
                text = f"left by a {printable(mark)} mount: no mount takes it; delete it if the machine has not crashed since"
                yield Finding(Kind.WORK, os.path.join(where, b"work/incompat", mark), text), None
            continue
        yield _leftover(place, where, b"work", name)
    yield from _in_index(place, where, lowers, names)


def _leftover(place: Layer, where: bytes, directory: bytes, name: bytes) -> _Found:
    fd = place.open_directory(directory)
    try:
        shared = is_whiteout_device(place.stat(fd, name))
    finally:
        os.close(fd)
    path = os.path.join(where, directory, name)
    if shared:
        finding = Finding(Kind.WORK, path, "a whiteout that the kernel had in store for further links", repairable=True, harmless=True)
    else:
        finding = Finding(Kind.WORK, path, "left by a mount that did not end, removed by the next one", repairable=True)
    return finding, partial(_remove, place, directory, name)


def _remove(place: Layer, directory: bytes, name: bytes) -> None:
    fd = place.open_directory(directory)
    try:
        remove_tree(fd, name)
    finally:
        os.close(fd)


def _in_index(place: Layer, where: bytes, lowers: Sequence[Layer], names: XattrNames) -> Iterator[_Found]:
    """What a mount with index=on minds in its index (fs/overlayfs/readdir.c ovl_indexdir_cleanup, and index_dir.py)."""
    entries = _names_in(place, b"index")
    if not entries:
        return
    handles = _can_open_handles(lowers)
    fd = place.open_directory(b"index")
    try:
        for name in entries:
            if name.startswith(b"#"):
                yield _leftover(place, where, b"index", name)
                continue
            text, repairable, harmless = _judge_entry(fd, name, place.stat(fd, name), tuple(lowers) if handles else (), names)
            if text:
                finding = Finding(Kind.INDEX, os.path.join(where, b"index", name), text, repairable, harmless)
                yield finding, partial(os.unlink, name, dir_fd=fd) if repairable else None
    finally:
        os.close(fd)


def _judge_entry(fd: int, name: bytes, st: os.stat_result, lowers: tuple[Layer, ...], names: XattrNames) -> tuple[str, bool, bool]:
    """(what is wrong, repairable, harmless) with one entry; no text when nothing is. Without *lowers* handles cannot be followed."""
    path, origin = files.path_at(fd, name), origin_of(name)
    if origin is None:
        return "no entry of an index: mounts with index=on refuse it", False, False
    if stat.S_ISDIR(st.st_mode) or is_whiteout_device(st):  # from a mount with nfs_export
        return "", False, False
    if xattrs.find(path, names.origin) != origin:
        return "an index entry that does not say what it is the copy of", False, False
    if not lowers:
        return "", False, False
    lower = decode_origin(origin, lowers)
    if lower is not None:
        orphan = st.st_nlink == 1 and read_nlink(path, names.nlink, 1, lower.st_nlink) is None
        return ("an index entry without a name", True, False) if orphan else ("", False, False)
    if st.st_nlink > 1:
        return "an index entry of what is in no lower directory any more", False, True
    return "an index entry of what is in no lower directory any more, and its only name: mounts with index=on remove it", False, False


def _names_in(place: Layer, path: bytes) -> list[bytes]:
    inside = files.RESOLVE_BENEATH | files.RESOLVE_NO_SYMLINKS
    try:
        fd = files.openat2(place.root_fd, path, os.O_RDONLY | os.O_DIRECTORY, inside)
    except (FileNotFoundError, NotADirectoryError):
        return []
    try:
        return sorted(os.fsencode(name) for name in os.listdir(fd))
    finally:
        os.close(fd)
