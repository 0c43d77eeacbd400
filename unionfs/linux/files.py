"""File system calls the standard library lacks, all relative to a directory descriptor."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

from unionfs.linux import libc as _l

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

AT_EMPTY_PATH = 0x1000
AT_SYMLINK_NOFOLLOW = 0x100

AT_NO_AUTOMOUNT = 0x800
STATX_ATTR_IMMUTABLE = 0x10
STATX_ATTR_APPEND = 0x20

_UTIME_OMIT = (1 << 30) - 2
_FICLONE = 0x40049409
_STACKED = frozenset({0x794C7630, 0x65735546, 0xF15F})
_FS_IOC_GETFSUUID = 0x80111500
_EXT4_IOC_GETFSUUID = 0x8008662C

FALLOC_KEEP_SIZE = 1
FALLOC_PUNCH_HOLE = 2

#: Two forms in which a file has its attributes: requests to get and to set them, bytes; the first four are a word of flags.
#: FS_IOC_GETFLAGS (whose structure is said to be a long, and is an int), FS_IOC_FSGETXATTR (struct fsxattr).
FLAGS = 0x80086601, 0x40086602, 8
FSXATTR = 0x801C581F, 0x401C5820, 28
_STATX_BTIME = 0x800
#: Places in struct statx, in words of 8 bytes; stx_mask is the lower half of the first.
_ATTRIBUTES, _BTIME = 1, 10

_COPY_CHUNK = 1 << 30
_BUFFER = 1 << 20

#: An object to change: a descriptor that is not O_PATH, or a ``path_at`` path, which costs 1.2 us more to walk.
Place: TypeAlias = int | bytes


def openat2(dir_fd: int, path: bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """openat2(2); always O_CLOEXEC."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    return _l.syscall(_l.SYS_OPENAT2, dir_fd, path, how, len(how), what=path)


def renameat2(old_dir: int, old: bytes, new_dir: int, new: bytes, flags: int = 0) -> None:
    """renameat2(2)."""
    if flags:
        _l.checked(_l.libc.renameat2(old_dir, old, new_dir, new, ctypes.c_uint(flags)), old)
    else:
        os.rename(old, new, src_dir_fd=old_dir, dst_dir_fd=new_dir)


def path_at(dir_fd: int, name: bytes) -> bytes:
    """A path that means *name* in the directory *dir_fd*, for calls that take no descriptor; an empty name is *dir_fd*'s object.

    The magic link jumps to the directory, then one name is walked. Calls must not follow a symlink there, but must follow the bare link:
    ``is_descriptor`` tells them apart.
    """
    return b"/proc/self/fd/%d/%s" % (dir_fd, name) if name else b"/proc/self/fd/%d" % dir_fd


def is_descriptor(place: Place) -> bool:
    """Whether *place* is a descriptor, or a bare /proc/self/fd/N."""
    return isinstance(place, int) or place.count(b"/") == 4


def utimens(place: Place, atime_ns: int | None, mtime_ns: int | None) -> None:
    """Set the times of the object at *place*, symlink or not; None leaves one as it is."""
    if atime_ns is not None and mtime_ns is not None:
        os.utime(place, ns=(atime_ns, mtime_ns), follow_symlinks=is_descriptor(place))
        return
    path = path_at(place, b"") if isinstance(place, int) else place
    pairs = [(0, _UTIME_OMIT) if t is None else divmod(t, 1_000_000_000) for t in (atime_ns, mtime_ns)]
    times = struct.pack("=qqqq", *pairs[0], *pairs[1])
    _l.checked(_l.libc.utimensat(-100, path, times, 0 if is_descriptor(path) else AT_SYMLINK_NOFOLLOW), path)


def touch(place: Place) -> None:
    """Set both times of the object at *place*, symlink or not, to now."""
    os.utime(place, follow_symlinks=is_descriptor(place))


@contextmanager
def kept_times(fd: int) -> Iterator[None]:
    """The object behind *fd* has the same times after the block as before."""
    before = os.fstat(fd)
    yield
    if os.fstat(fd).st_mtime_ns != before.st_mtime_ns:
        utimens(path_at(fd, b""), before.st_atime_ns, before.st_mtime_ns)


_statx = (ctypes.c_uint64 * 32)()


def attributes(dir_fd: int, name: bytes) -> int:
    """The STATX_ATTR_* of *name* in *dir_fd* itself (empty: of what *dir_fd* is); 0 where the filesystem tells none. statx(2).

    For one thread only: whatever removes or changes something asks this, and a buffer for each answer would double what that costs.
    """
    flags = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | (0 if name else AT_EMPTY_PATH)
    _l.checked(_l.libc.statx(dir_fd, name, flags, 0, _statx), name)
    return _statx[_ATTRIBUTES]


def birth(path: bytes) -> int | None:
    """When the object at a ``path_at`` path was made, in nanoseconds; None where the filesystem does not know. For one thread only."""
    flags = AT_NO_AUTOMOUNT | (0 if is_descriptor(path) else AT_SYMLINK_NOFOLLOW)
    _l.checked(_l.libc.statx(-100, path, flags, _STATX_BTIME, _statx), path)
    if not _statx[0] & _STATX_BTIME:
        return None
    seconds = ctypes.c_int64(_statx[_BTIME]).value
    return seconds * 1_000_000_000 + (_statx[_BTIME + 1] & 0xFFFFFFFF)


def file_attributes(fd: int, form: tuple[int, int, int]) -> bytes:
    """The attributes of the file or directory *fd*, not O_PATH, in one of the forms above; ENOTTY where the filesystem has none."""
    buffer = bytearray(form[2])
    fcntl.ioctl(fd, form[0], buffer)
    return bytes(buffer)


