"""Before an object with a lower part gets another name: saying where that part is, or doing without it.

Rules: fs/overlayfs/dir.c ovl_set_redirect. A redirect is a name as long as the object stays in its directory, else a path from the root as
the layers below upper know it. Where none may be written, a directory can be copied up whole.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from functools import partial

from unionfs.errors import error
from unionfs.linux import files, xattrs
from unionfs.overlay.bring_up import bring_name_up, bring_up
from unionfs.overlay.features import Redirect
from unionfs.overlay.node import LayerEntry, Node
from unionfs.overlay.tree import Tree
from unionfs.overlay.whiteout import OPAQUE, REDIRECT_MAX


def has_lower_part(tree: Tree, node: Node) -> bool:
    """Whether *node* is a directory that a lower has a part in."""
    return node.directory is not None and (node.layer is not tree.upper or bool(node.directory.lowers))


def may_redirect(tree: Tree) -> bool:
    """Whether redirects may be written; never with userxattr, where the kernel refuses them."""
    features = tree.stack.features
    return features.redirect is Redirect.ON and not features.userxattr


def redirect_directory(tree: Tree, node: Node, new_dir: Node | None) -> None:
    """Let the directory *node*, in upper, say where its lower part is, for a move to *new_dir* (None: it stays in its own).

    EXDEV when the path is too long for a redirect. The new directory is marked impure, as it comes to hold something from below.
    """
    directory = node.directory
    assert directory is not None
    known = directory.redirect
    if known is None or new_dir is not None and not known.startswith(b"/"):
        value = (known or node.name) if new_dir is None else _absolute(node)
        if len(value) > REDIRECT_MAX:
            raise error(errno.EXDEV, node.name)
        try:
            xattrs.put(tree.descriptors.place(node), tree.stack.names.redirect, value)
        except OSError as exc:
            raise error(errno.EXDEV, node.name) if exc.errno in (errno.EOPNOTSUPP, errno.ENOSPC) else exc from None
        directory.redirect = value
    if new_dir is not None:
        tree.mark_impure(new_dir)


def _absolute(node: Node) -> bytes:
    """The path of *node* as the layers below upper know it: by the redirects of what upper has moved."""
    path = b""
    current: Node = node
    while current.parent is not None and not path.startswith(b"/"):
        name = current.directory.redirect if current.directory is not None else None
        part = name or current.name
        path = part + b"/" + path if path else part
        current = current.parent
    return path if path.startswith(b"/") else b"/" + path


def redirect_file(tree: Tree, node: Node) -> None:
    """The same for the file *node*, if it is a metacopy: always a path, as a further link of it may end up anywhere.

    Where no redirect can be had its data are brought up.
    """
    if not tree.descriptors.is_metacopy(node):
        return
    place, mark = tree.descriptors.place(node), tree.stack.names.redirect
    known = xattrs.find(place, mark)
    if known is not None and known.startswith(b"/"):
        return
    named = tree.name_of(node)
    value = None if named is None else os.path.join(_absolute(named[0]), known or named[1])
    if value is None or not may_redirect(tree) or len(value) > REDIRECT_MAX:
        bring_up(tree, node)
        return
    xattrs.put(place, mark, value)


def fits(tree: Tree, node: Node) -> bool:
    """Whether the directory *node* may be copied up whole: it holds no more than ``copy_limit`` bytes that are not in upper."""
    left = tree.stack.features.copy_limit
    if not left:
        return False
    for _, _, entry, child in below(tree, node):
        if child.layer is not tree.upper and entry.kind == stat.S_IFREG:
            left -= tree.stat(child).st_size
        if left < 0:
            return False
    return True


def copy_up_whole(tree: Tree, node: Node) -> None:
    """Make the directory *node* be upper's alone: everything below it is brought up, then it is made opaque.

    At any moment it looks the same; after a kill half way it is merely copied up.
    """
    bring_up(tree, node)
    for parent, name, entry, child in below(tree, node):
        bring_name_up(tree, child, parent, name, entry)
        bring_up(tree, child)
        if child.directory is not None:
            tree.allowed(partial(_shut, tree, child), child)
    tree.allowed(partial(_shut, tree, node), node)


def below(tree: Tree, node: Node) -> Iterator[tuple[Node, bytes, LayerEntry, Node]]:
    """Everything below the directory *node* as (directory, name, entry, its node), what a directory holds before itself.

    Each node is live as long as it is looked at.
    """
    node.lookups += 1
    try:
        for name, entry in list(tree.allowed(partial(tree.index, node), node).entries.items()):
            child, _ = tree.allowed(partial(tree.resolve, node, name, entry), node, name)
            child.lookups += 1
            try:
                if child.directory is not None:
                    yield from below(tree, child)
                yield node, name, entry, child
            finally:
                child.lookups -= 1
                tree.bury(tree.nodes.reap(child))
    finally:
        node.lookups -= 1


def _shut(tree: Tree, node: Node) -> None:
    """Make the directory *node*, whose entries are all in upper, opaque. What whiteouts hid that mark hides."""
    assert node.directory is not None
    if not node.directory.lowers:
        return
    xattrs.put(tree.descriptors.place(node), tree.stack.names.opaque, OPAQUE)
    for entry in tree.index(node).entries.values():  # not before: until then a removed one needs a whiteout
        entry.below, entry.more = False, ()
    tree.forget_lowers(node)
    with files.kept_times(tree.upper_fd(node)):
        tree.drop_whiteouts(node)
