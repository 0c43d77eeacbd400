"""What lsattr(1) shows and chattr(1) changes of a file or directory, in either form of files.py.

As the kernel's overlayfs (ovl_fileattr_get, ovl_fileattr_set): those of the topmost copy. Append-only and immutable are shown and kept as
protection.py says, and not set on upper's copy; all others are set there, and are the filesystem's matter.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from unionfs.errors import error
from unionfs.linux import files, xattrs
from unionfs.overlay.bring_up import bring_up
from unionfs.overlay.node import Node
from unionfs.overlay.protection import APPEND, IMMUTABLE, encode
from unionfs.overlay.tree import Tree

FLAGS = files.FLAGS
FSXATTR = files.FSXATTR
#: What they say where protection.py says APPEND and IMMUTABLE: FS_APPEND_FL ..., FS_XFLAG_APPEND ... (linux/fs.h).
_BITS = {FLAGS: {APPEND: 0x20, IMMUTABLE: 0x10}, FSXATTR: {APPEND: 0x10, IMMUTABLE: 0x08}}
_WORD = struct.Struct("=I")


def attributes(tree: Tree, node: Node, form: tuple[int, int, int]) -> bytes:
    """The attributes of *node*; ENOTTY for what is no file or directory, and where the filesystem has none."""
    with _opened(tree, node) as fd:
        value = bytearray(files.file_attributes(fd, form))
    protection = tree.descriptors.protection(node)
    (flags,) = _WORD.unpack_from(value)
    _WORD.pack_into(value, 0, flags | sum(bit for kind, bit in _BITS[form].items() if protection & kind))
    return bytes(value)


def set_attributes(tree: Tree, node: Node, form: tuple[int, int, int], value: bytes) -> None:
    """Have *node*, in upper, these attributes. Those of protection.py first: they stay changed when others are refused, as there."""
    attributes(tree, node, form)  # where there are none, nothing is copied up
    bring_up(tree, node, data=False)
    (flags,) = _WORD.unpack_from(value)
    _protect(tree, node, sum(kind for kind, bit in _BITS[form].items() if flags & bit))
    left = flags & ~sum(_BITS[form].values())
    with _opened(tree, node) as fd:
        files.set_file_attributes(fd, form, _WORD.pack(left) + value[_WORD.size :])


def _protect(tree: Tree, node: Node, protection: int) -> None:
    """Keep *protection* with upper's copy (ovl_set_protattr)."""
    path, name = tree.descriptors.place(node), tree.stack.names.protattr
    if protection:
        try:
            xattrs.put(path, name, encode(protection))
        except OSError as exc:
            raise error(errno.EPERM) if exc.errno == errno.EOPNOTSUPP else exc from None
    elif tree.descriptors.protection(node):
        xattrs.discard(path, name)
    node.protection = protection


@contextmanager
def _opened(tree: Tree, node: Node) -> Iterator[int]:
    """A descriptor of the topmost copy of *node* itself, of a metacopy too."""
    if node.kind == stat.S_IFREG:
        fd = tree.descriptors.open_file(node, os.O_RDONLY | os.O_NONBLOCK)
    elif node.directory is not None:
        try:
            fd = node.layer.open_to_read(tree.descriptors.directory_fd(node, node.layer))
        except OSError as exc:
            raise error(errno.ENOTTY) if exc.errno == errno.EXDEV else exc from None  # a mount point, which is not to be asked
    else:
        raise error(errno.ENOTTY)
    try:
        yield fd
    finally:
        os.close(fd)
