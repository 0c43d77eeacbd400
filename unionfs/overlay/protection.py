"""File attributes that forbid changes: append-only and immutable (chattr +a, +i). Pure.

A lower object may have them, and they hold for what the union shows of it. Copy-up keeps them in ``overlay.protattr``: on upper itself they
would keep us from linking, marking and moving the copy. An object of upper that has them on disk is left to the disk, but for appending.
The kernel does not know them of a FUSE file, so the union refuses (EPERM) what the VFS would have refused: inode_permission, may_create,
may_delete, vfs_link, may_setattr, xattr_permission, may_open.
"""

from __future__ import annotations

import errno
import os

APPEND = 1
IMMUTABLE = 2
_LETTERS = {ord("a"): APPEND, ord("i"): IMMUTABLE}


def decode(value: bytes) -> int:
    """What ``overlay.protattr`` says, up to a letter that means nothing (ovl_check_protattr)."""
    found = 0
    for letter in value:
        if letter not in _LETTERS:
            break
        found |= _LETTERS[letter]
    return found


def encode(protection: int) -> bytes:
    """The value of ``overlay.protattr`` (ovl_set_protattr)."""
    return bytes(letter for letter, flag in _LETTERS.items() if protection & flag)


def refuse(protection: int, unless: int = 0) -> None:
    """OSError(EPERM) for anything in *protection* but *unless*."""
    if protection & ~unless:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def refuse_opening(protection: int, flags: int) -> None:
    """OSError(EPERM) when an object so protected cannot be opened with *flags* (may_open)."""
    writes = flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC
    if writes:
        refuse(protection, APPEND if flags & os.O_APPEND and not flags & os.O_TRUNC else 0)
