"""Layers as nobody makes them: random bytes in every overlay attribute, on every kind of object, names of every sort, symlinks and
redirects that point out of the layer. The same ones for the same seed.
"""

from __future__ import annotations

import contextlib
import os
import random
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.unit.overlay.world import ME, View
from unionfs.linux import files, xattrs
from unionfs.overlay.union import Change

NAMES = (b"a", b"b", b"c", b"line\nbreak", b"\xff\xfe")
MARKS = (b"opaque", b"redirect", b"metacopy", b"origin", b"impure", b"nlink", b"whiteout", b"protattr", b"uuid", b"upper")
PREFIXES = (b"trusted.overlay.", b"user.overlay.")
OTHER_MARKS = (
    b"user.fuseoverlayfs.opaque", b"user.fuseoverlayfs.origin", b"user.containers.override_stat", b"user.fuseoverlayfs.override_stat",
    b"security.fuseoverlayfs.override_stat", b"trusted.overlay.overlay.opaque", b"trusted.overlay.", b"security.capability",
)  # fmt: skip
_MAX_OBJECTS = 400


def a_name(rng: random.Random) -> bytes:
    """Mostly one of a few, so that layers meet; else one that is awkward."""
    choice = rng.randrange(12)
    if choice < 7:
        return rng.choice(NAMES)
    if choice == 7:
        return b".wh." + rng.choice((*NAMES, b".wh..opq", b".opq", b"", b".", b"..", b".wh.", b"n" * rng.randrange(252)))
    if choice == 8:
        return rng.choice((b".wh..wh..opq", b".wh..opq", b"...", b"#1", b"work", b"index", b"\\"))
    length = rng.choice((1, 2, 100, 250, 251, 252, 254, 255))
    return bytes(byte or 1 for byte in rng.randbytes(length).replace(b"/", b"_")).replace(b".", b"_")


def a_path(rng: random.Random) -> bytes:
    return b"/".join(a_name(rng) for _ in range(rng.randint(1, 3)))


def a_value(rng: random.Random, mark: bytes, outside: bytes) -> bytes:
    """What may stand in the mark: what is right there, what is nearly right, and noise."""
    some: tuple[bytes, ...] = (
        b"", b"y", b"x", b"n", b"yy", b"y\0", b"ai", b"aizz", b"U+1", b"L-1", b"L+9999999999999999999", b"U",
        b"/", b"//", b".", b"..", b"../..", b"/..", b"/../../..", outside, b".." + outside, b"/a/../../b", b"a/b", b"/a//b", b"a\0b",
        b"/" + b"n" * 300, b"n" * 256,
        b"0:0:100755", b"1:2:0:char-0-0", b"0:0:777:dir", b"-1:0:0", b"99999999999:0:0", b"0:0:999999999999", b"0:0:644:symlink",
    )  # fmt: skip
    choice = rng.randrange(10)
    if mark == b"redirect" and choice < 6:
        parts = [rng.choice(NAMES) for _ in range(rng.randint(1, 3))]
        return parts[0] if choice < 3 else b"/" + b"/".join(parts)
    if mark == b"metacopy" and choice < 6:
        digest = rng.randbytes(rng.choice((0, 0, 32, 1)))
        head = bytes((rng.choice((0, 0, 0, 1)), rng.choice((4 + len(digest), 4)), 0, rng.choice((0, 1))))
        return rng.choice((b"", b"", head + digest, head[:3]))
    if mark == b"origin" and choice < 6:
        handle = rng.randbytes(rng.choice((0, 8, 12, 40)))
        length = rng.choice((21 + len(handle), 255, 0))
        return bytes((0, rng.choice((0xFB, 0xFB, 1)), length, rng.randrange(4), rng.choice((1, 2, 0x81, 255)))) + rng.randbytes(16) + handle
    if choice < 8:
        return rng.choice(some)
    return rng.randbytes(rng.choice((1, 2, 4, 21, 60)))


def fill(
    layer: Path, rng: random.Random, outside: bytes, objects: int = 40, *,
    marks: Sequence[bytes] = MARKS, others: Sequence[bytes] = OTHER_MARKS,
) -> None:  # fmt: skip
    """Objects and marks below *layer*, and on itself. *outside*: an absolute path that nobody may come to; *others*: further attributes."""
    root = os.fsencode(layer)
    made = [root]
    for _ in range(objects):
        relative = a_path(rng)
        if any(part in (b".", b"..") for part in relative.split(b"/")):
            continue
        path = os.path.join(root, relative)
        with contextlib.suppress(FileExistsError, NotADirectoryError):
            _make_parents(root, relative)
            _make(path, rng, made, outside)
            made.append(path)
    for path in made:
        for _ in range(rng.choice((0, 0, 1, 1, 2, 4))):
            mark = rng.choice(marks)
            name = rng.choice(others) if others and rng.randrange(5) == 0 else rng.choice(PREFIXES) + mark
            with contextlib.suppress(OSError):  # not every object takes every attribute
                xattrs.put(files_path(path), name, a_value(rng, mark, outside))


