"""Extended attributes of an object named by a ``files.Place`` (there is no getxattrat before Linux 6.13)."""

from __future__ import annotations

import errno
import os

from unionfs.linux.files import Place, is_descriptor

_ABSENT = (errno.ENODATA, errno.EOPNOTSUPP)


def selinux_is_on() -> bool:
    """Whether this machine has SELinux: it then knows its file system (init_sel_fs). Yes, if that cannot be told."""
    try:
        with open("/proc/filesystems", "rb") as file:
            return b"selinuxfs" in file.read().split()
    except OSError:
        return True


def get(place: Place, name: bytes) -> bytes:
    """The value; OSError(ENODATA) without one."""
    return os.getxattr(place, name, follow_symlinks=is_descriptor(place))


def find(place: Place, name: bytes) -> bytes | None:
    """The value, None when there is none or the filesystem has no such attributes."""
    try:
        return get(place, name)
    except OSError as exc:
        if exc.errno in _ABSENT:
            return None
        raise


def names(place: Place) -> list[bytes]:
    """All names on the object; empty where the filesystem has none."""
    try:
        return [os.fsencode(n) for n in os.listxattr(place, follow_symlinks=is_descriptor(place))]
    except OSError as exc:
        if exc.errno == errno.EOPNOTSUPP:
            return []
        raise


def put(place: Place, name: bytes, value: bytes, flags: int = 0) -> None:
    """Set one (flags: os.XATTR_CREATE, os.XATTR_REPLACE)."""
    os.setxattr(place, name, value, flags, follow_symlinks=is_descriptor(place))


def drop(place: Place, name: bytes) -> None:
    """Remove one; OSError(ENODATA) without it."""
    os.removexattr(place, name, follow_symlinks=is_descriptor(place))


def discard(place: Place, name: bytes) -> None:
    """Remove one, if it is there: another name of the object may have led here before."""
    try:
        drop(place, name)
    except OSError as exc:
        if exc.errno not in _ABSENT:
            raise
