"""POSIX ACLs as the bytes that system.posix_acl_access and system.posix_acl_default hold.

Layout (linux/posix_acl_xattr.h): u32 version 2, then entries of u16 tag, u16 permissions, u32 id, little-endian.
"""

from __future__ import annotations

import struct

ACCESS = "system.posix_acl_access"
DEFAULT = "system.posix_acl_default"
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 1, 2, 4, 8, 16, 32
_NO_ID = 0xFFFFFFFF


def _entry(tag: int, permissions: int, ident: int = _NO_ID) -> bytes:
    return struct.pack("<HHI", tag, permissions, ident)


def encode(owner: int, group: int, other: int, *, users: dict[int, int] | None = None,
           groups: dict[int, int] | None = None, mask: int | None = None) -> bytes:
    """An ACL from permission digits (0..7). With named users or groups the mask defaults to rwx."""
    named = [_entry(_USER, permissions, ident) for ident, permissions in sorted((users or {}).items())]
    named_groups = [_entry(_GROUP, permissions, ident) for ident, permissions in sorted((groups or {}).items())]
    if mask is None and (named or named_groups):
        mask = 7
    parts = [struct.pack("<I", 2), _entry(_USER_OBJ, owner), *named, _entry(_GROUP_OBJ, group), *named_groups]
    if mask is not None:
        parts.append(_entry(_MASK, mask))
    return b"".join([*parts, _entry(_OTHER, other)])
