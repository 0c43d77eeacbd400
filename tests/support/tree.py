"""Snapshots of directory trees, and a readable difference of two.

A snapshot maps each path (bytes, relative, the root is b".") to what it is. Directories have no size and no link
count here: filesystems are free in both. Access times and change times are left out; modification times are
compared only when they are older than RECENT, for two sides that did the same at slightly different moments
cannot agree on "now".
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import xattr

RECENT = time.time_ns() - 3600 * 10**9  # what has a later modification time was touched by the test run itself
_KINDS = {
    stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket", stat.S_IFCHR: "character device", stat.S_IFBLK: "block device",
}


@dataclass(frozen=True)
class Entry:
    kind: str
    mode: str
    uid: int
    gid: int
    size: int | None
    nlink: int | None
    mtime: str
    content: str | None = None
    target: bytes | None = None
    rdev: tuple[int, int] | None = None
    xattrs: tuple[tuple[str, bytes], ...] = ()
    listing: tuple[bytes, ...] | None = None


Snapshot = dict[bytes, Entry]


def kind_of(mode: int) -> str:
    return _KINDS[stat.S_IFMT(mode)]


def when(mtime_ns: int) -> str:
    return "recent" if mtime_ns >= RECENT else f"{mtime_ns // 10**9}.{mtime_ns % 10**9:09d}"


def xattrs_of(path: bytes) -> tuple[tuple[str, bytes], ...]:
    """All extended attributes of the object itself (symlinks are not followed), sorted by name."""
    return tuple(sorted((name, _value_of(path, name)) for name in xattr.listxattr(path, True)))


def _value_of(path: bytes, name: str) -> bytes:
    """The value; for one that is listed but cannot be read (a malformed security.capability) the error in its place."""
    try:
        value: bytes = xattr.getxattr(path, name, symlink=True)
        return value
    except OSError as error:
        return f"<{errno.errorcode[error.errno or 0]}>".encode()


def _content(path: bytes, size: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(1 << 20):
            digest.update(block)
            if size <= 48:
                return repr(block)
    return digest.hexdigest() if size else "empty"


def is_ghost(path: bytes) -> bool:
    """Whether stat finds nothing; a path that we may not look at is no ghost."""
    return _stat_error(path) == errno.ENOENT


def is_broken(path: bytes) -> bool:
    """Whether an overlay refuses to look it up: its data or what it redirects to is missing, or not to be followed."""
    return _stat_error(path) in (errno.EIO, errno.EPERM, errno.ESTALE)


def _stat_error(path: bytes) -> int:
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno or 0
    return 0


def names_in(path: bytes, hide_ghosts: bool = False, hide_broken: bool = False) -> tuple[bytes, ...]:
    """The sorted names of a directory. With hide_ghosts, without those that are listed but that stat cannot find.

    The kernel's overlayfs shows whiteouts of directories it does not merge in this way; we hide them. Broken objects (is_broken)
    it lists in some directories and not in others; hide_broken leaves them out.
    """
    return tuple(sorted(name for name in os.listdir(path)
                        if not (hide_ghosts and is_ghost(os.path.join(path, name)))
                        and not (hide_broken and is_broken(os.path.join(path, name)))))


def entry_at(path: bytes, hide_ghosts: bool = False, hide_broken: bool = False) -> Entry:
    found = os.lstat(path)
    kind = kind_of(found.st_mode)
    is_file, is_directory = kind == "file", kind == "directory"
    return Entry(
        kind=kind,
        mode=f"{stat.S_IMODE(found.st_mode):04o}",
        uid=found.st_uid,
        gid=found.st_gid,
        size=None if is_directory else found.st_size,
        nlink=None if is_directory else found.st_nlink,
        mtime=when(found.st_mtime_ns),
        content=_content(path, found.st_size) if is_file else None,
        target=os.readlink(path) if kind == "symlink" else None,
        rdev=(os.major(found.st_rdev), os.minor(found.st_rdev)) if "device" in kind else None,
        xattrs=xattrs_of(path),
        listing=names_in(path, hide_ghosts, hide_broken) if is_directory else None,
    )


def snapshot(root: Path | bytes, *, hide_ghosts: bool = False, hide_broken: bool = False) -> Snapshot:
    """Everything below root, root included (as b".")."""
    top = os.fsencode(root)
    found: Snapshot = {}
    waiting = [b"."]
    while waiting:
        relative = waiting.pop()
        path = top if relative == b"." else os.path.join(top, relative)
        entry = found[relative] = entry_at(path, hide_ghosts, hide_broken)
        waiting.extend(name if relative == b"." else os.path.join(relative, name) for name in entry.listing or ())
    return found


def by_top(everything: Snapshot, names: Iterable[str]) -> dict[str, Snapshot]:
    """One snapshot for each of the *names* at the top, which are all that may be there."""
    found: dict[str, Snapshot] = {name: {} for name in names}
    for path, entry in everything.items():
        top, _, rest = path.partition(b"/")
        if top != b".":
            found[top.decode()][rest or b"."] = entry
    return found


def difference(left: Snapshot, right: Snapshot, names: tuple[str, str]) -> str:
    """One line for each path or property that differs; empty when the trees are the same."""
    lines = []
    for path in sorted(left.keys() | right.keys()):
        one, other = left.get(path), right.get(path)
        if one is None or other is None:
            there, missing = (0, 1) if other is None else (1, 0)
            kind = (one or other or _NOTHING).kind
            lines.append(f"{path!r}: {kind} in {names[there]}, missing in {names[missing]}")
            continue
        lines.extend(
            f"{path!r}: {field.name} is {getattr(one, field.name)!r} in {names[0]}, "
            f"{getattr(other, field.name)!r} in {names[1]}"
            for field in fields(Entry) if getattr(one, field.name) != getattr(other, field.name))
    return "\n".join(lines)


_NOTHING = Entry("nothing", "", 0, 0, None, None, "")


def fingerprint(root: Path | bytes) -> str:
    """One hash over a whole tree as it is on disk, exact modification times included: for "was never written"."""
    digest = hashlib.sha256()
    top = os.fsencode(root)
    for path, entry in sorted(snapshot(root).items()):
        exact = os.lstat(os.path.join(top, path)).st_mtime_ns
        digest.update(repr((path, exact, entry)).encode())
    return digest.hexdigest()
