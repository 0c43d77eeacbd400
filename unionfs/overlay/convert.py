"""Rewriting an upper in place so that another program reads it: the library of ``unionfs convert``.

Two passes. The first, through the tree that a mount would show, makes the upper stand by itself where the target reads no redirects and no
metacopies: whole directories and data are copied up, and marks that hide nothing go. The second rewrites whiteouts, opaque marks and
attributes, object by object, with no look at the lowers.

What a kill leaves: each step puts the new mark beside the old one before it takes the old one away, so at every instant each path has the
same content, owner, mode and attributes to a reader that knows both encodings, which a mount with ``whfiles`` is. Only the modification
time of what is being changed when the kill comes may be a new one for now: it is noted in an attribute, as is on the upper's root what is
going on, and the same call again finishes the work with all times as they were. What an ordinary user owns and may not read or write has
its owner's permission bits for the moment in which it is (unlocked.py): a kill then leaves it with them. Lowers are only read.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial

from unionfs.errors import LayerError, printable
from unionfs.linux import files, xattrs
from unionfs.linux.overlays import refuse_if_kernel_has
from unionfs.overlay.bring_up import bring_name_up, bring_up
from unionfs.overlay.copy_up import Work, empty_tree
from unionfs.overlay.features import DEFAULTS, Features, Redirect
from unionfs.overlay.layer import Layer
from unionfs.overlay.node import LayerEntry, Node
from unionfs.overlay.redirect import below
from unionfs.overlay.stack import Stack, open_stack
from unionfs.overlay.survey import PREFIXES, Listing, Object, marks_at, walk
from unionfs.overlay.tree import NAME_MAX, Tree
from unionfs.overlay.unlocked import unlocked, where_allowed
from unionfs.overlay.whiteout import (
    CONVERSION,
    FILE_PREFIX,
    HOLDS_XATTR_WHITEOUTS,
    OPAQUE,
    OPAQUE_DEVICE,
    OPAQUE_FILE,
    XattrNames,
    hidden_by_file,
    whiteout_file,
)


class Target(Enum):
    """Who is to read the upper."""

    KERNEL = "kernel"
    USERXATTR = "userxattr"
    FUSE_OVERLAYFS = "fuse-overlayfs"
    OCI = "oci"


@dataclass(frozen=True)
class _Form:
    """How a target marks things.

    ``prefix``: the namespace of its marks, the opaque mark for one; None: it has none, opaque is a file. ``files``: whiteouts are
    ``.wh.`` files. ``reserves``: no other name may begin like that, and the marks of every namespace are hidden or read. ``whole``: it
    follows no redirects and no metacopies. ``carried``: what is kept of the marks that mean the same to it.
    """

    prefix: bytes | None
    files: bool = False
    reserves: bool = False
    whole: bool = True
    carried: frozenset[bytes] = frozenset()


_COPIED = frozenset({b"origin", b"impure", b"protattr"})
_FORMS = {
    Target.KERNEL: _Form(b"trusted.overlay.", whole=False, carried=_COPIED),
    Target.USERXATTR: _Form(b"user.overlay.", carried=_COPIED),
    Target.FUSE_OVERLAYFS: _Form(b"user.fuseoverlayfs.", reserves=True),
    Target.OCI: _Form(None, files=True, reserves=True),
}
_ESCAPE = b"overlay."
#: On what is being changed: the times it will have again.
_TIMES = b"convert.times"


def convert(
    upper: bytes,
    lowers: Sequence[bytes],
    target: Target,
    features: Features = DEFAULTS,
    *,
    work: bytes | None = None,
    data: Sequence[bytes] = (),
) -> None:
    """Make *upper*, which a mount with *features* over *lowers* (topmost first) has written, readable to *target*; see the module.

    *work*: its work directory, else one is made beside it for the time. Raises LayerError before anything is changed for what the target
    cannot have: a name that starts with ``.wh.``, attributes that an overlay inside has stored, damage. InUseError, OSError.
    """
    with ExitStack() as held:
        refuse_if_kernel_has(upper, *(() if work is None else (work,)))
        if features.index and work is None:
            raise LayerError("with index=on the upper cannot be converted without its work directory: name that, too")
        note = _Note.on(upper)
        if note is not None:
            note.check(upper, target)
            features = features._replace(userxattr=note.userxattr, whfiles=note.whfiles)
        followed = Redirect.NOFOLLOW if features.userxattr else Redirect.FOLLOW
        features = features._replace(redirect=followed, metacopy=not features.userxattr, volatile=False)
        place = held.enter_context(_own_work(upper)) if work is None else work
        stack = open_stack(lowers, upper, place, features, data=data, converting=True)
        held.callback(stack.close)
        assert stack.upper is not None
        held.enter_context(unlocked(stack.upper.root_fd))
        _convert(stack, target, features, note or _Note(target, features.userxattr, features.whfiles, first_pass=True))


def _convert(stack: Stack, target: Target, features: Features, note: _Note) -> None:
    form = _FORMS[target]
    assert stack.upper is not None and stack.work is not None
    if stack.work.whiteout_marks is not None or (stack.work.whiteout_files and not form.files):
        raise LayerError(f"{printable(stack.upper.where)}: its filesystem cannot hold the whiteouts of {target.value}")
    kept_in = stack.upper.ownership.attribute
    if kept_in is not None and target is not Target.FUSE_OVERLAYFS:
        reason = f"it keeps owners and modes in {printable(kept_in)}, which {target.value} does not read"
        raise LayerError(f"{printable(stack.upper.where)} cannot be converted: {reason}")
    if form.prefix is not None:
        itself = files.path_at(stack.work.fd, b"")
        try:
            xattrs.put(itself, form.prefix + b"opaque", OPAQUE)
            xattrs.drop(itself, form.prefix + b"opaque")
        except OSError as exc:
            raise LayerError(f"{printable(stack.upper.where)} cannot hold {printable(form.prefix)}* attributes: {exc.strerror}") from exc
    if note.first_pass:
        tree = Tree(stack)
        try:
            _Check(stack, form, target).check(tree)
            note.put(stack.upper)
            _settle(tree, whole=form.whole or features.userxattr)
            if form.prefix != stack.names.prefix:
                _link_all_names(tree)
        finally:
            tree.close()
        note = replace(note, first_pass=False)
        note.put(stack.upper)
    stack.work.whiteout_files = form.files
    _Rewriting(stack.upper, stack.work, XattrNames(features.userxattr, features.whfiles), form).run()
    if form.prefix != stack.names.prefix:
        _empty_index(stack)
    note.drop(stack.upper)


@dataclass(frozen=True)
class _Note:
    """What is going on, as noted on the upper's root, in the namespace of the source."""

    target: Target
    userxattr: bool
    whfiles: bool
    first_pass: bool

    @classmethod
    def on(cls, upper: bytes) -> _Note | None:
        """That of the directory *upper*, None without one."""
        for namespace in (XattrNames(), XattrNames(userxattr=True)):
            try:
                words = os.getxattr(upper, namespace.prefix + CONVERSION).decode("ascii").split()
            except OSError as exc:
                if exc.errno in (errno.ENODATA, errno.EOPNOTSUPP, errno.ENOENT, errno.ENOTDIR):
                    continue
                raise LayerError(f"upper directory {printable(upper)}: {exc.strerror}") from exc
            return cls(Target(words[0]), namespace.userxattr, words[1] == "files", words[2] == "1")
        return None

    def check(self, upper: bytes, target: Target) -> None:
        """LayerError unless *target* is what was begun."""
        if target is not self.target:
            raise LayerError(f"{printable(upper)}: its conversion to {self.target.value} was interrupted and has to be finished first")

    def put(self, layer: Layer) -> None:
        """Note it."""
        words = (self.target.value, "files" if self.whfiles else "marks", "1" if self.first_pass else "2")
        xattrs.put(files.path_at(layer.root_fd, b""), self._name, " ".join(words).encode())

    def drop(self, layer: Layer) -> None:
        """It is done."""
        xattrs.discard(files.path_at(layer.root_fd, b""), self._name)

    @property
    def _name(self) -> bytes:
        return XattrNames(self.userxattr).prefix + CONVERSION


