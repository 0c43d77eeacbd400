"""Idmapped mounts of the kernel: a directory whose owners are shown as other ids (mount_setattr(2), MOUNT_ATTR_IDMAP)."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support import system

#: (first id on disk, first id shown, how many)
Ranges = Sequence[tuple[int, int, int]]

_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_CLONE_NEWUSER = 0x10000000
_AT_EMPTY_PATH, _OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH, _MOUNT_ATTR_IDMAP = 0x1000, 1, 4, 0x100000

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def _syscall(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _user_namespace(users: Ranges, groups: Ranges) -> int:
    """A descriptor of a user namespace with these maps; nobody is in it."""
    ready, made = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(made, b"x" if _libc.unshare(_CLONE_NEWUSER) == 0 else b"!")
            signal.pause()
        finally:
            os._exit(1)
    try:
        assert os.read(ready, 1) == b"x", "no user namespace can be made"
        for name, ranges in (("uid_map", users), ("gid_map", groups)):
            Path(f"/proc/{pid}/{name}").write_text("".join(f"{stored} {shown} {count}\n" for stored, shown, count in ranges))
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(made)


@contextmanager
def idmapped(source: Path, target: Path, users: Ranges, groups: Ranges) -> Iterator[Path]:
    """*source*, shown at *target* with its owners mapped."""
    namespace = _user_namespace(users, groups)
    try:
        tree = _syscall(_OPEN_TREE, -100, os.fsencode(source), _OPEN_TREE_CLONE | os.O_CLOEXEC)
        try:
            attr = _MountAttr(_MOUNT_ATTR_IDMAP, 0, 0, namespace)
            _syscall(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, ctypes.byref(attr), ctypes.sizeof(attr))
            _syscall(_MOVE_MOUNT, tree, b"", -100, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)
        finally:
            os.close(tree)
    finally:
        os.close(namespace)
    try:
        yield target
    finally:
        system.unmount(target)
