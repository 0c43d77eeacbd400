"""stat results and setattr requests between the union's terms and pyfuse3's."""

from __future__ import annotations

import os
import stat

import pyfuse3

from unionfs.linux import memory
from unionfs.overlay.union import Change

#: What getdents shows where no number is known.
_NO_NUMBER = 1
_PATTERNS = (0x5EED0F1DB00C1E57, 0x0DDBA11CAFE2BAD5)


def _find_shown() -> int | None:
    """Where in an EntryAttributes the number lies that stat shows. None unless everything is as it is known from pyfuse3 3.4.

    Setting st_ino sets the number of the node and, further on in the same object, the one that is shown; getting it gets the first.
    """
    found = set()
    for pattern in _PATTERNS:
        made = pyfuse3.EntryAttributes()
        made.st_ino = pyfuse3.InodeT(pattern)
        places = memory.words_equal(made, pattern)
        if len(places) != 2:
            return None
        memory.put_word(made, places[1], 1)
        if made.st_ino != pattern or memory.words_equal(made, pattern) != places[:1]:
            return None
        found.add(places)
    return found.pop()[1] if len(found) == 1 else None


#: None: objects of one number show different ones, which costs no more than that tar does not see a hard link.
_SHOWN = _find_shown()


def entry(ino: int, shown: int, links: int, st: os.stat_result, timeout: float) -> pyfuse3.EntryAttributes:
    """The attributes of the node *ino*: *shown* and *links* as the union shows them, the rest from *st*; good for *timeout* seconds."""
    made = pyfuse3.EntryAttributes()
    made.st_ino = ino
    if shown != ino and _SHOWN is not None:
        memory.put_word(made, _SHOWN, shown)
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


def name_only(kind: int) -> pyfuse3.EntryAttributes:
    """The listing entry of an object whose attributes cannot be had: the kernel asks again when they are wanted, and passes the error on.

    It takes node 0 to mean just that (fuse_direntplus_link); the number shown must not be 0, which readers take for a hole.
    """
    made = pyfuse3.EntryAttributes()
    made.st_ino = pyfuse3.InodeT(0)
    if _SHOWN is not None:
        memory.put_word(made, _SHOWN, _NO_NUMBER)
    made.st_mode = kind
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