@contextmanager
def _times_kept(path: bytes, names: XattrNames) -> Iterator[None]:
    """The file or directory at a ``files.path_at`` path has the same times after the block as before, be it that of a later run."""
    noted = xattrs.find(path, names.prefix + _TIMES)
    if noted is None:
        st = os.stat(path, follow_symlinks=files.is_descriptor(path))
        noted = b"%d %d" % (st.st_atime_ns, st.st_mtime_ns)
        xattrs.put(path, names.prefix + _TIMES, noted)
    yield
    atime, mtime = noted.split()
    files.utimens(path, int(atime), int(mtime))
    xattrs.discard(path, names.prefix + _TIMES)


@contextmanager
def _own_work(upper: bytes) -> Iterator[bytes]:
    """A work directory beside *upper* for as long as it takes; one that a kill left is taken again."""
    above, name = os.path.split(os.path.realpath(upper))
    path = os.path.join(above, b"." + name + b".convert")
    try:
        os.makedirs(path, 0o700, exist_ok=True)
    except OSError as exc:
        raise LayerError(f"{printable(path)}: {exc.strerror}; name a work directory") from exc
    try:
        yield path
    finally:
        for made in (os.path.join(path, b"work"), path):
            with suppress(OSError):  # not empty: something went wrong, and the next try cleans up
                os.rmdir(made)


