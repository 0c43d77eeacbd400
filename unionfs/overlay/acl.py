"""POSIX ACLs as bytes: what a new object inherits from its directory's default ACL (acl(5), kernel posix_acl_create).

Wire format (linux/posix_acl_xattr.h, version 2): u32 version, then (u16 tag, u16 permissions, u32 id) each, little endian.
"""

from __future__ import annotations

import struct

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"

_VERSION = 2
_USER_OBJ, _GROUP_OBJ, _MASK, _OTHER = 0x01, 0x04, 0x10, 0x20


def inherit(default: bytes, mode: int) -> tuple[int, bytes | None]:
    """(mode, access ACL or None where the mode says it all) of a new object asked for with *mode* under *default*.

    Raises ValueError when *default* is no ACL.
    """
    if len(default) < 4 or (len(default) - 4) % 8 or struct.unpack_from("<I", default)[0] != _VERSION:
        raise ValueError("not a POSIX ACL")
    entries = [list(struct.unpack_from("<HHI", default, at)) for at in range(4, len(default), 8)]
    tags = {tag: entry for entry in entries for tag in (entry[0],)}
    group = tags.get(_MASK, tags.get(_GROUP_OBJ))
    user, other = tags.get(_USER_OBJ), tags.get(_OTHER)
    if user is None or other is None or group is None:
        raise ValueError("not a POSIX ACL")
    user[1] &= mode >> 6 & 7
    group[1] &= mode >> 3 & 7
    other[1] &= mode & 7
    new_mode = mode & ~0o777 | user[1] << 6 | group[1] << 3 | other[1]
    if len(entries) == 3:
        return new_mode, None
    return new_mode, struct.pack("<I", _VERSION) + b"".join(struct.pack("<HHI", *e) for e in entries)
