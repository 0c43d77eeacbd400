"""The verbs of the comparison: each does one thing below a mount and returns what a program would have seen.

An OSError is an answer like another. What two correct filesystems may disagree on is left out of the answers:
inode and device numbers, block counts, the size and link count of directories, the moment that "now" is.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import mmap
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.support import tree

NOREPLACE, EXCHANGE = 1, 2
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
_AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)

Answer = Any


@dataclass(eq=False)
class Open:
    """A file kept open. `coherent`: its reads must show later writes (see Side.keep)."""

    fd: int
    coherent: bool


@dataclass(eq=False)
class Side:
    """One of the two mounts."""

    name: str
    root: bytes
    upper: bytes
    hide_ghosts: bool
    metacopy: bool = False
    kept: dict[int, Open] = field(default_factory=dict)

    def at(self, path: bytes) -> bytes:
        return os.path.join(self.root, path)

    def close(self) -> None:
        for kept in self.kept.values():
            os.close(kept.fd)
        self.kept.clear()


@contextlib.contextmanager
def acting_as(uid: int, umask: int) -> Iterator[None]:
    """As this user (0: root), with that umask. An ordinary user is also in group 1002."""
    old_mask = os.umask(umask)
    if uid:
        os.setgroups([uid, 1002])
        os.setegid(uid)
        os.seteuid(uid)
    try:
        yield
    finally:
        if uid:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups([0])
        os.umask(old_mask)


def facts(found: os.stat_result) -> Answer:
    kind = tree.kind_of(found.st_mode)
    directory = kind == "directory"
    return {
        "kind": kind, "mode": f"{stat.S_IMODE(found.st_mode):04o}", "owner": (found.st_uid, found.st_gid),
        "size": None if directory else found.st_size, "nlink": None if directory else found.st_nlink,
        "rdev": found.st_rdev if "device" in kind else None, "mtime": tree.when(found.st_mtime_ns),
    }


def _digest(data: bytes) -> str:
    return repr(data) if len(data) <= 64 else f"{len(data)} bytes {hashlib.sha256(data).hexdigest()}"


def _open(side: Side, path: bytes, flags: int, mode: int = 0o666) -> int:
    """Open. The kernel copies up what is opened for writing, we what is written: the count of links shows the difference, and a later mount
    without the lower. So a change that leaves no trace makes both copy up here, with the data where attributes alone would do. When the
    data of a metacopy come up, the kernel forgets its modification time, we do not: it becomes now."""
    fd = os.open(side.at(path), flags | os.O_NONBLOCK, mode)
    found = os.fstat(fd)
    if flags & os.O_ACCMODE != os.O_RDONLY and stat.S_ISREG(found.st_mode):
        uid = os.geteuid()
        os.seteuid(0)
        os.setxattr(fd, "trusted.copy-up", b"")
        os.removexattr(fd, "trusted.copy-up")
        if side.metacopy:
            os.ftruncate(fd, found.st_size)
            os.utime(fd)
        os.seteuid(uid)
    return fd


@contextlib.contextmanager
def _opened(side: Side, path: bytes, flags: int, mode: int = 0o666) -> Iterator[int]:
    fd = _open(side, path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


# ---- names ----

def mkdir(side: Side, path: bytes, mode: int) -> Answer:
    os.mkdir(side.at(path), mode)


def mknod(side: Side, path: bytes, kind: int, mode: int, rdev: tuple[int, int]) -> Answer:
    os.mknod(side.at(path), kind | mode, os.makedev(*rdev))


def symlink(side: Side, path: bytes, target: bytes) -> Answer:
    os.symlink(target, side.at(path))


def link(side: Side, path: bytes, new: bytes) -> Answer:
    os.link(side.at(path), side.at(new), follow_symlinks=False)


def unlink(side: Side, path: bytes) -> Answer:
    os.unlink(side.at(path))


def rmdir(side: Side, path: bytes) -> Answer:
    os.rmdir(side.at(path))


def rename(side: Side, path: bytes, new: bytes, flags: int) -> Answer:
    if _libc.renameat2(_AT_FDCWD, side.at(path), _AT_FDCWD, side.at(new), flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def readdir(side: Side, path: bytes) -> Answer:
    """Names with the type that the listing itself gives; ghosts on the kernel's side and broken objects (see tree.names_in)
    are left out."""
    top = side.at(path)
    listed = [entry.name for entry in os.scandir(top)]
    if len(set(listed)) != len(listed):
        return f"a name is listed twice: {sorted(listed)}"
    return [(entry.name, entry.is_dir(follow_symlinks=False), entry.is_file(follow_symlinks=False), entry.is_symlink())
            for entry in sorted(os.scandir(top), key=lambda entry: entry.name)
            if not (side.hide_ghosts and tree.is_ghost(entry.path)) and not tree.is_broken(entry.path)]


# ---- attributes ----

def lstat(side: Side, path: bytes) -> Answer:
    return facts(os.lstat(side.at(path)))


def follow(side: Side, path: bytes) -> Answer:
    return facts(os.stat(side.at(path)))


def readlink(side: Side, path: bytes) -> Answer:
    return os.readlink(side.at(path))


def access(side: Side, path: bytes, mode: int) -> Answer:
    return os.access(side.at(path), mode, effective_ids=True)


def chmod(side: Side, path: bytes, mode: int) -> Answer:
    os.chmod(side.at(path), mode)


def chown(side: Side, path: bytes, uid: int, gid: int, follow: bool) -> Answer:
    os.chown(side.at(path), uid, gid, follow_symlinks=follow)


def utimens(side: Side, path: bytes, atime_ns: int, mtime_ns: int, follow: bool) -> Answer:
    os.utime(side.at(path), ns=(atime_ns, mtime_ns), follow_symlinks=follow)


def touch(side: Side, path: bytes) -> Answer:
    os.utime(side.at(path))


def setxattr(side: Side, path: bytes, name: str, value: bytes, flags: int, follow: bool) -> Answer:
    os.setxattr(side.at(path), name, value, flags, follow_symlinks=follow)


def getxattr(side: Side, path: bytes, name: str, follow: bool) -> Answer:
    return os.getxattr(side.at(path), name, follow_symlinks=follow)


def listxattr(side: Side, path: bytes, follow: bool) -> Answer:
    return sorted(os.listxattr(side.at(path), follow_symlinks=follow))


def removexattr(side: Side, path: bytes, name: str, follow: bool) -> Answer:
    os.removexattr(side.at(path), name, follow_symlinks=follow)


def statfs(side: Side, path: bytes) -> Answer:
    found = os.statvfs(side.at(path))
    return found.f_namemax, found.f_blocks * found.f_frsize, found.f_files, found.f_flag & os.ST_RDONLY


# ---- data ----

def open_file(side: Side, path: bytes, flags: int, mode: int, data: bytes) -> Answer:
    """open, write when it can, read when it can, fstat."""
    with _opened(side, path, flags, mode) as fd:
        answer: list[Answer] = []
        if flags & os.O_ACCMODE != os.O_RDONLY:
            answer.append(os.write(fd, data))
        if flags & os.O_ACCMODE != os.O_WRONLY and stat.S_ISREG(os.fstat(fd).st_mode):
            answer.append(_digest(os.pread(fd, 1 << 20, 0)))
        return [*answer, facts(os.fstat(fd))]


def read(side: Side, path: bytes) -> Answer:
    with _opened(side, path, os.O_RDONLY) as fd:
        return _digest(os.read(fd, 1 << 16))


def write(side: Side, path: bytes, offset: int, data: bytes) -> Answer:
    with _opened(side, path, os.O_WRONLY) as fd:
        return os.pwrite(fd, data, offset)


def write_mapped(side: Side, path: bytes, data: bytes) -> Answer:
    """Write through a shared mapping; an empty file has nothing to map."""
    with _opened(side, path, os.O_RDWR) as fd:
        size = os.fstat(fd).st_size
        if not stat.S_ISREG(os.fstat(fd).st_mode) or size == 0:
            return "nothing to map"
        with mmap.mmap(fd, size) as mapping:
            mapping[:min(size, len(data))] = data[:size]
            mapping.flush()
            return _digest(bytes(mapping))


def truncate(side: Side, path: bytes, size: int) -> Answer:
    os.truncate(side.at(path), size)


def fsync(side: Side, path: bytes) -> Answer:
    with _opened(side, path, os.O_RDONLY) as fd:
        os.fsync(fd)


def allocate(side: Side, path: bytes, mode: int, offset: int, length: int) -> Answer:
    with _opened(side, path, os.O_RDWR) as fd:
        if _libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)):
            raise OSError(ctypes.get_errno(), "fallocate")


def extents(side: Side, path: bytes) -> Answer:
    """Where the data and the holes of a file begin."""
    with _opened(side, path, os.O_RDONLY) as fd:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return "no file"
        found, at = [], 0
        with contextlib.suppress(OSError):  # ENXIO: there is no more
            while True:
                found.append(at := os.lseek(fd, at, os.SEEK_DATA))
                found.append(at := os.lseek(fd, at, os.SEEK_HOLE))
        return found


def copy_range(side: Side, path: bytes, target: bytes, offset: int, target_offset: int, length: int) -> Answer:
    with _opened(side, path, os.O_RDONLY) as source, _opened(side, target, os.O_WRONLY) as fd:
        return os.copy_file_range(source, fd, length, offset, target_offset)


def unnamed(side: Side, path: bytes, name: bytes, mode: int, data: bytes) -> Answer:
    """A file without a name, written to and then given one."""
    fd = os.open(side.at(path), os.O_TMPFILE | os.O_RDWR, mode)
    try:
        os.write(fd, data)
        before = facts(os.fstat(fd))
        given = os.path.join(side.at(path), name)
        if _libc.linkat(_AT_FDCWD, b"/proc/self/fd/%d" % fd, _AT_FDCWD, given, 0x400):  # AT_SYMLINK_FOLLOW
            raise OSError(ctypes.get_errno(), "linkat")
        return before, facts(os.fstat(fd)), facts(os.lstat(given))
    finally:
        os.close(fd)


# ---- files kept open over other operations ----

def keep(side: Side, slot: int, path: bytes, flags: int) -> Answer:
    """Open and keep. The kernel's overlayfs goes on reading the lower file through a descriptor that was opened
    before the copy-up, so only what is in upper when it is opened is compared after that."""
    fd = _open(side, path, flags | os.O_NOFOLLOW)
    if slot in side.kept:
        os.close(side.kept.pop(slot).fd)
    side.kept[slot] = Open(fd, _has_data(os.path.join(side.upper, path)))
    return facts(os.fstat(fd))


def _has_data(path: bytes) -> bool:
    """Whether something is there that is not the attributes alone of a file below."""
    try:
        return "trusted.overlay.metacopy" not in os.listxattr(path, follow_symlinks=False)
    except FileNotFoundError:
        return False


def _kept(side: Side, slot: int) -> int:
    if slot not in side.kept:
        raise OSError(errno.EBADF, "nothing is open here")
    return side.kept[slot].fd


def kept_write(side: Side, slot: int, offset: int, data: bytes) -> Answer:
    return os.pwrite(_kept(side, slot), data, offset)


def kept_append(side: Side, slot: int, data: bytes) -> Answer:
    return os.write(_kept(side, slot), data)


def kept_read(side: Side, slot: int) -> Answer:
    return _digest(os.pread(_kept(side, slot), 1 << 16, 0))


def kept_stat(side: Side, slot: int) -> Answer:
    return facts(os.fstat(_kept(side, slot)))


def kept_truncate(side: Side, slot: int, size: int) -> Answer:
    os.ftruncate(_kept(side, slot), size)


def kept_chmod(side: Side, slot: int, mode: int) -> Answer:
    os.fchmod(_kept(side, slot), mode)


def kept_setxattr(side: Side, slot: int, name: str, value: bytes) -> Answer:
    os.setxattr(_kept(side, slot), name, value)


def kept_listxattr(side: Side, slot: int) -> Answer:
    return sorted(os.listxattr(_kept(side, slot)))


def kept_list(side: Side, slot: int) -> Answer:
    """The names of a directory kept open, which may have been removed since."""
    fd = _kept(side, slot)
    here = os.fsencode(f"/proc/self/fd/{fd}")
    return list(tree.names_in(here, side.hide_ghosts, hide_broken=True))


def close(side: Side, slot: int) -> Answer:
    fd = _kept(side, slot)
    del side.kept[slot]
    os.close(fd)
