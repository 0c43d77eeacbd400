"""How a union marks what is hidden: pure rules, no system call.

A *whiteout* hides a name, an *opaque* directory hides everything of its name below. Rules: kernel
Documentation/filesystems/overlayfs.rst and fs/overlayfs/xattrs.c.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field

OPAQUE = b"y"
#: On a lower directory: it may hold xattr whiteouts. It does not make the directory opaque.
HOLDS_XATTR_WHITEOUTS = b"x"
IMPURE = b"y"


#: Bytes of an absolute redirect at most; a longer one is never written (the kernel's redirect_max).
REDIRECT_MAX = 256
#: struct ovl_metacopy without a digest: version, length, flags, digest algorithm.
_METACOPY_MIN = 4


def check_redirect(value: bytes) -> None:
    """OSError(EINVAL) unless *value* is one name, or an absolute path without empty components (ovl_get_redirect_xattr)."""
    parts = value[1:].split(b"/") if value.startswith(b"/") else [value]
    if any(part in (b"", b".", b"..") or b"/" in part or b"\0" in part for part in parts):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), value)


def check_metacopy(value: bytes) -> None:
    """OSError(EIO) unless *value* is a metacopy mark: empty, or version 0 with its own length (ovl_check_metacopy_xattr)."""
    if value and (len(value) < _METACOPY_MIN or value[0] != 0 or value[1] != len(value)):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def is_whiteout_device(st: os.stat_result) -> bool:
    """The kernel's whiteout: a character device 0:0."""
    return stat.S_ISCHR(st.st_mode) and st.st_rdev == 0


@dataclass(frozen=True)
class XattrNames:
    """The names of overlay attributes in the one namespace that counts for a mount.

    The other namespace is ordinary data, and so is what a user of the mount sets in ours: it is stored with one more prefix
    (``trusted.overlay.overlay.foo``) and shown without it, so overlays can nest (ovl_xattr_escape_name).
    """

    userxattr: bool = False
    prefix: bytes = field(init=False)
    opaque: bytes = field(init=False)
    whiteout: bytes = field(init=False)
    origin: bytes = field(init=False)
    impure: bytes = field(init=False)
    redirect: bytes = field(init=False)
    metacopy: bytes = field(init=False)
    nlink: bytes = field(init=False)
    protattr: bytes = field(init=False)
    _escaped: bytes = field(init=False)

    def __post_init__(self) -> None:
        prefix = b"user.overlay." if self.userxattr else b"trusted.overlay."
        for name in ("opaque", "whiteout", "origin", "impure", "redirect", "metacopy", "nlink", "protattr"):
            object.__setattr__(self, name, prefix + name.encode())
        object.__setattr__(self, "prefix", prefix)
        object.__setattr__(self, "_escaped", prefix + b"overlay.")

    def stored(self, name: bytes) -> bytes:
        """The name on disk for *name* as a user of the mount writes it."""
        return self._escaped + name[len(self.prefix) :] if name.startswith(self.prefix) else name

    def shown(self, name: bytes) -> bytes | None:
        """The name a user of the mount sees for *name* on disk; None for our own marks."""
        if name.startswith(self._escaped):
            return self.prefix + name[len(self._escaped) :]
        return None if name.startswith(self.prefix) else name

    def is_private(self, name: bytes) -> bool:
        """Whether *name* on disk is a mark of this layer that copy-up must not carry along."""
        return name.startswith(self.prefix) and not name.startswith(self._escaped)
