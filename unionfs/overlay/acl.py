"""POSIX ACLs as bytes: what a new object inherits from its directory's default ACL (acl(5), kernel posix_acl_create).

Wire format (linux/posix_acl_xattr.h, version 2): u32 version, then (u16 tag, u16 permissions, u32 id) each, little endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"

_VERSION = 2
_USER_OBJ, _GROUP_OBJ, _MASK, _OTHER = 0x01, 0x04, 0x10, 0x20


def entries(value: bytes) -> list[tuple[int, int, int]]:
    """(tag, permissions, id) of each entry; ValueError when *value* is no ACL."""
    if len(value) < 4 or (len(value) - 4) % 8 or struct.unpack_from("<I", value)[0] != _VERSION:
        raise ValueError("not a POSIX ACL")
    return list(struct.iter_unpack("<HHI", value[4:]))


def packed(found: Iterable[tuple[int, int, int]]) -> bytes:
    """The ACL of these entries."""
    return struct.pack("<I", _VERSION) + b"".join(struct.pack("<HHI", *entry) for entry in found)


def mode_of(access: bytes, mode: int) -> int:
    """*mode* with the permissions that an access ACL gives; ValueError when it is none (kernel posix_acl_equiv_mode)."""
    bits = {tag: permissions for tag, permissions, _ in entries(access)}
    group = bits.get(_MASK, bits.get(_GROUP_OBJ))
    if _USER_OBJ not in bits or _OTHER not in bits or group is None:
        raise ValueError("not a POSIX ACL")
    return mode & ~0o777 | bits[_USER_OBJ] << 6 | group << 3 | bits[_OTHER]


def inherit(default: bytes, mode: int) -> tuple[int, bytes | None]:
    """(mode, access ACL or None where the mode says it all) of a new object asked for with *mode* under *default*.

    Raises ValueError when *default* is no ACL.
    """
    copied = [list(entry) for entry in entries(default)]
    tags = {entry[0]: entry for entry in copied}
    group = tags.get(_MASK, tags.get(_GROUP_OBJ))
    user, other = tags.get(_USER_OBJ), tags.get(_OTHER)
    if user is None or other is None or group is None:
        raise ValueError("not a POSIX ACL")
    user[1] &= mode >> 6 & 7
    group[1] &= mode >> 3 & 7
    other[1] &= mode & 7
    new_mode = mode & ~0o777 | user[1] << 6 | group[1] << 3 | other[1]
    if len(copied) == 3:
        return new_mode, None
    return new_mode, packed((tag, permissions, ident) for tag, permissions, ident in copied)
