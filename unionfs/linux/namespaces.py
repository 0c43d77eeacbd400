"""Namespaces and the root directory of a new one. Used by ``runtime`` in the process that becomes the container."""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Iterable

from unionfs.linux import libc as _l
from unionfs.linux import mounts

KINDS = {
    "time": 0x00000080,
    "mount": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}

_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1


def unshare(kinds: Iterable[str]) -> None:
    """Put the caller in new namespaces (names of KINDS); a new pid namespace is for its next child, which becomes pid 1."""
    _l.checked(_l.libc.unshare(sum(KINDS[kind] for kind in kinds)))


def make_mounts_private() -> None:
    """Cut the propagation of mounts between this mount namespace and the one it was copied from, both ways."""
    mounts.mount(b"none", b"/", None, mounts.MS_REC | mounts.MS_PRIVATE)


def make_here_the_root() -> None:
    """Make the mount whose root is the current directory the root of the mount namespace, and detach the old root.

    The old root, with all below it, lands on top of the new one and is taken off again, so that no directory has to
    be lent for it (pivot_root(2), NOTES).
    """
    _l.syscall(_l.syscall_number("pivot_root"), b".", b".")
    mounts.umount2(b".", mounts.MNT_DETACH)


def raise_loopback() -> None:
    """Bring ``lo`` up in the caller's network namespace; the kernel then gives it its addresses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        request = struct.pack("16sh14x", b"lo", 0)
        name, flags = struct.unpack("16sh14x", fcntl.ioctl(control, _SIOCGIFFLAGS, request))
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", name, flags | _IFF_UP))
