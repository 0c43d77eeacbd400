"""Steps in upper that the modes there forbid to the user who owns it.

Who may do what is decided on the mount, by the modes it shows; below, the server must be able to do what was allowed there. As root it is.
As an ordinary user it is held to the owner's bits of its own files: no whiteout in a directory of mode 0555, no directory of that mode
moved (".." is rewritten), no data of a file that lost its mode while it was open. A step that fails so is done again with those bits
lent, for its length. What does not fail costs nothing; root never comes here.

Only upper and work are lent anything, lowers are never written. A kill at that very moment leaves an object with more of its owner's bits
than it is shown with: nobody else gains anything by them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TypeVar

from unionfs.linux import files
from unionfs.overlay.layer import Layer
from unionfs.overlay.node import Node
from unionfs.overlay.owners import changed

Result = TypeVar("Result")
#: An object in work: the descriptor of its directory, its name.
Loose = tuple[int, bytes]

_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class Lender:
    """Lends the owner's bits of objects in *upper*."""

    def __init__(self, upper: Layer | None) -> None:
        self._upper = upper
        #: (st_dev, st_ino) of what was lent bits, and those bits.
        self._lent: dict[tuple[int, int], int] = {}

    def retry(
        self, failure: PermissionError, step: Callable[[], Result], ways: Iterable[Node], ends: Callable[[], Iterable[Node | Loose | None]]
    ) -> Result:
        """*step* again, which has failed and changed nothing: with the directories *ways* and all above them lent, then *ends* as well.

        First *ways* alone, as an object of which attributes are changed must not be lent any; and again as long as there is more to lend,
        for a step may have brought up what it then fails in. Raises the last failure when there is nothing to lend.
        """
        if failure.errno != errno.EACCES or self._upper is None:
            raise failure
        with ExitStack() as held:
            for last in (False, True):
                while self._lend_all(held, (*ways, *(ends() if last else ()))):
                    try:
                        return step()
                    except PermissionError as exc:
                        failure = exc
            raise failure

    def as_shown(self, st: os.stat_result) -> os.stat_result:
        """*st* without the bits that are lent just now."""
        lent = self._lent.get((st.st_dev, st.st_ino), 0)
        return changed(st, st_mode=st.st_mode & ~lent) if lent else st

    def _lend_all(self, held: ExitStack, objects: Iterable[Node | Loose | None]) -> bool:
        """Whether anything was lent that was not before."""
        before = len(self._lent)
        for found in objects:
            if isinstance(found, Node):
                self._lend_way(held, found)
            elif found is not None:
                with suppress(OSError):
                    held.enter_context(self._lending(os.open(found[1], _FLAGS, dir_fd=found[0])))
        return len(self._lent) > before

    def _lend_way(self, held: ExitStack, node: Node) -> None:
        """From the root down to *node*, as far as it is in upper: each step needs the one before."""
        assert self._upper is not None
        if node.orphan is not None:
            if node.orphan.fd >= 0:
                held.enter_context(self._lending(os.dup(node.orphan.fd)))
            return
        chain = [node]
        while (above := chain[-1].parent) is not None:
            chain.append(above)
        fd = self._upper.root_fd
        for step in reversed(chain):
            if step.layer is not self._upper:
                return
            try:
                fd = os.dup(fd) if step.parent is None else self._upper.open_file(fd, step.name, _FLAGS)
            except OSError:
                return
            held.enter_context(self._lending(fd))

    @contextmanager
    def _lending(self, fd: int) -> Iterator[None]:
        """Lend what *fd* is, O_PATH and from now on ours, the bits its owner lacks; take them back at the end."""
        try:
            with _bits_lent(fd) as lent:
                if not lent:
                    yield
                    return
                st = os.fstat(fd)
                key = (st.st_dev, st.st_ino)
                self._lent[key] = lent
                try:
                    yield
                finally:
                    del self._lent[key]
        finally:
            os.close(fd)


@contextmanager
def unlocked(fd: int) -> Iterator[None]:
    """What *fd* is, O_PATH, in an upper that no mount has, may be read and written for the block, if its modes are all that forbids it."""
    wanted = os.R_OK | os.W_OK | (os.X_OK if stat.S_ISDIR(os.fstat(fd).st_mode) else 0)
    if os.access(files.path_at(fd, b""), wanted, effective_ids=True):
        yield
        return
    with _bits_lent(fd):
        yield


def where_allowed(step: Callable[[], Result], dir_fd: int, name: bytes, path: bytes) -> Result:
    """*step*, about *name* in *dir_fd* of an upper that no mount has, again with its owner's bits lent if it fails for the lack of them.

    *path*: what an error calls it. *step* may have done part of its work when it is called again.
    """
    try:
        return step()
    except PermissionError as exc:
        if exc.errno != errno.EACCES:
            raise
    fd = os.open(name, _FLAGS, dir_fd=dir_fd)
    try:
        with unlocked(fd):
            return step()
    except PermissionError as exc:
        raise OSError(exc.errno, exc.strerror, path) from exc
    finally:
        os.close(fd)


@contextmanager
def _bits_lent(fd: int) -> Iterator[int]:
    """Lend what *fd* is the bits its owner lacks, as long as the block runs, which gets them: 0 when there are none, or it may not be."""
    st, path = os.fstat(fd), files.path_at(fd, b"")
    lent = _lacking(st)
    if lent:
        try:
            os.chmod(path, stat.S_IMODE(st.st_mode) | lent)
        except OSError:  # then the step will fail as it did
            lent = 0
    try:
        yield lent
    finally:
        if lent:
            os.chmod(path, stat.S_IMODE(os.fstat(fd).st_mode) & ~lent)


def _lacking(st: os.stat_result) -> int:
    """The bits to lend an object: 0 for what is not ours, and for what would lose its setgid bit, as that of a group we are not in does."""
    wanted = {stat.S_IFDIR: 0o700, stat.S_IFREG: 0o600}.get(stat.S_IFMT(st.st_mode), 0)
    ours = st.st_uid == os.geteuid()
    if st.st_mode & stat.S_ISGID and st.st_gid != os.getegid() and st.st_gid not in os.getgroups():
        ours = False
    return wanted & ~st.st_mode if ours else 0
