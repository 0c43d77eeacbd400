"""File attributes, as chattr(1) sets them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

IMMUTABLE = 0x10
APPEND = 0x20
_GET = 0x80086601
_SET = 0x40086602
_NOT_HERE = (errno.ENOTTY, errno.EOPNOTSUPP, errno.EPERM)


def flags(path: Path) -> int:
    """IMMUTABLE and APPEND of the file or directory *path*."""
    return _flags(path) & (IMMUTABLE | APPEND)


def _flags(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        (found,) = struct.unpack("=I", fcntl.ioctl(fd, _GET, bytes(8))[:4])
        return int(found)
    finally:
        os.close(fd)


def set_flags(path: Path, wanted: int) -> None:
    """Have *path* these of IMMUTABLE and APPEND, and leave its others."""
    value = _flags(path) & ~(IMMUTABLE | APPEND) | wanted
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        fcntl.ioctl(fd, _SET, struct.pack("=Q", value))
    finally:
        os.close(fd)


def are_possible(directory: Path) -> bool:
    """Whether its filesystem has them and we may set them."""
    probe = directory / "probe"
    probe.touch()
    try:
        set_flags(probe, IMMUTABLE)
        set_flags(probe, 0)
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
        return False
    finally:
        probe.unlink()
    return True


@contextlib.contextmanager
def cleared_at_the_end(top: Path) -> Iterator[None]:
    """Whatever happens, nothing below *top* has them afterwards: else nobody could remove it."""
    try:
        yield
    finally:
        clear(top)


def clear(top: Path) -> None:
    """Take them from everything below *top*, from above: what is in a directory may not be listed before."""
    for parent, directories, names in os.walk(top):
        for path in (Path(parent, name) for name in (*directories, *names)):
            if stat.S_IFMT(path.lstat().st_mode) in (stat.S_IFREG, stat.S_IFDIR) and flags(path):
                set_flags(path, 0)
