"""stat results and setattr requests between the union's terms and pyfuse3's."""

from __future__ import annotations

import os
import stat

import pyfuse3

from unionfs.overlay.union import Change


def entry(ino: int, links: int, st: os.stat_result, timeout: float) -> pyfuse3.EntryAttributes:
    """The attributes of an object: *ino* and *links* as the union shows them, the rest from *st*; good for *timeout* seconds."""
    made = pyfuse3.EntryAttributes()
    made.st_ino = ino
    made.st_nlink = links
    made.st_mode = st.st_mode
    made.st_uid = st.st_uid
    made.st_gid = st.st_gid
    made.st_rdev = st.st_rdev
    made.st_size = st.st_size
    made.st_blksize = st.st_blksize
    made.st_blocks = st.st_blocks
    made.st_atime_ns = st.st_atime_ns
    made.st_mtime_ns = st.st_mtime_ns
    made.st_ctime_ns = st.st_ctime_ns
    made.entry_timeout = timeout
    made.attr_timeout = timeout
    return made


def dots(ino: int) -> pyfuse3.EntryAttributes:
    """The listing entry of "." or "..": the kernel uses its number and type only."""
    made = pyfuse3.EntryAttributes()
    made.st_ino = pyfuse3.InodeT(ino)
    made.st_mode = stat.S_IFDIR | 0o755
    return made


def absent(timeout: float) -> pyfuse3.EntryAttributes:
    """A negative entry: the kernel remembers for *timeout* seconds that the name is not there."""
    made = pyfuse3.EntryAttributes()
    made.st_ino = 0
    made.entry_timeout = timeout
    return made


def change(attr: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields) -> Change:
    """What a setattr request asks for."""
    return Change(
        size=attr.st_size if fields.update_size else None,
        mode=attr.st_mode if fields.update_mode else None,
        uid=attr.st_uid if fields.update_uid else None,
        gid=attr.st_gid if fields.update_gid else None,
        atime_ns=attr.st_atime_ns if fields.update_atime else None,
        mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
    )


def statfs(st: os.statvfs_result) -> pyfuse3.StatvfsData:
    """statvfs as pyfuse3 wants it."""
    made = pyfuse3.StatvfsData()
    for field in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail", "f_namemax"):
        setattr(made, field, getattr(st, field))
    return made
