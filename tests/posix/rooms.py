"""Rooms: each test of the suite gets its own furnished directory, on each filesystem and in each place of a union.

All rooms of a module are made in one go, then one mount of ours and one of the kernel's serve them: a mount costs
more than most tests. A room is

- `plain`: a directory of the disk filesystem, the reference;
- `upper`: only in the writable layer;
- `lower`: only in the bottom layer, so that every change must copy up;
- `merged`: its directories exist in the upper and two lowers, its files are spread over the lowers.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import xattr

from tests.support.mounts import Layers, Mount, Mounts
from unionfs.linux.process import may_use_trusted_xattrs

OLD = 1_000_000_000  # 2001; what is in a room was last changed then
OLD_NS = OLD * 10**9 + 123_456_789
CONTENT = b"the content of file\n"
PLACES = (
    "plain", "kernel-upper", "kernel-lower", "kernel-merged", "ours-upper", "ours-lower", "ours-merged",
    "ours-lower-writeback", "ours-lower-passthrough", "ours-upper-pyfuse3", "ours-lower-pyfuse3", "ours-merged-pyfuse3",
)
#: The last words of these, and what -o says for them.
SERVED = {"cached": "", "writeback": "io=writeback", "passthrough": "io=passthrough", "pyfuse3": "engine=pyfuse3"}


@dataclass(frozen=True)
class Room:
    """`kind` is plain, kernel or ours; `place` is plain, upper, lower or merged; `io` how ours is served, of SERVED."""

    kind: str
    place: str
    path: Path
    in_upper: Path  # where its changes land on the disk; for a plain room the room itself
    io: str = "cached"

    @property
    def of_users_kernel(self) -> bool:
        """Whether it is below the kernel's overlayfs of an ordinary user, who gets no redirects, and where a copied-up file with several
        names is not known to be one."""
        return self.kind == "kernel" and self.place != "upper" and not may_use_trusted_xattrs()

    def __truediv__(self, name: str | bytes) -> Path:
        return self.path / os.fsdecode(name)


@contextlib.contextmanager
def fails_with(number: int) -> Iterator[None]:
    """The block must raise OSError with this errno."""
    with pytest.raises(OSError) as caught:
        yield
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]


def furniture(extra: Callable[[Path], None]) -> pytest.MarkDecorator:
    """Mark a test whose room holds more than the usual: extra(room) makes it, before anything is mounted."""
    return pytest.mark.furniture.with_args(extra)  # a plain call with one function would mark that function


# ---- what is in a room ----

def _file(path: Path, data: bytes, mode: int = 0o644, uid: int = 0, gid: int | None = None) -> None:
    path.write_bytes(data)
    os.chown(path, uid, uid if gid is None else gid)
    path.chmod(mode)


def _device(path: Path) -> None:
    """/dev/null; where nobody may make devices, in a user namespace, a socket: as special, and as empty."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        os.mknod(path, stat.S_IFSOCK | 0o666)


def _directory(path: Path, mode: int, uid: int = 0, gid: int | None = None) -> Path:
    path.mkdir()
    os.chown(path, uid, uid if gid is None else gid)
    path.chmod(mode)
    return path


def furnish(room: Path) -> None:
    """Make the room with its usual contents."""
    _directory(room, 0o777)
    _file(room / "file", CONTENT)
    _file(room / "other", b"other\n")
    _file(room / "empty", b"")
    _file(room / "mine", b"mine\n", uid=1000)
    _file(room / "secret", b"secret\n", 0o600)
    _file(room / "program", b"#!/bin/sh\nexit 7\n", 0o755)
    _file(room / "suid", b"suid\n", 0o6777)
    _file(room / "suid_of_user", b"suid\n", 0o6755, uid=1000)
    _file(room / "shared", b"shared\n")
    os.link(room / "shared", room / "shared_too")
    os.symlink("file", room / "link")
    os.symlink("nowhere", room / "dangling")
    os.symlink("loop", room / "loop")
    os.symlink("directory", room / "link_to_directory")
    os.mkfifo(room / "fifo", 0o644)
    _device(room / "null")
    directory = _directory(room / "directory", 0o755)
    for name in ("one", "two", "three", "four"):
        _file(directory / name, name.encode())
    _directory(directory / "sub", 0o755)
    _directory(room / "hollow", 0o755)
    shared = _directory(room / "sticky", 0o1777)
    _file(shared / "roots", b"")
    _file(shared / "users", b"", uid=1000)
    _file(shared / "others", b"", uid=1001)
    _directory(room / "setgid", 0o2777, gid=1002)
    _directory(room / "users", 0o755, uid=1000)
    _file(room / "users" / "roots", b"")


