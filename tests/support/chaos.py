"""Random layers and random changes to their union, the same ones for the same seed: material for tests of what an upper holds.

A subject is anything with the verbs of tests.unit.overlay.world.View; ``Disk`` is one over a mounted tree.
"""

from __future__ import annotations

import contextlib
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = (b"a", b"b", b"c", b"d\xff")
DEPTH = 3
_OLD = 1_000_000_000 * 10**9
_EXCHANGE = 2


def a_path(rng: random.Random) -> bytes:
    return b"/".join(rng.choice(NAMES) for _ in range(rng.randint(1, DEPTH)))


def fill(top: Path, rng: random.Random, objects: int = 14, *, marks: bool = False, prefix: str = "trusted.overlay.") -> None:
    """Put random objects below *top*, with fixed times; with *marks* a few whiteouts and opaque directories, as where lowers are below."""
    root = os.fsencode(top)
    for number in range(objects):
        path = os.path.join(root, a_path(rng))
        with contextlib.suppress(FileExistsError, NotADirectoryError, FileNotFoundError, IsADirectoryError):
            _place(path, rng, number, marks, prefix)
    for directory, _, names in os.walk(root, topdown=False):
        for name in (*names, b"."):
            os.utime(os.path.join(directory, name), ns=(_OLD, _OLD), follow_symlinks=False)


def _place(path: bytes, rng: random.Random, number: int, marks: bool, prefix: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    kind = rng.randrange(10)
    if kind < 3:
        os.mkdir(path)
        if marks and rng.randrange(4) == 0:
            os.setxattr(path, prefix + "opaque", b"y")
    elif kind == 3:
        os.symlink(b"../a", path)
    elif kind == 4 and marks:
        os.mknod(path, stat.S_IFCHR, 0)
    else:
        with open(path, "xb") as file:
            file.write(b"%d " % number * rng.choice((0, 1, 3000)))
        os.setxattr(path, "user.number", b"%d" % number)
        os.chmod(path, rng.choice((0o644, 0o600, 0o755)))


class Disk:
    """The verbs on a real directory."""

    def __init__(self, top: Path) -> None:
        self._top = os.fsencode(top)

    def _at(self, path: bytes) -> bytes:
        return os.path.join(self._top, path)

    def make_file(self, path: bytes, data: bytes) -> None:
        with open(self._at(path), "xb") as file:
            file.write(data)

    def write(self, path: bytes, data: bytes) -> None:
        fd = os.open(self._at(path), os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)

    def chmod(self, path: bytes, mode: int) -> None:
        if not stat.S_ISLNK(os.lstat(self._at(path)).st_mode):
            os.chmod(self._at(path), mode)

    def mkdir(self, path: bytes) -> None:
        os.mkdir(self._at(path))

    def symlink(self, target: bytes, path: bytes) -> None:
        os.symlink(target, self._at(path))

    def link(self, old: bytes, new: bytes) -> None:
        os.link(self._at(old), self._at(new), follow_symlinks=False)

    def unlink(self, path: bytes) -> None:
        os.unlink(self._at(path))

    def rmdir(self, path: bytes) -> None:
        os.rmdir(self._at(path))

    def rename(self, old: bytes, new: bytes, flags: int = 0) -> None:
        from unionfs.linux import files

        files.renameat2(-100, self._at(old), -100, self._at(new), flags)


def stir(subject: Any, rng: random.Random, steps: int = 40) -> int:
    """Do random things to *subject*; the number of those that succeeded."""
    verbs: tuple[Callable[[], object], ...] = (
        lambda: subject.make_file(a_path(rng), b"new"),
        lambda: subject.write(a_path(rng), b"changed"),
        lambda: subject.chmod(a_path(rng), rng.choice((0o640, 0o711))),
        lambda: subject.mkdir(a_path(rng)),
        lambda: subject.symlink(b"target", a_path(rng)),
        lambda: subject.link(a_path(rng), a_path(rng)),
        lambda: subject.unlink(a_path(rng)),
        lambda: subject.rmdir(a_path(rng)),
        lambda: remove_all(subject, a_path(rng)),
        lambda: _rename(subject, a_path(rng), a_path(rng), 0),
        lambda: _rename(subject, a_path(rng), a_path(rng), 0),
        lambda: _rename(subject, a_path(rng), a_path(rng), _EXCHANGE),
    )
    done = 0
    for _ in range(steps):
        with contextlib.suppress(OSError):
            rng.choice(verbs)()
            done += 1
    return done


def _rename(subject: Any, old: bytes, new: bytes, flags: int) -> None:
    if not (old + b"/").startswith(new + b"/") and not (new + b"/").startswith(old + b"/"):  # those the kernel keeps from a filesystem
        subject.rename(old, new, flags)


def remove_all(subject: Any, path: bytes) -> None:
    """Remove everything of the universe below *path*, and *path*."""
    if path.count(b"/") < DEPTH:
        for name in NAMES:
            with contextlib.suppress(OSError):
                remove_all(subject, path + b"/" + name)
    try:
        subject.unlink(path)
    except (IsADirectoryError, PermissionError):
        subject.rmdir(path)
