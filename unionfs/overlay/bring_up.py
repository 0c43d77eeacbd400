"""Bringing objects up: a directory with its parents, a file in a draft that a thread may build, one name of several.

Used by whatever changes something in upper: the verbs in union.py and rename.py, redirect.py before a move, convert.py. All functions
take the tree, and leave its index and its nodes in step with upper.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from functools import partial

from unionfs.errors import error
from unionfs.linux import files
from unionfs.overlay.copy_up import DataDraft, Draft, encode_origin
from unionfs.overlay.lookup import Data
from unionfs.overlay.node import LayerEntry, Node, Orphan
from unionfs.overlay.protection import encode
from unionfs.overlay.tree import Tree


def copy_up_directory(tree: Tree, node: Node) -> None:
    """Make sure the directory *node* is in upper, its parents first."""
    upper = tree.upper
    if node.layer is upper:
        return
    if node.parent is None:
        raise error(errno.ENOENT, node.name)
    copy_up_directory(tree, node.parent)
    draft = _draft(tree, node, tree.fresh_stat(node), 0)
    draft.build()
    publish(tree, node, draft)


def bring_up(tree: Tree, node: Node, size: int | None = None, *, data: bool = True) -> None:
    """Make sure *node* is in upper, its parents first; *size* and *data* as in ``begin_copy_up``."""
    if node.layer is not tree.upper or data and node.ino in tree.descriptors.data:
        if node.directory is not None:
            copy_up_directory(tree, node)
            return
        draft = begin_copy_up(tree, node, size, data=data)
        if draft is not None:
            draft.build()
            publish(tree, node, draft)
    if tree.hard_links is not None and tree.hard_links.is_tied(node):  # all its known names are to be links in upper
        for parent, name in node.links or ():
            _bring_name_up_if_there(tree, node, parent, name)


def bring_name_up(tree: Tree, node: Node, parent: Node, name: bytes, entry: LayerEntry) -> None:
    """Make sure that this very name of *node* is in upper, if it is one of several that are one file in a lower (ovl_nlink_start)."""
    links = tree.hard_links
    if links is None or not links.is_tied(node):
        return
    links.prefer_name(node, parent, name, entry)
    draft = begin_copy_up(tree, node, data=False)
    if draft is not None:
        draft.build()
        publish(tree, node, draft)
    if entry.source is not tree.upper:
        copy_up_directory(tree, parent)
        links.link_up(node, parent, name, entry)


def _bring_name_up_if_there(tree: Tree, node: Node, parent: Node, name: bytes) -> None:
    entry = tree.find(parent, name)
    if entry is not None:  # layers that were changed under us may have lost it
        bring_name_up(tree, node, parent, name, entry)


def begin_copy_up(tree: Tree, node: Node, size: int | None = None, *, data: bool = True) -> Draft | DataDraft | None:
    """The Draft that will bring the non-directory *node* up, None when it is there; parents are brought up at once.

    *size*: only so much data is wanted. Without *data* a metacopy will do. The caller builds the draft (in a thread if it likes), then
    publishes it.
    """
    if node.layer is tree.upper:
        return _data_draft(tree, node) if data and node.ino in tree.descriptors.data else None
    if node.parent is not None:
        copy_up_directory(tree, node.parent)
    st = tree.fresh_stat(node)
    draft = _draft(tree, node, st, st.st_size if size is None else min(size, st.st_size))
    if not data and tree.stack.features.metacopy and node.parent is not None and stat.S_ISREG(st.st_mode):
        draft.metacopy, draft.size, draft.sync = True, 0, tree.stack.strict
    elif node.ino in tree.descriptors.data and draft.size:
        try:
            draft.data = tree.descriptors.open_file(node, os.O_RDONLY)
        except BaseException:
            os.close(draft.source_dir)
            raise
    return draft


def _data_draft(tree: Tree, node: Node) -> DataDraft:
    """One at a time: a second would write the old data over what was written since the first was published."""
    draft = tree.filling.get(node)
    if draft is None or draft.over:
        draft = tree.filling[node] = _new_data_draft(tree, node)
    return draft


def _new_data_draft(tree: Tree, node: Node) -> DataDraft:
    whole = tree.stat(node).st_size
    source = tree.descriptors.open_file(node, os.O_RDONLY)
    try:
        target = tree.descriptors.open_file(node, os.O_RDWR)
    except BaseException:
        os.close(source)
        raise
    # all of them, though it be cut at once: cut with the mark still on, a kill would leave two readers with two contents
    return DataDraft(source, target, whole, tree.stack.names, tree.stack.sync and whole > 0)


def _draft(tree: Tree, node: Node, st: os.stat_result, size: int) -> Draft:
    names = tree.stack.names
    if node.parent is None:
        with tree.descriptors.orphan_directory(node) as (dir_fd, name):
            source = os.dup(dir_fd)
    else:
        name = node.name
        source = os.dup(tree.descriptors.directory_fd(node.parent, node.layer))
    tied, nlink = (None, None) if tree.hard_links is None else tree.hard_links.draft_marks(node, st)
    shared = node.directory is None and st.st_nlink > 1  # copy-up breaks the link: the copy is an object of its own
    holds_marks = not names.userxattr or stat.S_IFMT(st.st_mode) in (stat.S_IFREG, stat.S_IFDIR)  # xattr(7)
    origin = encode_origin(node.layer, source, name) if holds_marks and not shared and node.parent is not None else None
    sync = tree.stack.strict or (tree.stack.sync and size > 0)
    kept = tree.descriptors.protection(node)
    protattr = encode(kept) if kept else None
    return Draft(
        node.layer, source, name, st, size, tree.work, names, origin=tied or origin, sync=sync, nlink=nlink, protattr=protattr
    )


def publish(tree: Tree, node: Node, draft: Draft | DataDraft) -> None:
    """Put the built *draft* in place of *node*'s lower object; the node goes on with upper's copy.

    A node that lost its name meanwhile keeps its copy in work. The parent's times are restored, as the kernel does.
    """
    upper = tree.upper
    if isinstance(draft, DataDraft):
        if tree.filling.get(node) is draft:
            del tree.filling[node]
            tree.descriptors.drop_lower_data(node)
        return
    if node.layer is upper:  # somebody was faster
        draft.discard()
        return
    data = _place_of_data(tree, node) if draft.metacopy else None
    if node.parent is None or node.orphan is not None:
        _publish_orphan(tree, node, draft)
    else:
        try:
            if tree.hard_links is not None and tree.hard_links.is_tied(node):
                tree.hard_links.publish(node, draft)
            else:
                _publish_allowed(tree, node, node.parent, draft)
        except BaseException:
            draft.discard()
            raise
    node.layer = upper
    if node.directory is None and draft.st.st_nlink > 1 and draft.origin is None and node.orphan is None:
        st = tree.stat(node)
        node.shown = tree.nodes.natural(st.st_dev, st.st_ino) or node.ino
        if node.parent is not None:
            tree.renumbered.add(node.parent)
    if data is None:
        tree.descriptors.drop_lower_data(node)
    else:
        tree.descriptors.data[node.ino] = data
    _keep_open(tree, node, draft)
    if tree.hard_links is not None and tree.hard_links.is_copied(node) and node.links:  # the name it was asked for by
        _bring_name_up_if_there(tree, node, *node.links[0])
    if tree.stack.strict and node.parent is not None:  # last: an error is told when all is as it is on disk
        files.sync_directory(tree.upper_fd(node.parent))


def _keep_open(tree: Tree, node: Node, draft: Draft) -> None:
    """What brought *node* up will change it next: by the descriptor it was built with, but for one that must only grow (``file_fd``)."""
    target = draft.take_target()
    if target is None:
        return
    if draft.metacopy or draft.protattr is not None:
        os.close(target)
    else:
        tree.descriptors.keep_file(node, target)


def _place_of_data(tree: Tree, node: Node) -> Data:
    known = tree.descriptors.data.get(node.ino)
    if known is not None:
        return known
    if node.orphan is not None and node.orphan.path is not None:  # it lost its name while the copy was built
        return Data(node.layer, node.orphan.path)
    assert node.parent is not None
    above = tree.descriptors.directory_path(node.parent, node.layer)
    return Data(node.layer, above + b"/" + node.name if above else node.name)


def _publish_allowed(tree: Tree, node: Node, parent: Node, draft: Draft) -> None:
    try:
        _publish_named(tree, node, parent, draft)
    except PermissionError as exc:
        made = tree.work.fd, draft.work_name
        tree.lender.retry(exc, partial(_publish_named, tree, node, parent, draft), [parent], lambda: [made])


def _publish_named(tree: Tree, node: Node, parent: Node, draft: Draft) -> None:
    upper = tree.upper
    parent_fd = tree.descriptors.directory_fd(parent, upper)
    parent_path = files.path_at(parent_fd, b"")
    times = os.fstat(parent_fd)
    if draft.origin or draft.metacopy:
        tree.mark_impure(parent)
    files.renameat2(tree.work.fd, draft.work_name, parent_fd, node.name)
    with suppress(OSError):  # the copy is there: what is remembered has to follow
        files.utimens(parent_path, times.st_atime_ns, times.st_mtime_ns)
    tree.restamped.add(parent)
    if node.directory is not None:
        tree.restamped.add(node)
    entry = tree.index(parent).entries[node.name]
    if node.directory is not None:
        entry.more = (entry.source, *entry.more)
    entry.source = upper
    entry.below = True


def _publish_orphan(tree: Tree, node: Node, draft: Draft) -> None:
    tree.orphans.drop(node)
    tree.orphans.keep(node, Orphan(work_name=draft.work_name, links=1))
