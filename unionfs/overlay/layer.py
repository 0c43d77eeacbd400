"""One layer, reached only through the descriptor of its root.

Nothing here follows a symlink: a hostile layer full of links and ``..`` cannot lead outside itself. As root the root descriptor belongs
to a private clone of the layer's mount, so whatever is mounted below it - our own union included - is never entered. Without that
privilege every step refuses to cross a mount, and a mount point in a layer is shown as an empty directory.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from unionfs.linux import files, xattrs
from unionfs.overlay.owners import changed
from unionfs.overlay.ownership import PLAIN
from unionfs.overlay.protection import APPEND, IMMUTABLE
from unionfs.overlay.whiteout import (
    HOLDS_XATTR_WHITEOUTS,
    OPAQUE,
    OPAQUE_DEVICE,
    OPAQUE_FILE,
    XattrNames,
    hidden_by_file,
    is_whiteout_device,
    whiteout_file,
)

_IN_ROOT = files.RESOLVE_IN_ROOT | files.RESOLVE_NO_SYMLINKS | files.RESOLVE_NO_MAGICLINKS
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
#: Bytes that the kernel takes at once, with the zero at the end.
_PATH_MAX = 4096


def _marks_at(path: bytes, names: XattrNames) -> dict[bytes, bytes]:
    private = [attribute for attribute in xattrs.names(path) if names.is_private(attribute)]
    values = ((attribute, xattrs.find(path, attribute)) for attribute in private)
    return {attribute: value for attribute, value in values if value is not None}


class Layer:
    """A directory tree. *private*: the root descriptor belongs to a clone of the mount, nothing can be mounted in it."""

    __slots__ = ("_uuid", "device", "ownership", "private", "root_fd", "traps", "where")

    def __init__(self, root_fd: int, *, private: bool, where: bytes) -> None:
        self.root_fd = root_fd
        self.private = private
        #: The path the user named it by: for messages, never opened again.
        self.where = where
        self.device = os.fstat(root_fd).st_dev
        #: (device, ino) of directories shown empty: the upper and work of the union itself.
        self.traps: frozenset[tuple[int, int]] = frozenset()
        #: How owners and modes are kept in it.
        self.ownership = PLAIN
        self._uuid: bytes | None = None

    def open_directory(self, path: bytes) -> int:
        """O_PATH descriptor of the directory *path* (relative to the root, no symlink in it; empty: the root)."""
        resolve = _IN_ROOT if self.private else _IN_ROOT | files.RESOLVE_NO_XDEV
        fd = files.openat2(self.root_fd, path[: _end_of_step(path)] or b".", _DIRECTORY, resolve)
        while len(path) >= _PATH_MAX:
            path = path[_end_of_step(path) + 1 :]
            try:
                below = files.openat2(fd, path[: _end_of_step(path)], _DIRECTORY, resolve)
            finally:
                os.close(fd)
            fd = below
        return fd

    @contextmanager
    def object_path(self, dir_fd: int, name: bytes) -> Iterator[bytes]:
        """A ``files.path_at`` path of *name* itself, for the length of the block; EXDEV for a mount point in no private clone."""
        if self.private:
            yield files.path_at(dir_fd, name)
            return
        fd = self.open_file(dir_fd, name, os.O_PATH)
        try:
            yield files.path_at(fd, b"")
        finally:
            os.close(fd)

    def attribute(self, dir_fd: int, name: bytes, attribute: bytes) -> bytes | None:
        """An extended attribute of *name*; None without it, and for a mount point, which is not to be asked."""
        if self.private:
            return xattrs.find(files.path_at(dir_fd, name), attribute)
        try:
            with self.object_path(dir_fd, name) as path:
                return xattrs.find(path, attribute)
        except OSError as exc:
            if exc.errno == errno.EXDEV:
                return None
            raise

    def marks(self, dir_fd: int, name: bytes, names: XattrNames) -> dict[bytes, bytes]:
        """The overlay attributes of *name*; none for a mount point. One call for an object that has no attributes at all."""
        try:
            with self.object_path(dir_fd, name) as path:
                return _marks_at(path, names)
        except OSError as exc:
            if exc.errno == errno.EXDEV:
                return {}
            raise

    def kind(self, dir_fd: int, name: bytes, names: XattrNames) -> int | None:
        """What *name* is, as ``scan`` says it: S_IFDIR, S_IFREG ..., 0 for a whiteout; None when there is nothing."""
        try:
            st = self.stat(dir_fd, name)
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.ENAMETOOLONG):
                return 0 if self._is_hidden_by_file(dir_fd, name, names) else None
            raise
        if names.is_mark(name):
            return None
        hidden = is_whiteout_device(st) or self.is_xattr_whiteout(dir_fd, name, st, names)
        return 0 if hidden else stat.S_IFMT(st.st_mode)

    def open_file(self, dir_fd: int, name: bytes, flags: int) -> int:
        """Open *name* in the directory *dir_fd* of this layer; ELOOP when it is a symlink.

        Never waits: what was a regular file a moment ago may be a pipe now.
        """
        flags |= 0 if flags & os.O_PATH else os.O_NONBLOCK
        if self.private:
            return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
        return files.openat2(dir_fd, name, flags | os.O_NOFOLLOW, files.RESOLVE_BENEATH | files.RESOLVE_NO_XDEV)

    def stat(self, dir_fd: int, name: bytes) -> os.stat_result:
        """lstat of *name* in *dir_fd*, as the layer means it; of an empty directory for a mount point in no private clone."""
        if self.private:
            st = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
            return st if self.ownership is PLAIN else self.ownership.read(st, files.path_at(dir_fd, name))
        try:
            fd = files.openat2(dir_fd, name, os.O_PATH | os.O_NOFOLLOW, files.RESOLVE_BENEATH | files.RESOLVE_NO_XDEV)
        except OSError as exc:
            if exc.errno != errno.EXDEV:
                raise
            return self._mount_point_stat(dir_fd)
        try:
            return self.ownership.read(os.fstat(fd), files.path_at(fd, b""))
        finally:
            os.close(fd)

    def protection(self, dir_fd: int, name: bytes) -> int:
        """The file attributes of *name* on disk that forbid changes, as of protection.py; none for a mount point in no private clone."""
        if self.private or not name:
            return _protection(dir_fd, name)
        try:
            fd = self.open_file(dir_fd, name, os.O_PATH)
        except OSError as exc:
            if exc.errno == errno.EXDEV:
                return 0
            raise
        try:
            return _protection(fd, b"")
        finally:
            os.close(fd)

    def root_stat(self) -> os.stat_result:
        """stat of its root."""
        return self.ownership.read(os.fstat(self.root_fd), files.path_at(self.root_fd, b""))

    def _mount_point_stat(self, dir_fd: int) -> os.stat_result:
        """What stands in for a directory we must not look at: its parent's owner and times, no number of its own."""
        return changed(os.fstat(dir_fd), st_mode=stat.S_IFDIR | 0o755, st_ino=0, st_nlink=2)

    def own_marks(self, dir_fd: int, names: XattrNames) -> dict[bytes, bytes]:
        """The overlay attributes of the directory itself."""
        return _marks_at(files.path_at(dir_fd, b""), names)

    def open_to_read(self, dir_fd: int) -> int:
        """A descriptor that the directory *dir_fd* of this layer can be read by. OSError names the directory as the user knows it."""
        try:
            return os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
        except OSError as exc:
            raise self._as_known(exc, dir_fd) from exc

    def _as_known(self, exc: OSError, dir_fd: int) -> OSError:
        """*exc*, about the directory *dir_fd*, with its path as the user knows it."""
        top, path = (os.readlink(files.path_at(fd, b"")) for fd in (self.root_fd, dir_fd))
        return OSError(exc.errno, exc.strerror, os.path.normpath(os.path.join(self.where, os.path.relpath(path, top))))

    def scan(self, dir_fd: int, names: XattrNames, marks: Mapping[bytes, bytes] | None = None) -> Iterator[tuple[bytes, int]]:
        """All entries of a directory as (name, type): S_IFDIR, S_IFREG ..., or 0 for a whiteout.

        A name that has both an object and a ``.wh.`` file comes twice, the object first: such files hide what is in lower layers only.
        *marks*: its ``own_marks``, where the caller has them. An unreadable or vanished directory raises OSError.
        """
        if marks is None:
            marks = self.own_marks(dir_fd, names)
        st = os.fstat(dir_fd)
        if (st.st_dev, st.st_ino) in self.traps:
            return
        marked = names if marks.get(names.opaque) == HOLDS_XATTR_WHITEOUTS else None
        hidden = []
        try:
            listing = os.scandir(files.path_at(dir_fd, b""))  # by a path names are bytes, and it takes 4 system calls less
        except OSError as exc:
            raise self._as_known(exc, dir_fd) from exc
        with listing as entries:
            for entry in entries:
                name = entry.name
                if names.whfiles and names.is_mark(name):
                    hidden.append(hidden_by_file(name))
                    continue
                try:
                    kind = self._entry_type(dir_fd, entry, marked)
                except FileNotFoundError:  # a whiteout that an overlay below us lists and does not find
                    continue
                yield name, kind
        for gone in hidden:
            if gone is not None:
                yield gone, 0

    def _entry_type(self, dir_fd: int, entry: os.DirEntry[bytes], marks: XattrNames | None) -> int:
        if entry.is_file(follow_symlinks=False):
            if marks is None:
                return stat.S_IFREG
            return 0 if self.is_xattr_whiteout(dir_fd, entry.name, entry.stat(follow_symlinks=False), marks) else stat.S_IFREG
        if entry.is_dir(follow_symlinks=False):
            return stat.S_IFDIR
        if entry.is_symlink():
            return stat.S_IFLNK
        st = entry.stat(follow_symlinks=False)
        return 0 if is_whiteout_device(st) else stat.S_IFMT(st.st_mode)

    def is_xattr_whiteout(self, dir_fd: int, name: bytes, st: os.stat_result, names: XattrNames) -> bool:
        """Whether *name* is a whiteout by its attribute, which only an empty regular file can be (ovl_path_check_xwhiteout_xattr)."""
        return stat.S_ISREG(st.st_mode) and st.st_size == 0 and self._has(dir_fd, name, names.whiteout)

    def _has(self, dir_fd: int, name: bytes, attribute: bytes) -> bool:
        """Whether *name* is known to have the attribute: one that may not be read says nothing (ovl_path_getxattr)."""
        try:
            return self.attribute(dir_fd, name, attribute) is not None
        except PermissionError:
            return False

    def is_opaque(self, dir_fd: int, name: bytes, names: XattrNames, marks: Mapping[bytes, bytes] | None = None) -> bool:
        """Whether the directory *name* hides what is below it. *marks*: its ``marks``, where the caller has them."""
        if marks is None:
            marks = self.marks(dir_fd, name, names)
        return self._is_opaque_itself(dir_fd, name, names, marks) or self._is_hidden_by_file(dir_fd, name, names)

    def has_opaque_root(self, names: XattrNames) -> bool:
        """Whether its root hides the layers below. To the kernel a root is always merged (ovl_get_root), to OCI not."""
        return names.whfiles and self._is_opaque_itself(self.root_fd, b".", names, self.own_marks(self.root_fd, names))

    def _is_opaque_itself(self, dir_fd: int, name: bytes, names: XattrNames, marks: Mapping[bytes, bytes]) -> bool:
        if any(marks.get(mark) == OPAQUE for mark in names.all_opaque):
            return True
        return names.whfiles and self._holds_opaque_file(dir_fd, name)

    def _is_hidden_by_file(self, dir_fd: int, name: bytes, names: XattrNames) -> bool:
        """Whether there is a file that hides *name* in the layers below."""
        return names.whfiles and not names.is_mark(name) and _lstat(dir_fd, whiteout_file(name)) is not None

    def _holds_opaque_file(self, dir_fd: int, name: bytes) -> bool:
        try:
            fd = self.open_file(dir_fd, name, os.O_PATH | os.O_DIRECTORY)
        except OSError as exc:
            if exc.errno == errno.EXDEV:
                return False
            raise
        try:
            if _lstat(fd, OPAQUE_FILE) is not None:
                return True
            st = _lstat(fd, OPAQUE_DEVICE)
            return st is not None and is_whiteout_device(st)
        finally:
            os.close(fd)

    @contextmanager
    def for_handles(self) -> Iterator[int]:
        """A descriptor on this layer's filesystem that is not O_PATH, as open_by_handle_at and ioctl need.

        Not kept: hundreds of layers may be all the descriptors a process can have.
        """
        fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.root_fd)
        try:
            yield fd
        finally:
            os.close(fd)

    def uuid(self) -> bytes:
        """The uuid of its filesystem, zeros when that tells none."""
        if self._uuid is None:
            with self.for_handles() as fd:
                self._uuid = files.filesystem_uuid(fd)
        return self._uuid

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.root_fd)


def _protection(dir_fd: int, name: bytes) -> int:
    found = files.attributes(dir_fd, name)
    return (APPEND if found & files.STATX_ATTR_APPEND else 0) | (IMMUTABLE if found & files.STATX_ATTR_IMMUTABLE else 0)


def _end_of_step(path: bytes) -> int:
    """How much of *path* can be walked at once: whole names."""
    return len(path) if len(path) < _PATH_MAX else path.rindex(b"/", 0, _PATH_MAX)


def _lstat(dir_fd: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.EACCES, errno.ENAMETOOLONG):
            return None
        raise