def _make_parents(root: bytes, path: bytes) -> None:
    """The directories above *path*, through no symlink; FileExistsError when something else is in the way."""
    parent = os.path.dirname(path)
    if parent:
        _make_parents(root, parent)
        where = os.path.join(root, parent)
        if not os.path.lexists(where) or not stat.S_ISDIR(os.lstat(where).st_mode):
            os.mkdir(where)


def _make(path: bytes, rng: random.Random, made: list[bytes], outside: bytes) -> None:
    kind = rng.randrange(12)
    if kind < 4:
        os.mkdir(path)
    elif kind < 7:
        with open(path, "xb") as file:
            file.write(rng.choice((b"", b"data", rng.randbytes(5000))))
    elif kind == 7:
        targets = (outside, b"../../../../../../../.." + outside, b"..", b"/", b".", b"a", b"/proc/self/fd", b"x" * 4000)
        os.symlink(rng.choice(targets), path)
    elif kind == 8:
        os.mknod(path, stat.S_IFCHR | 0o600, rng.choice((0, 0, 0, os.makedev(1, 3))))
    elif kind == 9:
        os.mknod(path, rng.choice((stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFBLK)) | 0o600, 0)
    elif kind == 10:
        source = rng.choice(made)
        if stat.S_ISDIR(os.lstat(source).st_mode):
            os.mkdir(path, 0)
        else:
            os.link(source, path, follow_symlinks=False)
    else:
        with open(path, "xb"):
            pass
        xattrs.put(files_path(path), rng.choice(PREFIXES) + b"whiteout", b"")


def files_path(path: bytes) -> bytes:
    """*path* in a form of which xattrs knows that it names the object itself."""
    return path if path.count(b"/") != 4 else os.path.dirname(path) + b"/./" + os.path.basename(path)


class Explorer:
    """Looks at all of a union, and changes it; whatever the layers hold, the only answers are results and OSErrors with a number."""

    def __init__(self, view: View, rng: random.Random) -> None:
        self.view = view
        self.rng = rng
        self.paths = [b""]
        self.answers: dict[int, int] = {}

    def attempt(self, call: Callable[[], object]) -> object:
        try:
            return call()
        except OSError as error:
            assert error.errno, f"an error without a number: {error!r}"
            self.answers[error.errno] = self.answers.get(error.errno, 0) + 1
            return None

    def look(self) -> None:
        """Everything, breadth first, from the names that are listed."""
        self.paths = [b""]
        for path in self.paths:
            node = self.attempt(lambda path=path: self.view.find(path))  # type: ignore[misc]
            if node is None or len(self.paths) > _MAX_OBJECTS:
                continue
            self.attempt(lambda path=path: self.view.xattrs(path))  # type: ignore[misc]
            st = self.attempt(lambda path=path: self.view.stat(path))  # type: ignore[misc]
            if not isinstance(st, os.stat_result):
                continue
            self.attempt(lambda path=path: self.view.nlink(path))  # type: ignore[misc]
            if stat.S_ISDIR(st.st_mode):
                names = self.attempt(lambda path=path: self.view.names(path))  # type: ignore[misc]
                assert names is None or isinstance(names, list)
                self.paths += [path + b"/" + name if path else name for name in names or ()]
            elif stat.S_ISREG(st.st_mode):
                self.attempt(lambda path=path: self.view.read(path))  # type: ignore[misc]
            elif stat.S_ISLNK(st.st_mode):
                self.attempt(lambda path=path: self.view.readlink(path))  # type: ignore[misc]

    def change(self, times: int) -> None:
        """Random verbs on what was seen, and on names that were not."""
        for _ in range(times):
            self.attempt(self._a_verb())

    def _is_file(self, path: bytes) -> bool:
        st = self.attempt(lambda: self.view.stat(path))
        return isinstance(st, os.stat_result) and stat.S_ISREG(st.st_mode)

    def _a_verb(self) -> Callable[[], object]:
        rng, view = self.rng, self.view
        path = rng.choice(self.paths)
        new = rng.choice(self.paths)
        if rng.randrange(2):
            new = (new + b"/" if new else b"") + a_name(rng)
        mark = rng.choice(MARKS)
        name = rng.choice((rng.choice(PREFIXES) + mark, rng.choice(OTHER_MARKS), b"user.x"))
        if rng.randrange(4) == 0 and self._is_file(path):  # of other kinds the kernel asks no such thing
            return rng.choice((lambda: view.write(path, b"written"), lambda: view.change(path, Change(size=3))))
        verbs: tuple[Callable[[], object], ...] = (
            lambda: view.chmod(path, rng.choice((0o600, 0o755))),
            lambda: view.unlink(path),
            lambda: view.unlink(path),
            lambda: view.rmdir(path),
            lambda: view.rename(path, new),
            lambda: view.rename(path, new),
            lambda: view.rename(path, new, files.RENAME_EXCHANGE),
            lambda: view.make_file(new, b"new"),
            lambda: view.mkdir(new),
            lambda: view.symlink(b"..", new),
            lambda: view.mknod(new, stat.S_IFCHR | 0o600, 0, ME),
            lambda: view.link(path, new),
            lambda: view.union.setxattr(view.ino(path), name, a_value(rng, mark, b"/nowhere")),
            lambda: view.union.removexattr(view.ino(path), name),
            lambda: view.forget(),
        )
        return rng.choice(verbs)
