"""The directory a run keeps its throw-away layers in, and its removal by whoever is left.

The server holds a lock (flock) on the directory as long as it lives; one that can be locked by another has lost its server.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterable

_log = logging.getLogger(__name__)


def make(directory: bytes, subdirectories: Iterable[bytes]) -> int:
    """Make *directory* for nobody but us, and the parents it lacks; return the descriptor that holds its lock."""
    os.makedirs(os.path.dirname(directory), 0o700, exist_ok=True)
    while True:
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o700)
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_same(directory, lock):  # else another run took it for a stale one before we had the lock
            break
        os.close(lock)
    for name in subdirectories:
        os.mkdir(name, 0o755, dir_fd=lock)
    return lock


def _is_same(path: bytes, fd: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def remove_stale(parent: bytes) -> None:
    """Remove every directory in *parent* whose lock nobody holds."""
    try:
        names = os.listdir(parent)
    except FileNotFoundError:
        return
    for name in names:
        path = os.path.join(parent, name)
        try:
            remove_unused(path)
        except OSError as exc:
            _log.warning("cannot remove the stale directory %s: %s", os.fsdecode(path), exc)


def remove_unused(path: bytes) -> None:
    """Remove the directory *path* with all below it, unless somebody holds a lock on it, or it is missing or none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove_tree(path)
    except BlockingIOError:
        pass
    finally:
        os.close(fd)


def remove_tree(path: bytes) -> None:
    """Remove *path* and all below it; nothing is done where it is missing, and two may do it at once.

    A subdirectory that is not empty is first moved up into *path*, so neither the depth a container made (shutil.rmtree
    fails at a thousand levels) nor the length of names matters, and three descriptors suffice.
    """
    try:
        top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        pending = [os.fsencode(name) for name in os.listdir(top)]
        moved = 0
        while pending:
            name = pending.pop()
            for subdirectory in _remove_but_full_directories(top, name):
                moved += 1
                new = b".removed-%d-%d" % (os.getpid(), moved)
                with contextlib.suppress(FileNotFoundError):
                    os.rename(name + b"/" + subdirectory, new, src_dir_fd=top, dst_dir_fd=top)
                    pending.append(new)
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(path)


def _remove_but_full_directories(top: int, name: bytes) -> list[bytes]:
    """Remove the file *name*, or what can go from the directory of that name; return its directories that are not empty."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
    except FileNotFoundError:
        return []
    except OSError:  # no directory
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=top)
        return []
    full = []
    try:
        with os.scandir(fd) as found:
            entries = list(found)
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.name, dir_fd=fd)
                    continue
                try:
                    os.rmdir(entry.name, dir_fd=fd)
                except OSError:
                    full.append(os.fsencode(entry.name))
    finally:
        os.close(fd)
    return full
