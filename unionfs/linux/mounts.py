"""Mounts: the new mount API, the old one where it is all there is, and /proc/self/mountinfo.

A detached mount (``open_tree`` clone, ``fsmount``) is a descriptor that no path leads to: layers are reached through one, and the union
is one until ``move_mount`` attaches it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from typing import NamedTuple

from unionfs.linux import libc as _l

AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC

MOVE_MOUNT_F_EMPTY_PATH = 0x4

FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_SET_FD = 5
FSCONFIG_CMD_CREATE = 6

MOUNT_ATTRS = {
    "ro": 0x1,
    "nosuid": 0x2,
    "nodev": 0x4,
    "noexec": 0x8,
    "noatime": 0x10,
    "strictatime": 0x20,
    "nodiratime": 0x80,
    "nosymfollow": 0x200000,
}

_MOUNT_ATTR_ATIME = 0x70

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_RELATIME = 0x200000
MS_STRICTATIME = 0x1000000

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8


class _MountAttr(ctypes.Structure):
    _fields_ = [
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    ]


def open_tree(path: bytes, flags: int, dir_fd: int = -100) -> int:
    """Descriptor of *path*; with OPEN_TREE_CLONE a detached private copy of its mount, rooted there, without what is mounted below."""
    return _l.syscall(_l.SYS_OPEN_TREE, dir_fd, path, flags | OPEN_TREE_CLOEXEC, what=path)


def move_mount(mount_fd: int, target: bytes, dir_fd: int = -100) -> None:
    """Attach the detached mount *mount_fd* at *target*."""
    _l.syscall(_l.SYS_MOVE_MOUNT, mount_fd, b"", dir_fd, target, MOVE_MOUNT_F_EMPTY_PATH, what=target)


def mount_setattr(fd: int, attrs: Iterable[str], *, recursive: bool = False, clear: Iterable[str] = ()) -> None:
    """Set and clear mount attributes (names of MOUNT_ATTRS) on the mount *fd* is the root of."""
    bits = sum(MOUNT_ATTRS[a] for a in attrs)
    # the access time modes are one field: setting one demands that the field is cleared first
    cleared = sum(MOUNT_ATTRS[a] for a in clear) | (_MOUNT_ATTR_ATIME if bits & _MOUNT_ATTR_ATIME else 0)
    attr = _MountAttr(bits, cleared, 0, 0)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    _l.syscall(_l.SYS_MOUNT_SETATTR, fd, b"", flags, ctypes.byref(attr), ctypes.sizeof(attr))


def fs_mount(fstype: str, strings: dict[str, bytes], flags: Iterable[str], attrs: Iterable[str]) -> int:
    """Make a filesystem and return its detached mount: *strings* are its key=value parameters, *flags* its bare ones; else as fs_create."""
    return fs_create(fstype, (*strings.items(), *((flag, None) for flag in flags)), attrs)


def fs_create(fstype: str, parameters: Iterable[tuple[str, bytes | int | None]], attrs: Iterable[str]) -> int:
    """Make a filesystem and return its detached mount.

    *parameters*: each a text of at most 255 bytes, a descriptor, or None for a bare word; *attrs*: names of MOUNT_ATTRS. Raises OSError,
    whose file name is the parameter the kernel refused, or *fstype* for all of them together, and whose text is the kernel's own where
    it gave one.
    """
    context = _l.syscall(_l.SYS_FSOPEN, fstype.encode(), FSOPEN_CLOEXEC, what=fstype)
    try:
        for key, value in parameters:
            command = FSCONFIG_SET_FLAG if value is None else FSCONFIG_SET_FD if isinstance(value, int) else FSCONFIG_SET_STRING
            text, number = (None, value) if isinstance(value, int) else (value, 0)
            _l.syscall(_l.SYS_FSCONFIG, context, command, key.encode(), text, number, what=key)
        _l.syscall(_l.SYS_FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0, what=fstype)
        return _l.syscall(
            _l.SYS_FSMOUNT, context, FSMOUNT_CLOEXEC, sum(MOUNT_ATTRS[a] for a in attrs), what=fstype
        )
    except OSError as exc:
        raise OSError(exc.errno, _told(context) or exc.strerror, exc.filename) from exc
    finally:
        os.close(context)


def _told(context: int) -> str:
    """What the kernel wrote to the log of a filesystem context: lines of a level, a space and a text."""
    lines = []
    try:
        while line := os.read(context, 1 << 12):
            lines.append(line.decode("utf-8", "backslashreplace").strip()[2:])
    except OSError:  # ENODATA: that was all
        pass
    return "; ".join(lines)


def mount(source: bytes, target: bytes, fstype: bytes | None, flags: int = 0, data: bytes | None = None) -> None:
    """mount(2)."""
    _l.checked(_l.libc.mount(source, target, fstype, ctypes.c_ulong(flags), data), target)


def umount2(target: bytes, flags: int = 0) -> None:
    """umount2(2)."""
    _l.checked(_l.libc.umount2(target, flags), target)


class MountInfo(NamedTuple):
    """One line of /proc/PID/mountinfo (proc_pid_mountinfo(5)); paths are unescaped bytes, the values of super_options still escaped."""

    mount_id: int
    parent_id: int
    device: str
    root: bytes
    target: bytes
    options: tuple[str, ...]
    fstype: str
    source: bytes
    super_options: tuple[str, ...]


def unescape(field: bytes) -> bytes:
    """Undo the kernel's octal escapes of space, tab, newline, backslash and '#'."""
    if b"\\" not in field:
        return field
    head, *rest = field.split(b"\\")
    return head + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)


def _parse_mountinfo_line(line: bytes) -> MountInfo:
    fields = line.split(b" ")
    dash = fields.index(b"-", 6)
    return MountInfo(
        mount_id=int(fields[0]),
        parent_id=int(fields[1]),
        device=fields[2].decode(),
        root=unescape(fields[3]),
        target=unescape(fields[4]),
        options=tuple(fields[5].decode("utf-8", "replace").split(",")),
        fstype=fields[dash + 1].decode("utf-8", "replace"),
        source=unescape(fields[dash + 2]),
        super_options=tuple(fields[dash + 3].decode("utf-8", "surrogateescape").split(",")),
    )


def mountinfo(pid: int | str = "self") -> list[MountInfo]:
    """All mounts of *pid*'s mount namespace, in mount order (the last of one target is the one on top)."""
    with open(f"/proc/{pid}/mountinfo", "rb") as stream:
        return [_parse_mountinfo_line(line) for line in stream.read().splitlines()]


def super_option(info: MountInfo, key: str) -> bytes | None:
    """The value of a ``key=value`` option of the filesystem, None without it."""
    for option in info.super_options:
        name, _, value = option.partition("=")
        if name == key:
            return unescape(os.fsencode(value))
    return None


def mount_at(target: bytes) -> MountInfo | None:
    """The mount on top of *target* (an absolute path without symlinks), found without touching it; None where nothing is mounted."""
    found = [m for m in mountinfo() if m.target == target]
    return found[-1] if found else None


def is_idmapped(fd: int) -> bool:
    """Whether the mount *fd* was reached through shows other ids than its filesystem has; no for a mount of another namespace."""
    wanted = mount_id(fd)
    return any("idmapped" in found.options for found in mountinfo() if found.mount_id == wanted)


def mount_id(fd: int) -> int:
    """The id of the mount *fd* was reached through."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as stream:
        for line in stream:
            if line.startswith(b"mnt_id:"):
                return int(line.split()[1])
    raise OSError(38, "the kernel does not tell mount ids")
