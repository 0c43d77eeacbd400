"""The kernel's FUSE messages: opcodes, flags, layouts (linux/fuse.h, protocol 7.45), and what packs attributes. Pure.

A message from the kernel is a header, a body that the opcode decides, and names that end with a zero byte. A reply is a header and a body.
All numbers have the machine's own byte order, and no layout has gaps.
"""

from __future__ import annotations

import errno
import os
from enum import IntEnum
from struct import Struct

from unionfs.errors import error

MAJOR = 7
#: What the layouts here are of; the kernel speaks the lower of its own and this one.
MINOR = 45

class Opcode(IntEnum):
    """What a request asks for."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    IOCTL = 39
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


#: One more than the highest.
OPCODES = 64

NOTIFY_INVAL_INODE = 2
NOTIFY_INVAL_ENTRY = 3

# Flags of INIT.
ASYNC_READ = 1 << 0
ATOMIC_O_TRUNC = 1 << 3
BIG_WRITES = 1 << 5
DONT_MASK = 1 << 6
HAS_IOCTL_DIR = 1 << 11
DO_READDIRPLUS = 1 << 13
ASYNC_DIO = 1 << 15
WRITEBACK_CACHE = 1 << 16
PARALLEL_DIROPS = 1 << 18
POSIX_ACL = 1 << 20
MAX_PAGES = 1 << 22
CACHE_SYMLINKS = 1 << 23
EXPLICIT_INVAL_DATA = 1 << 25
HANDLE_KILLPRIV_V2 = 1 << 28
SETXATTR_EXT = 1 << 29
INIT_EXT = 1 << 30
PASSTHROUGH = 1 << 37
ALLOW_IDMAP = 1 << 40

# Flags in requests.
FATTR_MODE = 1 << 0
FATTR_UID = 1 << 1
FATTR_GID = 1 << 2
FATTR_SIZE = 1 << 3
FATTR_ATIME = 1 << 4
FATTR_MTIME = 1 << 5
FATTR_FH = 1 << 6
FATTR_ATIME_NOW = 1 << 7
FATTR_MTIME_NOW = 1 << 8
#: Both times, to this moment.
FATTR_NOW = FATTR_ATIME_NOW | FATTR_MTIME_NOW
FATTR_CTIME = 1 << 10
FATTR_KILL_SUIDGID = 1 << 11
WRITE_CACHE = 1 << 0
WRITE_KILL_SUIDGID = 1 << 2
OPEN_KILL_SUIDGID = 1 << 0
FSYNC_FDATASYNC = 1 << 0
SETXATTR_ACL_KILL_SGID = 1 << 0

# Flags in replies.
FOPEN_DIRECT_IO = 1 << 0
FOPEN_KEEP_CACHE = 1 << 1
FOPEN_PASSTHROUGH = 1 << 7

# Commands of IOCTL that lsattr(1) and chattr(1) come by; the 32-bit forms differ in the size that they name.
FS_IOC_GETFLAGS = (0x80086601, 0x80046601)
FS_IOC_SETFLAGS = (0x40086602, 0x40046602)
FS_IOC_FSGETXATTR = 0x801C581F
FS_IOC_FSSETXATTR = 0x401C5820

#: STATX_BASIC_STATS and STATX_BTIME.
STATX_BASIC = 0x7FF
STATX_BIRTH = 0x800

#: The id of a caller that the kernel does not tell: with ALLOW_IDMAP, of every request that makes nothing.
NO_ID = 0xFFFFFFFF

#: len, opcode, unique, nodeid, uid, gid, pid, length of extensions, padding.
IN_HEADER = Struct("=IIQQIIIHH")
#: len, error, unique.
OUT_HEADER = Struct("=IiQ")
IN_HEADER_SIZE = IN_HEADER.size
OUT_HEADER_SIZE = OUT_HEADER.size

_ATTR = "QQQqqqIIIIIIIIII"  # ino size blocks atime mtime ctime, their nanoseconds, mode nlink uid gid rdev blksize flags
ATTR = Struct("=" + _ATTR)
#: nodeid, generation, seconds of validity of the name and of the attributes, nanoseconds of both.
ENTRY_HEAD = Struct("=QQQQII")
ENTRY_SIZE = ENTRY_HEAD.size + ATTR.size
#: Seconds and nanoseconds of validity, padding.
ATTR_HEAD = Struct("=QII")
#: Handle, FOPEN flags, backing id.
OPEN_OUT = Struct("=QIi")

INIT_IN = Struct("=IIII")  # major minor max_readahead flags
INIT_IN_MORE = Struct("=I")  # flags beyond the 32nd
#: major minor max_readahead flags, max_background congestion_threshold, max_write time_gran, max_pages map_alignment, flags2
#: max_stack_depth, request_timeout
INIT_OUT = Struct("=IIIIHHIIHHIIH22x")
SETATTR_IN = Struct("=IIQQQQQQIIIIIIII")
CREATE_IN = Struct("=IIII")  # flags mode umask open_flags
MKNOD_IN = Struct("=IIII")  # mode rdev umask padding
MKDIR_IN = Struct("=II")  # mode umask
RENAME_IN = Struct("=Q")  # new directory
RENAME2_IN = Struct("=QII")  # new directory, flags, padding
LINK_IN = Struct("=Q")
OPEN_IN = Struct("=II")  # flags open_flags
RELEASE_IN = Struct("=QIIQ")  # fh flags release_flags lock_owner
READ_IN = Struct("=QQIIQII")  # fh offset size read_flags lock_owner flags padding
WRITE_IN = Struct("=QQIIQII")  # fh offset size write_flags lock_owner flags padding
WRITE_OUT = Struct("=II")
FSYNC_IN = Struct("=QII")  # fh flags padding
SETXATTR_IN = Struct("=IIII")  # size flags setxattr_flags padding
GETXATTR_IN = Struct("=II")  # size padding
GETXATTR_OUT = Struct("=II")
FORGET_IN = Struct("=Q")
BATCH_FORGET_IN = Struct("=II")  # count, dummy
FORGET_ONE = Struct("=QQ")  # nodeid, count
STATFS_OUT = Struct("=QQQQQIIII24x")  # blocks bfree bavail files ffree bsize namelen frsize padding
LSEEK_IN = Struct("=QQII")  # fh offset whence padding
LSEEK_OUT = Struct("=Q")
FALLOCATE_IN = Struct("=QQQII")  # fh offset length mode padding
COPY_IN = Struct("=QQQQQQQ")  # fh offset, nodeid fh offset of the target, length, flags
IOCTL_IN = Struct("=QIIQII")  # fh flags cmd arg in_size out_size
IOCTL_OUT = Struct("=iIII")  # result flags in_iovs out_iovs
STATX_OUT = Struct("=QIIQQ")  # seconds and nanoseconds of validity, flags, spare
#: mask blksize attributes, nlink uid gid, mode, ino size blocks attributes_mask, four times, numbers of devices
STATX = Struct("=IIQIIIH2xQQQQ" + 4 * "qI4x" + "IIII112x")
DIRENT = Struct("=QQII")  # ino offset length of the name, type
DIRENT_AT = ENTRY_SIZE + DIRENT.size

NOTIFY_INODE = Struct("=Qqq")  # nodeid offset length
NOTIFY_ENTRY = Struct("=QII")  # parent, length of the name, flags

_BILLION = 1_000_000_000
_MAX_PAGES = 256
#: Requests that nobody waits for, as reading ahead: what may be under way, and what makes the kernel hold back.
_BACKGROUND = 64
_CONGESTED = 48


def init_answer(body: bytes, wanted: int, max_write: int, stack_depth: int = 0) -> tuple[bytes, int]:
    """The answer to INIT and the flags agreed upon: those *wanted* that the kernel offers. OSError(EPROTO) for a kernel too old.

    A kernel of a later major version asks again after it has seen ours. *stack_depth*: as PASSTHROUGH needs it. ATOMIC_O_TRUNC is only
    wanted with PASSTHROUGH: without, nobody is told of an open, and the truncation would be lost.
    """
    major, minor, readahead, low = INIT_IN.unpack_from(body)
    if major < MAJOR:
        raise error(errno.EPROTO)
    high = INIT_IN_MORE.unpack_from(body, INIT_IN.size)[0] if low & INIT_EXT else 0
    flags = (low | high << 32) & wanted
    flags &= ~0 if flags & PASSTHROUGH else ~ATOMIC_O_TRUNC
    flags |= INIT_EXT if flags >> 32 else 0
    answer = INIT_OUT.pack(
        MAJOR, MINOR, readahead, flags & 0xFFFFFFFF, _BACKGROUND, _CONGESTED, max_write, 1, _MAX_PAGES, 0, flags >> 32,
        stack_depth if flags & PASSTHROUGH else 0, 0,
    )  # fmt: skip
    return answer, flags


def attributes(shown: int, links: int, st: os.stat_result) -> bytes:
    """The ``struct fuse_attr`` of *st*, with the number and the link count that are shown."""
    atime, atime_ns = divmod(st.st_atime_ns, _BILLION)
    mtime, mtime_ns = divmod(st.st_mtime_ns, _BILLION)
    ctime, ctime_ns = divmod(st.st_ctime_ns, _BILLION)
    return ATTR.pack(
        shown, st.st_size, st.st_blocks, atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns,
        st.st_mode, links, st.st_uid, st.st_gid, device(st.st_rdev) if st.st_rdev else 0, st.st_blksize, 0,
    )  # fmt: skip


def extended(shown: int, links: int, st: os.stat_result, birth_ns: int | None) -> bytes:
    """The ``struct fuse_statx`` of *st*, with the time it was made, where that is known."""
    mask = STATX_BASIC if birth_ns is None else STATX_BASIC | STATX_BIRTH
    times = (st.st_atime_ns, birth_ns or 0, st.st_ctime_ns, st.st_mtime_ns)
    return STATX.pack(
        mask, st.st_blksize, 0, links, st.st_uid, st.st_gid, st.st_mode, shown, st.st_size, st.st_blocks, 0,
        *(part for time in times for part in divmod(time, _BILLION)), os.major(st.st_rdev), os.minor(st.st_rdev), 0, 0,
    )  # fmt: skip


def device(number: int) -> int:
    """A device number in the kernel's 32 bits (new_encode_dev)."""
    minor = os.minor(number)
    return (minor & 0xFF) | os.major(number) << 8 | (minor & ~0xFF) << 12


def device_number(packed: int) -> int:
    """The device number of those 32 bits (new_decode_dev)."""
    return os.makedev((packed >> 8) & 0xFFF, (packed & 0xFF) | (packed >> 12) & 0xFFF00)


def timeout(seconds: float) -> tuple[int, int]:
    """(seconds, nanoseconds) for which an answer may be believed."""
    whole = int(seconds)
    return whole, int((seconds - whole) * _BILLION)


def dirent(ino: int, offset: int, name: bytes, kind: int) -> bytes:
    """A ``struct fuse_dirent``, padded to eight bytes. *kind*: S_IFDIR, S_IFREG ..."""
    size = len(name)
    return DIRENT.pack(ino, offset, size, kind >> 12) + name + bytes(-size % 8)


def zero_ended(body: memoryview) -> bytes:
    """The name that *body* begins with."""
    return bytes(body).split(b"\0", 1)[0]


def time_ns(seconds: int, nanoseconds: int) -> int:
    """Nanoseconds since 1970 of a time in a request; seconds are signed."""
    return (seconds - (1 << 64) if seconds >> 63 else seconds) * _BILLION + nanoseconds
