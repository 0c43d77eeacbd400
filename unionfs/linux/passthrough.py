"""Files that the kernel's FUSE reads and writes itself: registering them on the descriptor of a connection (linux/fuse.h, Linux 6.9)."""

from __future__ import annotations

import fcntl
import struct

#: struct fuse_backing_map: descriptor, flags, padding.
_MAP = struct.Struct("=iIQ")
_ID = struct.Struct("=I")
_BACKING_OPEN = 0x4010E501  # _IOW(229, 1, struct fuse_backing_map)
_BACKING_CLOSE = 0x4004E502  # _IOW(229, 2, uint32_t)


def register(connection: int, fd: int) -> int:
    """The backing id of the regular file *fd*, any kind of descriptor, which is not needed any more afterwards.

    EPERM without CAP_SYS_ADMIN in the initial user namespace or where INIT agreed on no passthrough, ELOOP where the file's filesystem is
    stacked on others, as overlayfs is, as deep as was agreed upon or deeper.
    """
    message = bytearray(_MAP.pack(fd, 0, 0))  # of bytes a copy would come back instead of the result
    return int(fcntl.ioctl(connection, _BACKING_OPEN, message))


def unregister(connection: int, backing: int) -> None:
    """Give the id back; what is open by it goes on."""
    fcntl.ioctl(connection, _BACKING_CLOSE, _ID.pack(backing))