# -- before anything is changed ------------------------------------------------------------------------------------------


class _Check:
    """Whether everything in the upper, and everything that will be copied up, can be had in the form wanted."""

    def __init__(self, stack: Stack, form: _Form, target: Target) -> None:
        assert stack.upper is not None
        self._upper = stack.upper
        self._names = stack.names
        self._form = form
        self._target = target

    def check(self, tree: Tree) -> None:
        """LayerError for the first thing that cannot."""
        if self._names.whfiles and not self._form.reserves and self._upper.has_opaque_root(self._names):
            raise self._refusal(b"", "the root is opaque, which it cannot be")
        for listing in walk(self._upper, lend=True):
            if not listing.path:
                self._check(b"", b"", listing.marks)
            for found in listing.objects:
                self._check(listing.below(found.name), found.name, found.marks)
                uncovered = found.marks.get(self._names.nlink, b"").startswith((b"U+", b"L"))
                if uncovered and tree.hard_links is None and self._form.prefix != self._names.prefix:
                    reason = "it has names of which only the index knows (give -o index=on and its work directory)"
                    raise self._refusal(listing.below(found.name), reason)
                if self._form.files and found.is_device_whiteout and len(whiteout_file(found.name)) > NAME_MAX:
                    raise self._refusal(listing.below(found.name), "the name is too long for a whiteout file")
        try:
            for _, child, marks in _in_upper(tree, tree.root):
                if self._form.whole and self._names.redirect in marks and child.directory is not None and child.directory.lowers:
                    for parent, name, _, inner in below(tree, child):
                        self._check(os.path.join(parent.path(), name), name, marks_at(tree.descriptors.path(inner)))
        except OSError as exc:
            raise LayerError(
                f"{printable(self._upper.where)}: {printable(exc.filename or b'')}: {exc.strerror}; see unionfs fsck"
            ) from exc

    def _check(self, path: bytes, name: bytes, marks: Mapping[bytes, bytes]) -> None:
        if self._form.reserves and not self._names.whfiles and name.startswith(FILE_PREFIX):
            raise self._refusal(path, "a name that starts with .wh. is a whiteout there")
        for mark in marks:
            if self._names.is_private(mark):
                continue
            there = self._form.prefix is not None and mark.startswith(self._form.prefix)
            escaped = self._names.shown(mark) != mark
            if not there if escaped else there or self._form.reserves:
                raise self._refusal(path, f"the attribute {printable(mark)}, of an overlay inside, cannot be told from a mark there")

    def _refusal(self, path: bytes, reason: str) -> LayerError:
        where = os.path.join(self._upper.where, path)
        return LayerError(f"{printable(where)} cannot be converted to {self._target.value}: {reason}")