def _age(top: Path) -> None:
    for parent, directories, files in os.walk(os.fsencode(top), topdown=False):
        for name in (*directories, *files):
            os.utime(os.path.join(parent, name), ns=(OLD_NS, OLD_NS), follow_symlinks=False)
    os.utime(top, ns=(OLD_NS, OLD_NS))


def _copy_metadata(source: bytes, target: bytes) -> None:
    found = os.lstat(source)
    os.chown(target, found.st_uid, found.st_gid)
    os.chmod(target, stat.S_IMODE(found.st_mode))
    for name in xattr.listxattr(source):
        xattr.setxattr(target, name, xattr.getxattr(source, name))


def _copy_directories(source: Path, target: Path) -> None:
    for parent, _, _ in os.walk(os.fsencode(source)):
        place = os.path.normpath(os.path.join(os.fsencode(target), os.path.relpath(parent, os.fsencode(source))))
        os.mkdir(place)
        _copy_metadata(parent, place)


def _spread(bottom: Path, top: Path) -> None:
    """Move every other single-link file to the same directory of the layer above."""
    for parent, _, names in os.walk(os.fsencode(bottom)):
        single = sorted(name for name in names if os.lstat(os.path.join(parent, name)).st_nlink == 1)
        target = os.path.join(os.fsencode(top), os.path.relpath(parent, os.fsencode(bottom)))
        for name in single[::2]:
            os.rename(os.path.join(parent, name), os.path.join(target, name))


class House:
    """All rooms of one module, on one filesystem; ours served as *io* says."""

    def __init__(self, kind: str, scratch: Path, mounts: Mounts, io: str = "cached") -> None:
        self.kind = kind
        self.io = io
        self.root = scratch / f"{kind}-{io}"
        self.mounts = mounts
        self.mount: Mount | None = None
        self.upper, self.top, self.bottom, self.work = (self.root / name for name in ("upper", "top", "bottom", "work"))
        for path in (self.root, self.upper, self.top, self.bottom, self.work):
            path.mkdir(mode=0o755)
        os.chmod(self.work, 0o700)

    def make(self, name: str, place: str, extra: Callable[[Path], None] | None) -> None:
        layer = self.bottom if place in ("lower", "merged") else self.upper
        furnish(layer / name)
        if extra is not None:
            extra(layer / name)
        if place == "merged":
            _copy_directories(self.bottom / name, self.top / name)
            _copy_directories(self.bottom / name, self.upper / name)
            _spread(self.bottom / name, self.top / name)
        for built in (self.upper, self.top, self.bottom):
            if (built / name).exists():
                _age(built / name)

    def room(self, name: str, place: str) -> Room:
        return Room(self.kind, place, self._visible() / name, self.upper / name, self.io)

    def _visible(self) -> Path:
        if self.kind == "plain":
            return self.upper
        if self.mount is None or not self.mount.alive:  # a test before this one may have cost the mount its life
            layers = Layers((self.top, self.bottom), self.upper, self.work)
            options = {"options": SERVED[self.io]} if SERVED[self.io] else {}
            self.mount = self.mounts.by_kind(self.kind)(layers, **options)
        return self.mount.target

    def tear_down(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