def set_file_attributes(fd: int, form: tuple[int, int, int], value: bytes) -> None:
    """Have them be *value*; EOPNOTSUPP for what the filesystem does not have."""
    fcntl.ioctl(fd, form[1], value.ljust(form[2], b"\0"))


def reopen(fd: int, flags: int) -> int:
    """A new open file description of the object behind *fd*, which may be O_PATH and unlinked."""
    return os.open(b"/proc/self/fd/%d" % fd, flags | os.O_CLOEXEC)


_HANDLE_HEAD = struct.Struct("=Ii")
_HANDLE_ROOM = 128
_handle = ctypes.create_string_buffer(_HANDLE_HEAD.size + _HANDLE_ROOM)
_mount_id = ctypes.byref(ctypes.c_int())


def file_handle(dir_fd: int, name: bytes) -> tuple[int, bytes]:
    """(type, bytes) of the object's file handle, name_to_handle_at(2). EOPNOTSUPP where the filesystem has none.

    For one thread only, as ``attributes``: every copy-up asks.
    """
    _HANDLE_HEAD.pack_into(_handle, 0, _HANDLE_ROOM, 0)
    _l.checked(_l.libc.name_to_handle_at(dir_fd, name, _handle, _mount_id, 0), name)
    size, kind = _HANDLE_HEAD.unpack_from(_handle)
    return kind, _handle.raw[_HANDLE_HEAD.size : _HANDLE_HEAD.size + size]


def open_by_handle(mount_fd: int, kind: int, handle: bytes) -> int:
    """O_PATH descriptor of the object with this handle, open_by_handle_at(2). *mount_fd* must not be O_PATH itself."""
    raw = struct.pack("=Ii", len(handle), kind) + handle
    return _l.checked(_l.libc.open_by_handle_at(mount_fd, raw, os.O_PATH | os.O_CLOEXEC))


def filesystem_uuid(fd: int) -> bytes:
    """The 16-byte uuid of the filesystem *fd* lives on, zeros when it tells none."""
    for request, size, skip in ((_FS_IOC_GETFSUUID, 17, 1), (_EXT4_IOC_GETFSUUID, 24, 8)):
        # both structures start with the length they have room for: one byte, or __u32 length and __u32 flags
        buffer = bytearray(struct.pack("=II", 16, 0).ljust(size, b"\0")) if skip == 8 else bytearray(size)
        try:
            fcntl.ioctl(fd, request, buffer)
        except OSError:
            continue
        return bytes(buffer[skip : skip + 16])
    return bytes(16)


def filesystem_type(fd: int) -> int:
    """The magic number (linux/magic.h) of the filesystem *fd* lives on."""
    buffer = ctypes.create_string_buffer(256)  # struct statfs: at most 120 bytes, f_type first
    _l.checked(_l.libc.fstatfs(fd, buffer))
    return int(ctypes.c_ulong.from_buffer(buffer).value) & 0xFFFFFFFF


def is_stacked(fd: int) -> bool:
    """Whether the filesystem *fd* lives on stands on others (s_stack_depth): overlayfs, FUSE where it passes through, ecryptfs."""
    return filesystem_type(fd) in _STACKED


def clone(source: int, target: int) -> bool:
    """Share all data of *source* with *target* (FICLONE); False where the filesystem cannot."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as exc:
        if exc.errno in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM):
            return False
        raise
    return True


def punch_hole(fd: int, size: int) -> None:
    """Give the space of the first *size* bytes back; the file keeps its length, and reads as zeros there."""
    allocate(fd, FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE, 0, size)


def allocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) in any of its modes."""
    _l.checked(_l.libc.fallocate(fd, ctypes.c_int(mode), ctypes.c_int64(offset), ctypes.c_int64(length)))


def copy_data(source: int, target: int, size: int) -> None:
    """Make *target* the first *size* bytes of *source*, by reflink where possible, keeping holes.

    What *target* holds must be of *source* or empty. Its length changes at the end only, if it is not shorter.
    """
    if not size or not clone(source, target):
        _copy_extents(source, target, size)
    if os.fstat(target).st_size != size:
        os.ftruncate(target, size)


def _copy_extents(source: int, target: int, size: int) -> None:
    position = 0
    while position < size:
        try:
            start = os.lseek(source, position, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # only a hole is left
                return
            start = position
        if start >= size:
            return
        try:
            end = min(os.lseek(source, start, os.SEEK_HOLE), size)
        except OSError:
            end = size
        _copy_extent(source, target, start, end)
        position = end


def _copy_extent(source: int, target: int, start: int, end: int) -> None:
    in_kernel = True
    while start < end:
        copied = 0
        if in_kernel:
            try:
                copied = os.copy_file_range(source, target, min(end - start, _COPY_CHUNK), start, start)
            except OSError as exc:
                if exc.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EPERM):
                    raise
                in_kernel = False
                continue
            if copied == 0:  # some filesystems (procfs, old FUSE) say 0 instead of an error
                in_kernel = False
                continue
        else:
            data = os.pread(source, min(end - start, _BUFFER), start)
            if not data:  # the file shrank under us: the rest is a hole
                return
            copied = os.pwrite(target, data, start)
        start += copied


def sync_directory(fd: int) -> None:
    """fsync of the directory *fd*, which may be O_PATH. One its owner may not read is left to the next sync of the filesystem."""
    try:
        opened = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    except PermissionError:
        return
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