def _in_upper(tree: Tree, node: Node) -> Iterator[tuple[LayerEntry, Node, dict[bytes, bytes]]]:
    """Everything below the directory *node* that is in upper, with its marks; a directory before what it holds."""
    for name, entry in list(tree.allowed(partial(tree.index, node), node).entries.items()):
        if entry.source is not tree.upper:
            continue
        child, _ = tree.allowed(partial(tree.resolve, node, name, entry), node, name)
        child.lookups += 1
        try:
            yield entry, child, tree.allowed(partial(_marks, tree, node, name), node, name)
            if child.directory is not None:
                yield from _in_upper(tree, child)
        finally:
            child.lookups -= 1
            tree.bury(tree.nodes.reap(child))


def _marks(tree: Tree, directory: Node, name: bytes) -> dict[bytes, bytes]:
    return tree.upper.marks(tree.upper_fd(directory), name, tree.stack.names)


# -- the first pass ------------------------------------------------------------------------------------------------------


def _settle(tree: Tree, *, whole: bool) -> None:
    """Take away what means nothing, and with *whole* what refers to lower layers by other than its name."""
    for entry, child, marks in _in_upper(tree, tree.root):
        step = partial(_settle_directory if child.directory is not None else _settle_file, tree, entry, child, marks, whole=whole)
        tree.allowed(step, child.parent or tree.root, child.name)


def _settle_file(tree: Tree, entry: LayerEntry, node: Node, marks: dict[bytes, bytes], *, whole: bool) -> None:
    if not whole:
        return
    _bring_data_up(tree, node)
    if tree.stack.names.redirect in marks:  # of no use once the data are here
        xattrs.discard(tree.descriptors.place(node), tree.stack.names.redirect)


def _bring_data_up(tree: Tree, node: Node) -> None:
    """Have the file *node* and its data in upper."""
    names = tree.stack.names
    if node.layer is not tree.upper:
        bring_up(tree, node)
    elif tree.descriptors.is_metacopy(node) or xattrs.find(tree.descriptors.place(node), names.prefix + _TIMES) is not None:
        with _times_kept(tree.descriptors.path(node), names):
            bring_up(tree, node)


def _settle_directory(tree: Tree, entry: LayerEntry, node: Node, marks: dict[bytes, bytes], *, whole: bool) -> None:
    directory, names = node.directory, tree.stack.names
    assert directory is not None
    if whole and names.redirect in marks:
        _make_whole(tree, node)
        if names.opaque not in marks:
            xattrs.put(tree.descriptors.place(node), names.opaque, OPAQUE)  # it may have had nothing below to begin with
        xattrs.discard(tree.descriptors.place(node), names.redirect)
    if directory.lowers:
        return
    assert node.parent is not None and node.parent.directory is not None
    merged_parent = node.parent.parent is None or bool(node.parent.directory.lowers)
    hides = merged_parent and bool(entry.below or entry.more)
    fd = tree.upper_fd(node)
    path = files.path_at(fd, b"")
    if not hides:
        for mark in names.all_opaque:
            if xattrs.find(path, mark) == OPAQUE:
                xattrs.discard(path, mark)
    if names.whfiles or tree.index(node).whiteouts or names.prefix + _TIMES in marks:
        with _times_kept(path, names):
            tree.drop_whiteouts(node)
            for name in (OPAQUE_FILE, OPAQUE_DEVICE) if names.whfiles and not hides else ():
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=fd)


def _make_whole(tree: Tree, node: Node) -> None:
    """Make the directory *node* be upper's alone: all below it is brought up, then it is made opaque. At any moment it looks the same."""
    bring_up(tree, node)
    directory, names = node.directory, tree.stack.names
    assert directory is not None
    fd = tree.upper_fd(node)
    with _times_kept(files.path_at(fd, b""), names):
        for name, entry in list(tree.index(node).entries.items()):
            child, _ = tree.resolve(node, name, entry)
            child.lookups += 1
            try:
                if child.directory is None:
                    bring_name_up(tree, child, node, name, entry)
                    _bring_data_up(tree, child)
                else:
                    _make_whole(tree, child)
                entry.below, entry.more = False, ()
            finally:
                child.lookups -= 1
                tree.bury(tree.nodes.reap(child))
        path = files.path_at(tree.upper_fd(node), b"")
        if directory.lowers:
            xattrs.put(path, names.opaque, OPAQUE)
        tree.drop_whiteouts(node)
    tree.forget_lowers(node)


