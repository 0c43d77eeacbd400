"""Layers on disk, and a client of the union over them that asks by path and counts its look-ups as the kernel does."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support import tree
from unionfs.linux import xattrs
from unionfs.linux.process import may_use_trusted_xattrs
from unionfs.overlay.features import Features, Sync
from unionfs.overlay.make import Caller
from unionfs.overlay.node import Node
from unionfs.overlay.stack import open_stack
from unionfs.overlay.union import Change, Union

#: Without privileges, in a user namespace too, the marks live in user.overlay.*, else where the kernel keeps them.
USERXATTR = not may_use_trusted_xattrs()
PREFIX = "user.overlay." if USERXATTR else "trusted.overlay."
ME = Caller(os.geteuid(), os.getegid())


class View:
    """What a process in the mount would see. Every look-up is counted, so ``forget`` can give all of them back."""

    def __init__(self, union: Union) -> None:
        self.union = union
        self.counts: Counter[int] = Counter()

    def _seen(self, found: tuple[Node, os.stat_result]) -> Node:
        self.counts[found[0].ino] += 1
        return found[0]

    def find(self, path: bytes) -> Node | None:
        """The node at *path*, None when there is none."""
        node = self.union.tree.root
        for name in path.split(b"/") if path else ():
            found = self.union.lookup(node.ino, name)
            if found is None:
                return None
            node = self._seen(found)
        return node

    def node(self, path: bytes) -> Node:
        found = self.find(path)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "not in the union", path)
        return found

    def ino(self, path: bytes) -> int:
        return self.node(path).ino

    def split(self, path: bytes) -> tuple[int, bytes]:
        parent, _, name = path.rpartition(b"/")
        return self.ino(parent), name

    def forget(self) -> None:
        """Give every look-up back, as drop_caches does."""
        for ino, count in self.counts.items():
            self.union.forget(ino, count)
        self.counts.clear()

    def forget_one(self, ino: int) -> None:
        self.union.forget(ino, self.counts.pop(ino))

    # ---- looking ----

    def stat(self, path: bytes) -> os.stat_result:
        return self.union.getattr(self.ino(path))[1]

    def nlink(self, path: bytes) -> int:
        return self.union.links(*self.union.getattr(self.ino(path)))

    def names(self, path: bytes = b"") -> list[bytes]:
        listed = [name for name, _, _ in self.union.entries(self.ino(path), 0)]
        assert listed[:2] == [b".", b".."]
        return sorted(listed[2:])

    def read(self, path: bytes) -> bytes:
        return self.union.read(self.ino(path), 0, 1 << 24)

    def readlink(self, path: bytes) -> bytes:
        return self.union.readlink(self.ino(path))

    def xattrs(self, path: bytes) -> dict[bytes, bytes]:
        ino = self.ino(path)
        return {name: self.union.getxattr(ino, name) for name in self.union.listxattr(ino)}

    def entry(self, path: bytes) -> tree.Entry:
        """The object at *path* in the terms of tests.support.tree."""
        st = self.stat(path)
        kind = tree.kind_of(st.st_mode)
        is_file, is_directory = kind == "file", kind == "directory"
        return tree.Entry(
            kind=kind,
            mode=f"{stat.S_IMODE(st.st_mode):04o}",
            uid=st.st_uid,
            gid=st.st_gid,
            size=None if is_directory else st.st_size,
            nlink=None if is_directory else self.nlink(path),
            mtime=tree.when(st.st_mtime_ns),
            content=_content(self.read(path)) if is_file else None,
            target=self.readlink(path) if kind == "symlink" else None,
            rdev=(os.major(st.st_rdev), os.minor(st.st_rdev)) if "device" in kind else None,
            xattrs=tuple(sorted((os.fsdecode(name), value) for name, value in self.xattrs(path).items())),
            listing=tuple(self.names(path)) if is_directory else None,
        )

    def snapshot(self, top: bytes = b"") -> tree.Snapshot:
        """Everything below *top*, as tests.support.tree.snapshot makes it of a real directory."""
        found: tree.Snapshot = {}
        waiting = [b"."]
        while waiting:
            relative = waiting.pop()
            path = b"/".join(part for part in (top, relative) if part not in (b"", b"."))
            entry = found[relative] = self.entry(path)
            waiting.extend(name if relative == b"." else relative + b"/" + name for name in entry.listing or ())
        return found

    # ---- changing ----

    def write(self, path: bytes, data: bytes, offset: int = 0) -> int:
        return self.union.write(self.ino(path), offset, data)

    def change(self, path: bytes, change: Change) -> os.stat_result:
        return self.union.setattr(self.ino(path), change)[1]

    def chmod(self, path: bytes, mode: int) -> None:
        self.change(path, Change(mode=mode))

    def make_file(self, path: bytes, data: bytes = b"", mode: int = 0o644, caller: Caller = ME) -> Node:
        node = self._seen(self.union.make_file(*self.split(path), mode, caller))
        if data:
            self.union.write(node.ino, 0, data)
        return node

    def mkdir(self, path: bytes, mode: int = 0o755, caller: Caller = ME) -> Node:
        return self._seen(self.union.make_directory(*self.split(path), mode, caller))

    def symlink(self, target: bytes, path: bytes, caller: Caller = ME) -> Node:
        return self._seen(self.union.make_symlink(*self.split(path), target, caller))

    def mknod(self, path: bytes, mode: int, device: int = 0, caller: Caller = ME) -> Node:
        return self._seen(self.union.make_special(*self.split(path), mode, device, caller))

    def link(self, old: bytes, new: bytes) -> Node:
        return self._seen(self.union.link(self.ino(old), *self.split(new)))

    def unlink(self, path: bytes) -> None:
        self.union.unlink(*self.split(path))

    def rmdir(self, path: bytes) -> None:
        self.union.rmdir(*self.split(path))

    def rename(self, old: bytes, new: bytes, flags: int = 0) -> None:
        self.union.rename(*self.split(old), *self.split(new), flags)


def _content(data: bytes) -> str:
    if len(data) <= 48:
        return repr(data) if data else "empty"
    return hashlib.sha256(data).hexdigest()


class World:
    """``lowers`` (topmost first), ``upper`` and ``work`` below one directory. Every union made here is closed at the end."""

    def __init__(self, root: Path, lowers: int = 2) -> None:
        self.root = root
        self.lowers = [root / f"lower{number}" for number in range(lowers)]
        self.upper = root / "upper"
        self.work = root / "work"
        for path in (*self.lowers, self.upper, self.work):
            path.mkdir(mode=0o755)
        self._open: list[Union] = []

    @property
    def building(self) -> Path:
        """Where objects are built."""
        return self.work / "work"

    def stack_arguments(self, *, writable: bool = True) -> tuple[list[bytes], bytes | None, bytes | None]:
        lowers = [os.fsencode(path) for path in self.lowers]
        return (lowers, os.fsencode(self.upper), os.fsencode(self.work)) if writable else (lowers, None, None)

    def open(self, *, writable: bool = True, acl: bool = True, volatile: bool = True, static_links: bool = False,
             userxattr: bool = USERXATTR, sync: Sync | None = None, data: Sequence[Path] = (), **features: Any) -> View:
        """A union over the layers. Volatile unless asked otherwise: the disk has no part in most tests. Further ones as in Features."""
        wanted = Features(userxattr=userxattr, sync=sync or (Sync.NEVER if volatile else Sync.AUTO), **features)
        stack = open_stack(*self.stack_arguments(writable=writable), wanted, data=[os.fsencode(path) for path in data])
        union = Union(stack, acl=acl, static_links=static_links)
        self._open.append(union)
        return View(union)

    def open_lowers(self, lowers: Sequence[Path], **features: Any) -> View:
        """A union of *lowers* that cannot be written."""
        union = Union(open_stack([os.fsencode(path) for path in lowers], None, None, Features(**features)))
        self._open.append(union)
        return View(union)

    def close(self, view: View) -> None:
        self._open.remove(view.union)
        view.union.close()

    def reopen(self, view: View) -> View:
        """Unmount and mount again."""
        self.close(view)
        return self.open()

    def reopen_with(self, view: View, *, whfiles: bool) -> View:
        self.close(view)
        return self.open(whfiles=whfiles)

    def close_all(self) -> None:
        for union in self._open:
            union.close()
        self._open.clear()


def put(path: Path, data: bytes = b"", mode: int = 0o644) -> Path:
    """A file with its parents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)
    return path


def whiteout(path: Path) -> Path:
    """The kernel's whiteout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, stat.S_IFCHR, 0)
    return path


def mark(path: Path, name: str, value: bytes = b"y") -> None:
    """Set an overlay attribute by its short name."""
    os.setxattr(path, PREFIX + name, value, follow_symlinks=False)


def marked(path: Path, name: str) -> bytes | None:
    """An overlay attribute by its short name, None without it."""
    return xattrs.find(os.fsencode(path), (PREFIX + name).encode())


def is_whiteout(path: Path) -> bool:
    st = path.lstat()
    return stat.S_ISCHR(st.st_mode) and st.st_rdev == 0


def descriptors() -> set[str]:
    """The open descriptors of this process, with what they are open on."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
        except FileNotFoundError:  # the listing's own
            pass
    return found


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """What is opened inside is closed inside."""
    before = descriptors()
    yield
    assert descriptors() - before == set()
