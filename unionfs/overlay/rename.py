"""rename: the verb with the most cases, each one atomic step in upper where the filesystem allows.

Rules as fs/overlayfs/dir.c ovl_rename: what has something below it leaves a whiteout behind; a directory that arrives where a lower
has one of its name becomes opaque first.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import nullcontext

from unionfs.errors import error
from unionfs.linux import files, xattrs
from unionfs.overlay.bring_up import bring_name_up, bring_up, copy_up_directory
from unionfs.overlay.copy_up import Work, empty_tree, remove_tree
from unionfs.overlay.node import LayerEntry, Node, Orphan
from unionfs.overlay.protection import APPEND, refuse
from unionfs.overlay.redirect import copy_up_whole, fits, has_lower_part, may_redirect, redirect_directory, redirect_file
from unionfs.overlay.tree import NAME_MAX, Tree
from unionfs.overlay.whiteout import OPAQUE

_KNOWN = files.RENAME_NOREPLACE | files.RENAME_EXCHANGE


def rename(tree: Tree, old_dir: Node, old: bytes, new_dir: Node, new: bytes, flags: int) -> None:
    """Move *old* in *old_dir* to *new* in *new_dir*; see Union.rename."""
    source, node, target, other = _checked(tree, old_dir, old, new_dir, new, flags)
    if target is not None and other is not None:
        _exchange(tree, (old_dir, old, source, node), (new_dir, new, target, other))
    elif target is None or target.node is not node:  # of two names of one file POSIX says that nothing happens
        _move(tree, old_dir, old, source, node, new_dir, new, target)


def to_bring_up(tree: Tree, old_dir: Node, old: bytes, new_dir: Node, new: bytes, flags: int) -> list[Node]:
    """The files this rename copies up; raises what it would raise before it changes anything."""
    source, node, _, other = _checked(tree, old_dir, old, new_dir, new, flags)
    if tree.hard_links is not None:
        tree.hard_links.prefer_name(node, old_dir, old, source)
    return [moved for moved in (node, other) if moved is not None and moved.directory is None and moved.layer is not tree.upper]


def _checked(
    tree: Tree, old_dir: Node, old: bytes, new_dir: Node, new: bytes, flags: int
) -> tuple[LayerEntry, Node, LayerEntry | None, Node | None]:
    """(source, its node, target, its node for an exchange) of a rename that may be done."""
    if flags & ~_KNOWN or flags == _KNOWN:
        raise error(errno.EINVAL)
    source = tree.need(old_dir, old)
    target = tree.find(new_dir, new)
    if len(new) > NAME_MAX:
        raise error(errno.ENAMETOOLONG)
    if tree.stack.names.is_mark(new):
        raise error(errno.EINVAL, new)
    if new_dir.orphan is not None:
        raise error(errno.ENOENT)
    if flags & files.RENAME_NOREPLACE and target is not None:
        raise error(errno.EEXIST, new)
    if flags & files.RENAME_EXCHANGE and target is None:
        raise error(errno.ENOENT, new)
    tree.refuse_removal(old_dir, old, source)
    if target is None:
        refuse(tree.descriptors.protection(new_dir), APPEND)
    else:
        tree.refuse_removal(new_dir, new, target)
    if flags & files.RENAME_EXCHANGE and target is not None:
        return source, _movable(tree, old_dir, old, source), target, _movable(tree, new_dir, new, target)
    if target is not None:
        _check_kinds(source, new, target)
    node = _movable(tree, old_dir, old, source)
    if target is not None and (tree.hard_links is not None or source.source is target.source is tree.upper):
        tree.resolve(new_dir, new, target)  # may be of one file with node
    if target is not None and target.node is not node:
        _check_empty(tree, new_dir, new, target)
    return source, node, target, None


def _movable(tree: Tree, parent: Node, name: bytes, entry: LayerEntry) -> Node:
    """The node of *entry*; EXDEV for a directory that a lower has a part in and that can neither be redirected nor copied up whole."""
    node, _ = tree.resolve(parent, name, entry)
    if has_lower_part(tree, node) and not may_redirect(tree) and not fits(tree, node):
        raise error(errno.EXDEV, name)
    return node


def _check_kinds(source: LayerEntry, new: bytes, target: LayerEntry) -> None:
    if source.kind != stat.S_IFDIR and target.kind == stat.S_IFDIR:
        raise error(errno.EISDIR, new)
    if source.kind == stat.S_IFDIR and target.kind != stat.S_IFDIR:
        raise error(errno.ENOTDIR, new)


def _check_empty(tree: Tree, new_dir: Node, new: bytes, target: LayerEntry) -> None:
    if target.kind != stat.S_IFDIR:
        return
    victim, _ = tree.resolve(new_dir, new, target)
    if tree.index(victim).entries:
        raise error(errno.ENOTEMPTY, new)


def _make_movable(tree: Tree, node: Node, new_dir: Node | None) -> None:
    """Bring *node* up and let it say where its lower part is, if it has one; *new_dir*: its new directory, when that is another."""
    if node.directory is None:
        if node.layer is not tree.upper:
            bring_up(tree, node, data=False)
        redirect_file(tree, node)
    elif not has_lower_part(tree, node):
        pass
    elif may_redirect(tree):
        bring_up(tree, node)
        redirect_directory(tree, node, new_dir)
    else:
        copy_up_whole(tree, node)


def _make_opaque(tree: Tree, parent: Node, name: bytes) -> None:
    xattrs.put(files.path_at(tree.upper_fd(parent), name), tree.stack.names.opaque, OPAQUE)


def _move(
    tree: Tree, old_dir: Node, old: bytes, source: LayerEntry, node: Node, new_dir: Node, new: bytes, target: LayerEntry | None
) -> None:
    copy_up_directory(tree, new_dir)
    bring_name_up(tree, node, old_dir, old, source)
    if target is not None and isinstance(target.node, Node):
        bring_name_up(tree, target.node, new_dir, new, target)
    _make_movable(tree, node, new_dir if old_dir is not new_dir else None)
    tree.settle_whiteout(old_dir, old)
    tree.settle_whiteout(new_dir, new)
    tree.pass_on_impurity(old_dir, new_dir)
    new_index = tree.index(new_dir)
    covered = target is not None and (target.below or target.source is not tree.upper)
    if source.kind == stat.S_IFDIR and not has_lower_part(tree, node) and (covered or new in new_index.whiteouts):
        _make_opaque(tree, old_dir, old)
    victim = target.node if target is not None and isinstance(target.node, Node) else None
    orphan: Orphan | None = None
    if victim is not None and tree.is_last_name(victim):
        orphan = tree.orphans.prepare(victim, new_dir, new, replaced=True)
    try:
        _move_in_upper(tree, old_dir, old, source, new_dir, new, target)
    except BaseException:
        if orphan is not None:
            tree.orphans.abandon(orphan)
        raise
    tree.index(old_dir).remove(old)
    if source.below:
        tree.index(old_dir).whiteouts.add(old)
    if victim is not None and not tree.drop_name(victim, new_dir, new, last=orphan is not None):
        if orphan is not None:
            tree.make_orphan(victim, orphan)
        tree.bury(tree.nodes.reap(victim))
    if target is None:
        target = new_index.add(new, tree.upper, source.kind)
        target.below = new in new_index.whiteouts
        new_index.whiteouts.discard(new)
    else:
        target.below = covered
        target.source, target.kind, target.more = tree.upper, source.kind, ()
    target.node = node
    _renamed(tree, node, old_dir, old, new_dir, new)


def _move_in_upper(
    tree: Tree, old_dir: Node, old: bytes, source: LayerEntry, new_dir: Node, new: bytes, target: LayerEntry | None
) -> None:
    """The step on disk. A whiteout stays at *old* when something is below it."""
    old_fd, new_fd = tree.upper_fd(old_dir), tree.upper_fd(new_dir)
    if tree.work.whiteout_files:
        if source.kind == stat.S_IFDIR and target is not None and target.source is tree.upper:
            _strip_whiteouts(tree, new_dir, new, target)
        parted = isinstance(source.node, Node) and has_lower_part(tree, source.node)
        _move_with_files(tree.work, source, old_fd, old, new_fd, new, late=parted)
        return
    if source.below:
        tree.work.announce_whiteouts(old_fd)
    if source.kind == stat.S_IFDIR and target is None and new in tree.index(new_dir).whiteouts:
        # a directory cannot replace the whiteout, but swap with it; it may well be what has to stay behind
        files.renameat2(old_fd, old, new_fd, new, files.RENAME_EXCHANGE)
        if not source.below:
            os.unlink(old, dir_fd=old_fd)
        return
    if source.kind == stat.S_IFDIR and target is not None and target.source is tree.upper:
        _strip_whiteouts(tree, new_dir, new, target)
    if not source.below:
        files.renameat2(old_fd, old, new_fd, new)
        return
    try:
        files.renameat2(old_fd, old, new_fd, new, files.RENAME_WHITEOUT)
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
        _move_without_help(tree, old_fd, old, new_fd, new)


def _move_without_help(tree: Tree, old_fd: int, old: bytes, new_fd: int, new: bytes) -> None:
    """RENAME_WHITEOUT where the filesystem lacks it: put a whiteout at the target, then swap the two."""
    vacant = True
    try:
        tree.work.cover(new_fd, new)
    except FileExistsError:
        vacant = False
        gone = tree.work.name()
        tree.work.take_covered(new_fd, new, gone)
        remove_tree(tree.work.fd, gone)
    try:
        files.renameat2(old_fd, old, new_fd, new, files.RENAME_EXCHANGE)
    except BaseException:
        if vacant:
            os.unlink(new, dir_fd=new_fd)
        raise


def _move_with_files(
    work: Work, source: LayerEntry, old_fd: int, old: bytes, new_fd: int, new: bytes, *, late: bool
) -> None:
    """The same where whiteouts are files beside what they hide.

    *late*: for a directory with a lower part, from which its whiteout would cut it off, that comes last. A crash before it brings the lower
    directory back beside the moved one.
    """
    with nullcontext() if late or not source.below else work.covered(old_fd, old):
        files.renameat2(old_fd, old, new_fd, new)
    if late and source.below:
        try:
            work.cover(old_fd, old)
        except BaseException:
            files.renameat2(new_fd, new, old_fd, old)
            raise
    work.uncover(new_fd, new)


def _strip_whiteouts(tree: Tree, parent: Node, name: bytes, entry: LayerEntry) -> None:
    """Make a directory that looks empty be empty in upper, so that it can be replaced. Opaque first: nothing shows through meanwhile."""
    node, _ = tree.resolve(parent, name, entry)
    whiteouts = tree.index(node).whiteouts
    if not whiteouts and not tree.stack.names.whfiles:
        return
    _make_opaque(tree, parent, name)
    empty_tree(tree.upper_fd(parent), name)
    whiteouts.clear()


def _exchange(
    tree: Tree, one: tuple[Node, bytes, LayerEntry, Node], other: tuple[Node, bytes, LayerEntry, Node]
) -> None:
    for parent, _, _, _ in (one, other):  # a redirect marks the new parent, too
        copy_up_directory(tree, parent)
    for (parent, name, entry, node), (new_parent, _, _, _) in ((one, other), (other, one)):
        bring_name_up(tree, node, parent, name, entry)
        _make_movable(tree, node, new_parent if parent is not new_parent else None)
    tree.settle_whiteout(one[0], one[1])
    tree.settle_whiteout(other[0], other[1])
    for (parent, name, entry, node), (_, _, there, _) in ((one, other), (other, one)):
        if entry.kind == stat.S_IFDIR and there.below and not has_lower_part(tree, node):
            _make_opaque(tree, parent, name)
    (old_dir, old, source, node), (new_dir, new, target, new_node) = one, other
    tree.pass_on_impurity(old_dir, new_dir)
    tree.pass_on_impurity(new_dir, old_dir)
    files.renameat2(tree.upper_fd(old_dir), old, tree.upper_fd(new_dir), new, files.RENAME_EXCHANGE)
    source.kind, target.kind = target.kind, source.kind
    source.more = target.more = ()
    source.node, target.node = new_node, node
    if node is not new_node:
        _renamed(tree, node, old_dir, old, new_dir, new)
        _renamed(tree, new_node, new_dir, new, old_dir, old)


def _renamed(tree: Tree, node: Node, old_dir: Node, old: bytes, new_dir: Node, new: bytes) -> None:
    """Tell *node* that this name of it changed."""
    if node.parent is old_dir and node.name == old:
        tree.bury(tree.nodes.reparent(node, new_dir, new))
        return
    assert node.links is not None
    node.links = [(new_dir, new) if link == (old_dir, old) else link for link in node.links]
    new_dir.children += 1
    old_dir.children -= 1
    tree.bury(tree.nodes.reap(old_dir))