def _link_all_names(tree: Tree) -> None:
    """Have in upper every name of the files that were copied up to the index: without that the others would show what is in the lower."""
    if tree.hard_links is None:
        return
    for parent, name, entry, node in below(tree, tree.root):
        if tree.hard_links.is_copied(node):
            tree.allowed(partial(bring_name_up, tree, node, parent, name, entry), parent, name)


def _empty_index(stack: Stack) -> None:
    """Nobody else reads ``WORKDIR/index``; what it holds is in upper by all its names."""
    assert stack.work is not None
    with suppress(FileNotFoundError):
        above = os.open(b"..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=stack.work.fd)
        try:
            empty_tree(above, b"index")
        finally:
            os.close(above)


# -- the second pass -----------------------------------------------------------------------------------------------------


class _Rewriting:
    """Every whiteout, opaque mark and attribute of *layer* from the encoding of *source* to *form*. What is so already stays."""

    def __init__(self, layer: Layer, work: Work, source: XattrNames, form: _Form) -> None:
        self._layer = layer
        self._work = work
        self._source = source
        self._form = form
        #: Names that begin with .wh. are marks: by the source, or because the target has no others and they come from us.
        self._files = source.whfiles or form.reserves
        wanted = {source.prefix, *([form.prefix] if form.prefix else []), *(PREFIXES if source.whfiles else ())}
        self._prefixes = tuple(prefix for prefix in PREFIXES if prefix in wanted)

    def run(self) -> None:
        """The whole layer."""
        for listing in walk(self._layer, lend=True):
            objects = {found.name: found for found in listing.objects}
            if self._changes_names(listing, objects):
                with _times_kept(files.path_at(listing.fd, b""), self._source):
                    self._directory(listing, objects)
            else:
                self._directory(listing, objects)

    def _changes_names(self, listing: Listing, objects: Mapping[bytes, Object]) -> bool:
        """Whether the directory's times are at stake, or have been before a kill."""
        if self._source.prefix + _TIMES in listing.marks or any(map(self._is_file_mark, objects)):
            return True
        opaque = self._is_opaque(listing, objects)
        moving = self._form.files or opaque or listing.marks.get(self._source.opaque) == HOLDS_XATTR_WHITEOUTS
        return opaque and self._form.prefix is None or moving and bool(self._whiteouts(listing, objects))

    def _directory(self, listing: Listing, objects: Mapping[bytes, Object]) -> None:
        opaque = self._is_opaque(listing, objects)
        if opaque:
            self._make_opaque(listing.fd)
        for name in self._whiteouts(listing, objects):
            self._whiteout(listing.fd, name, objects.get(name), opaque=opaque)
        self._drop_other_opaque(listing, objects, opaque=opaque)
        if not listing.path:
            self._attributes(files.path_at(listing.fd, b""), listing.marks, stat.S_IFDIR)
        for found in listing.objects:
            if self._is_whiteout(listing, found) or self._is_file_mark(found.name):
                continue
            path = files.path_at(listing.fd, found.name)
            step = partial(self._attributes, path, found.marks, stat.S_IFMT(found.st.st_mode))
            where_allowed(step, listing.fd, found.name, os.path.join(self._layer.where, listing.below(found.name)))

    # -- opaque directories ----------------------------------------------------------------------------------------------

    def _is_opaque(self, listing: Listing, objects: Mapping[bytes, Object]) -> bool:
        if not listing.path and not self._source.whfiles:  # a root is always merged
            return False
        if any(listing.marks.get(prefix + b"opaque") == OPAQUE for prefix in self._prefixes):
            return True
        device = objects.get(OPAQUE_DEVICE)
        return self._files and (OPAQUE_FILE in objects or device is not None and device.is_device_whiteout)

    def _make_opaque(self, fd: int) -> None:
        if self._form.prefix is not None:
            xattrs.put(files.path_at(fd, b""), self._form.prefix + b"opaque", OPAQUE)
            return
        with suppress(FileExistsError):
            os.close(os.open(OPAQUE_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=fd))

    def _drop_other_opaque(self, listing: Listing, objects: Mapping[bytes, Object], *, opaque: bool) -> None:
        path = files.path_at(listing.fd, b"")
        for prefix in self._prefixes:
            value = listing.marks.get(prefix + b"opaque")
            if value is not None and not (opaque and prefix == self._form.prefix):
                xattrs.discard(path, prefix + b"opaque")
        if not self._files:
            return
        for name in objects:
            if self._is_file_mark(name) and hidden_by_file(name) is None and not (opaque and self._form.files and name == OPAQUE_FILE):
                self._remove(listing.fd, name)

    # -- whiteouts -------------------------------------------------------------------------------------------------------

    def _is_file_mark(self, name: bytes) -> bool:
        return self._files and name.startswith(FILE_PREFIX)

    def _is_whiteout(self, listing: Listing, found: Object) -> bool:
        if found.is_device_whiteout:
            return True
        marked = listing.marks.get(self._source.opaque) == HOLDS_XATTR_WHITEOUTS
        return marked and found.is_file and found.st.st_size == 0 and self._source.whiteout in found.marks

    def _whiteouts(self, listing: Listing, objects: Mapping[bytes, Object]) -> list[bytes]:
        """The names that any kind of whiteout hides, each once."""
        hidden: dict[bytes, None] = {}
        for found in objects.values():
            if self._is_file_mark(found.name):
                name = hidden_by_file(found.name)
                if name is not None:
                    hidden[name] = None
            elif self._is_whiteout(listing, found):
                hidden[found.name] = None
        return list(hidden)

    def _whiteout(self, fd: int, name: bytes, found: Object | None, *, opaque: bool) -> None:
        """*found*: what has the name itself, a whiteout or what is shown in place of what was hidden."""
        shown = found is not None and not found.is_device_whiteout and self._source.whiteout not in found.marks
        if shown or opaque:
            if shown and not opaque and found is not None and found.is_directory:
                inner = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                try:
                    with unlocked(inner), _times_kept(files.path_at(inner, b""), self._source):
                        self._make_opaque(inner)
                finally:
                    os.close(inner)
            elif not shown and found is not None:
                os.unlink(name, dir_fd=fd)
            if self._files:
                self._work.uncover(fd, name)
            return
        if found is not None and not found.is_device_whiteout and not self._form.files:
            made = self._work.name()
            self._work.cover(self._work.fd, made)
            files.renameat2(self._work.fd, made, fd, name)
            return
        if self._files:
            self._work.convert_whiteout(fd, name)

    def _remove(self, fd: int, name: bytes) -> None:
        gone = self._work.name()
        files.renameat2(fd, name, self._work.fd, gone)
        self._work.discard(gone)

    # -- attributes ------------------------------------------------------------------------------------------------------

    def _attributes(self, path: bytes, marks: Mapping[bytes, bytes], kind: int) -> None:
        """Carry over what the target has a use for, and drop the rest of what the source hides. *kind*: of the object, S_IFDIR ..."""
        same = self._form.prefix == self._source.prefix
        can_hold = self._form.prefix == b"trusted.overlay." or kind in (stat.S_IFDIR, stat.S_IFREG)
        for mark, value in marks.items():
            prefix = next(known for known in PREFIXES if mark.startswith(known))
            short = mark[len(prefix) :]
            if prefix not in self._prefixes or short.startswith(_ESCAPE) or short in (CONVERSION, _TIMES):
                continue
            if short == b"opaque" and kind == stat.S_IFDIR or prefix == self._form.prefix and (same or short in self._form.carried):
                continue
            if prefix == self._source.prefix and short in self._form.carried and can_hold:
                assert self._form.prefix is not None
                xattrs.put(path, self._form.prefix + short, value)
            xattrs.discard(path, mark)
