"""How a union marks what is hidden: pure rules, no system call.

A *whiteout* hides a name, an *opaque* directory hides everything of its name below. Rules: kernel
Documentation/filesystems/overlayfs.rst and fs/overlayfs/xattrs.c; for ``.wh.`` files OCI image-spec layer.md and fuse-overlayfs.
"""

from __future__ import annotations

import errno
import os
import stat

OPAQUE = b"y"
#: On a lower directory: it may hold xattr whiteouts. It does not make the directory opaque.
HOLDS_XATTR_WHITEOUTS = b"x"
IMPURE = b"y"
#: ``.wh.NAME`` hides NAME in the layers below its own. No name with this prefix is anything else under ``whfiles``.
FILE_PREFIX = b".wh."
#: In a directory: it is opaque. The second is what fuse-overlayfs 1.10 makes of the first when it hides what is below, a device 0:0.
OPAQUE_FILE = b".wh..wh..opq"
OPAQUE_DEVICE = b".wh..opq"
#: A mark on an upper's root, in the kernel's or the other namespace: it is being converted, and half a conversion is for nobody to read.
CONVERSION = b"convert"
_FUSE_OVERLAYFS = b"user.fuseoverlayfs."
_ESCAPE = b"overlay."

#: Bytes of an absolute redirect at most; a longer one is never written (the kernel's redirect_max).
REDIRECT_MAX = 256
#: struct ovl_metacopy without a digest: version, length, flags, digest algorithm.
_METACOPY_MIN = 4


def read_redirect(value: bytes) -> bytes:
    """Where a redirect leads: a name, or an absolute path without empty components; OSError(EINVAL) for anything else.

    A zero byte ends it (ovl_get_redirect_xattr).
    """
    target = value.partition(b"\0")[0]
    parts = target[1:].split(b"/") if target.startswith(b"/") else [target]
    if any(part in (b"", b".", b"..") or b"/" in part for part in parts):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), value)
    return target


def check_metacopy(value: bytes) -> None:
    """OSError(EIO) unless *value* is a metacopy mark: empty, or no shorter than one without a digest.

    What it says more the kernel looks at with verity only (ovl_check_metacopy_xattr, to which a look-up gives no place for it).
    """
    if 0 < len(value) < _METACOPY_MIN:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def is_whiteout_device(st: os.stat_result) -> bool:
    """The kernel's whiteout: a character device 0:0."""
    return stat.S_ISCHR(st.st_mode) and st.st_rdev == 0


def whiteout_file(name: bytes) -> bytes:
    """The file that hides *name*."""
    return FILE_PREFIX + name


def hidden_by_file(name: bytes) -> bytes | None:
    """What a file whose name has the prefix hides; None for those that hide no name (``.wh.`` alone, ``.wh..wh..opq`` and its kind)."""
    hidden = name[len(FILE_PREFIX) :]
    return None if not hidden or hidden.startswith(FILE_PREFIX) else hidden


class XattrNames:
    """The names of overlay attributes in the one namespace that counts for a mount.

    The other namespace is ordinary data, and so is what a user of the mount sets in ours: it is stored with one more prefix
    (``trusted.overlay.overlay.foo``) and shown without it, so overlays can nest (ovl_xattr_escape_name).

    With ``whfiles`` the marks of all programs count: ``.wh.`` files, and what makes a directory opaque in either namespace or
    fuse-overlayfs's own. None of the three is ordinary data then.
    """

    def __init__(self, userxattr: bool = False, whfiles: bool = False) -> None:
        prefix, other = b"trusted.overlay.", b"user.overlay."
        if userxattr:
            prefix, other = other, prefix
        self.userxattr = userxattr
        self.whfiles = whfiles
        self.prefix = prefix
        self._reserved = (prefix, other, _FUSE_OVERLAYFS) if whfiles else (prefix,)
        #: The attributes of which each makes a directory opaque.
        self.all_opaque = tuple(each + b"opaque" for each in self._reserved)
        self.opaque = prefix + b"opaque"
        self.whiteout = prefix + b"whiteout"
        self.origin = prefix + b"origin"
        self.impure = prefix + b"impure"
        self.redirect = prefix + b"redirect"
        self.metacopy = prefix + b"metacopy"
        self.nlink = prefix + b"nlink"
        self.protattr = prefix + b"protattr"
        self.upper = prefix + b"upper"

    def stored(self, name: bytes) -> bytes:
        """The name on disk for *name* as a user of the mount writes it."""
        prefix = self._prefix_of(name)
        return prefix + _ESCAPE + name[len(prefix) :] if prefix else name

    def shown(self, name: bytes) -> bytes | None:
        """The name a user of the mount sees for *name* on disk; None for our own marks."""
        prefix = self._prefix_of(name)
        if not prefix:
            return name
        rest = name[len(prefix) :]
        return prefix + rest[len(_ESCAPE) :] if rest.startswith(_ESCAPE) else None

    def is_private(self, name: bytes) -> bool:
        """Whether *name* on disk is a mark of this layer that copy-up must not carry along."""
        prefix = self._prefix_of(name)
        return bool(prefix) and not name.startswith(_ESCAPE, len(prefix))

    def is_mark(self, name: bytes) -> bool:
        """Whether no object can have this *name*."""
        return self.whfiles and name.startswith(FILE_PREFIX)

    def _prefix_of(self, name: bytes) -> bytes:
        if name.startswith(self._reserved):
            for prefix in self._reserved:
                if name.startswith(prefix):
                    return prefix
        return b""
