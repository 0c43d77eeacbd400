"""Building an upper copy in the work directory, so that upper only ever holds the old object or the complete new one.

A Draft is built (this may take long and touches no shared state: it can run in a worker thread) and then published by one rename, which
the Union does. What a crash leaves behind in work is removed at the next mount.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import sys
import threading
from collections.abc import Iterator

from unionfs.linux import files, xattrs
from unionfs.overlay.acl import ACCESS, DEFAULT
from unionfs.overlay.layer import Layer
from unionfs.overlay.ownership import PLAIN, Ownership
from unionfs.overlay.whiteout import HOLDS_XATTR_WHITEOUTS, XattrNames, is_whiteout_device, whiteout_file

_CAPABILITY = b"security.capability"
_WHITEOUT_MODE = stat.S_IFCHR
_PROBE = b"#probe"
_NO_DEVICES = (errno.EPERM, errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
_ORIGIN_MAGIC = 0xFB
_ORIGIN_BIG_ENDIAN = 1
_ORIGIN_HEADER = struct.Struct("=BBBBB16s")


class Work:
    """``WORKDIR/work``: where objects are built, and where what cannot be removed at once waits.

    ``ownership``: how upper, for which they are built, keeps owners and modes.

    Also where all whiteouts come from. They are devices as the kernel's; in an upper that can hold none (*whiteout_files*) they are
    ``.wh.`` files. Such a file is made before what it covers goes, and goes after what replaces it has come: beside an object it hides
    lower layers only. Where such names are refused too (in a mount with whfiles) they are empty files with an attribute, *whiteout_marks*:
    in their place like devices, but their directory has to say that it holds such.
    """

    def __init__(
        self, fd: int, ownership: Ownership = PLAIN, *, whiteout_files: bool = False, whiteout_marks: XattrNames | None = None
    ) -> None:
        self.fd = fd
        self.ownership = ownership
        self.whiteout_files = whiteout_files
        self.whiteout_marks = whiteout_marks
        self._count = 0

    def name(self) -> bytes:
        """A name not used before; the directory was emptied at mount, so nobody else has it."""
        self._count += 1
        return b"#%x" % self._count

    def cover(self, dir_fd: int, name: bytes) -> None:
        """Hide *name*, of which nothing is in the directory *dir_fd* of upper; with whiteout files something may be."""
        if self.whiteout_files:
            with contextlib.suppress(FileExistsError):
                os.close(os.open(whiteout_file(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=dir_fd))
        elif self.whiteout_marks is None:
            os.mknod(name, _WHITEOUT_MODE, 0, dir_fd=dir_fd)
        elif dir_fd == self.fd:
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=dir_fd))
            xattrs.put(files.path_at(dir_fd, name), self.whiteout_marks.whiteout, b"y")
        else:
            self.announce_whiteouts(dir_fd)
            with self._whiteout(self.name()) as whiteout:
                files.renameat2(self.fd, whiteout, dir_fd, name, files.RENAME_NOREPLACE)

    def announce_whiteouts(self, dir_fd: int) -> None:
        """Before a whiteout comes to the directory *dir_fd* of upper: let it say so where that is needed."""
        if self.whiteout_marks is not None:
            holder = files.path_at(dir_fd, b"")
            if xattrs.find(holder, self.whiteout_marks.opaque) is None:
                xattrs.put(holder, self.whiteout_marks.opaque, HOLDS_XATTR_WHITEOUTS)

    @contextlib.contextmanager
    def covered(self, dir_fd: int, name: bytes) -> Iterator[None]:
        """A whiteout file beside *name*, which the block takes away; not when that fails."""
        self.cover(dir_fd, name)
        try:
            yield
        except BaseException:
            self.uncover(dir_fd, name)
            raise

    def remove_covered(self, dir_fd: int, name: bytes) -> None:
        """Remove the non-directory *name* and hide what is below it, in one step."""
        if self.whiteout_files:
            with self.covered(dir_fd, name):
                os.unlink(name, dir_fd=dir_fd)
            return
        self.announce_whiteouts(dir_fd)
        with self._whiteout(self.name()) as whiteout:
            files.renameat2(self.fd, whiteout, dir_fd, name)

    def take_covered(self, dir_fd: int, name: bytes, kept: bytes) -> None:
        """Move *name* into work as *kept* and hide what is below it, in one step."""
        if self.whiteout_files:
            with self.covered(dir_fd, name):
                files.renameat2(dir_fd, name, self.fd, kept)
            return
        self.announce_whiteouts(dir_fd)
        with self._whiteout(kept):
            files.renameat2(self.fd, kept, dir_fd, name, files.RENAME_EXCHANGE)

    @contextlib.contextmanager
    def _whiteout(self, name: bytes) -> Iterator[bytes]:
        """A whiteout in work under this *name*, which the block moves away; not left there when that fails."""
        self.cover(self.fd, name)
        try:
            yield name
        except BaseException:
            self.discard(name)
            raise

    def place_over_whiteout(self, made: bytes, dir_fd: int, name: bytes, *, directory: bool) -> None:
        """Move what was *made* in work to *name*, which a whiteout hides, in one step."""
        if self.whiteout_files or not directory:
            files.renameat2(self.fd, made, dir_fd, name)
            if self.whiteout_files:
                self.uncover(dir_fd, name)
            return
        files.renameat2(self.fd, made, dir_fd, name, files.RENAME_EXCHANGE)
        self.discard(made)

    def uncover(self, dir_fd: int, name: bytes) -> None:
        """Remove the whiteout file of *name*; none is fine."""
        file = whiteout_file(name)
        try:
            os.unlink(file, dir_fd=dir_fd)
        except FileNotFoundError:
            pass
        except IsADirectoryError:  # not from us, but it hides as well
            gone = self.name()
            files.renameat2(dir_fd, file, self.fd, gone)
            self.discard(gone)
        except OSError as exc:
            if exc.errno != errno.ENAMETOOLONG:
                raise

    def convert_whiteout(self, dir_fd: int, name: bytes) -> None:
        """Whatever form the whiteout of *name* has, give it the one that is written here."""
        if self.whiteout_files:
            self.cover(dir_fd, name)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=dir_fd)
            return
        with contextlib.suppress(FileExistsError):
            self.cover(dir_fd, name)
        self.uncover(dir_fd, name)

    def discard(self, name: bytes) -> None:
        """Remove *name* and all below it. What resists is left to the next mount: the verb it served has happened."""
        with contextlib.suppress(OSError):
            remove_tree(self.fd, name)


def can_make_whiteout_files(work_fd: int) -> bool:
    """Whether a ``.wh.`` file is possible: not in a mount for which it would be a mark itself."""
    try:
        os.close(os.open(whiteout_file(_PROBE), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=work_fd))
    except OSError as exc:
        if exc.errno not in _NO_DEVICES:
            raise
        return False
    os.unlink(whiteout_file(_PROBE), dir_fd=work_fd)
    return True


def can_make_devices(work_fd: int) -> bool:
    """Whether a whiteout as the kernel makes it is possible: not on an overlayfs, most network filesystems and much of FUSE."""
    try:
        os.mknod(_PROBE, _WHITEOUT_MODE, 0, dir_fd=work_fd)
    except OSError as exc:
        if exc.errno not in _NO_DEVICES:
            raise
        return False
    made = os.stat(_PROBE, dir_fd=work_fd, follow_symlinks=False)
    os.unlink(_PROBE, dir_fd=work_fd)
    return is_whiteout_device(made)


def remove_tree(dir_fd: int, name: bytes) -> None:
    """rm -rf of *name* in *dir_fd*, one level at a time by descriptor; a missing name is fine."""
    try:
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        empty_tree(dir_fd, name)
        os.rmdir(name, dir_fd=dir_fd)


def empty_tree(dir_fd: int, name: bytes, keep: frozenset[bytes] = frozenset()) -> None:
    """Remove everything in the directory *name* but *keep*."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    if os.geteuid():  # an ordinary user may have taken his own permissions away
        os.chmod(files.path_at(dir_fd, name), 0o700)
    fd = os.open(name, flags, dir_fd=dir_fd)
    try:
        for child in os.listdir(fd):
            if os.fsencode(child) not in keep:
                remove_tree(fd, os.fsencode(child))
    finally:
        os.close(fd)


#: A copy of less than this that is not to be on disk at once takes no longer than handing it to a thread.
_QUICK_SIZE = 128 * 1024


def is_quick(draft: Draft | DataDraft) -> bool:
    """Whether building *draft* is not worth a thread."""
    return draft.size < _QUICK_SIZE and not draft.sync


class Draft:
    """One object on its way up.

    *source_dir* is the Draft's own descriptor of the directory that holds *name* in *layer*; *size* is how much of a regular file's data is
    wanted (less than all before a truncation).
    """

    def __init__(
        self,
        layer: Layer,
        source_dir: int,
        name: bytes,
        st: os.stat_result,
        size: int,
        work: Work,
        names: XattrNames,
        *,
        origin: bytes | None,
        sync: bool,
        nlink: bytes | None = None,
        protattr: bytes | None = None,
    ) -> None:
        self.layer = layer
        self.source_dir = source_dir
        self.name = name
        self.st = st
        self.size = size
        self.work = work
        self.work_name = work.name()
        self.names = names
        self.origin = origin
        self.sync = sync
        #: How many names are shown of a file with several that stay one (see index_dir.py).
        self.nlink = nlink
        #: File attributes that the copy shall be shown with (see protection.py).
        self.protattr = protattr
        #: The data stays where it is: the copy is a metacopy.
        self.metacopy = False
        #: The draft's own descriptor of the data, where they are not with the object in *source_dir*.
        self.data = -1
        #: Of the built copy of a file, open for reading and writing.
        self._target = -1

    def take_target(self) -> int | None:
        """A descriptor of the built copy, if it is a file's: open for reading and writing, from now on the caller's to close."""
        target, self._target = self._target, -1
        return None if target < 0 else target

    def discard(self) -> None:
        """Throw a built copy away."""
        target = self.take_target()
        if target is not None:
            os.close(target)
        self.work.discard(self.work_name)

    def build(self) -> None:
        """Make the complete copy in work, on disk if *sync*; on failure nothing is left there."""
        try:
            self._build()
        except BaseException:
            self.work.discard(self.work_name)
            raise
        finally:
            os.close(self.source_dir)
            if self.data >= 0:
                os.close(self.data)

    def _build(self) -> None:
        kind = stat.S_IFMT(self.st.st_mode)
        if kind == stat.S_IFREG:
            self._build_file()
            return
        if kind == stat.S_IFDIR:
            self._build_directory()
            return
        if kind == stat.S_IFLNK:
            os.symlink(os.readlink(self.name, dir_fd=self.source_dir), self.work_name, dir_fd=self.work.fd)
        else:
            os.mknod(self.work_name, self.work.ownership.backing(kind | 0o600), self.st.st_rdev, dir_fd=self.work.fd)
        self._copy_attributes(self._path())

    def _build_file(self) -> None:
        target = os.open(self.work_name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self.work.fd)
        try:
            if self.metacopy:
                os.ftruncate(target, self.st.st_size)
                xattrs.put(target, self.names.metacopy, b"")
                self._copy_attributes(target)
            elif self.size:
                self._copy_with_data(target)
            else:
                self._copy_attributes(target)
            if self.sync:
                os.fsync(target)
        except BaseException:
            os.close(target)
            raise
        self._target = target

    def _copy_with_data(self, target: int) -> None:
        elsewhere = self.data >= 0
        source = os.dup(self.data) if elsewhere else self.layer.open_file(self.source_dir, self.name, os.O_RDONLY)
        try:
            files.copy_data(source, target, self.size)
            self._copy_attributes(target, None if elsewhere else source)
        finally:
            os.close(source)

    def _build_directory(self) -> None:
        os.mkdir(self.work_name, 0o700, dir_fd=self.work.fd)
        if not self.sync:
            self._copy_attributes(self._path())
            return
        # opened now: its mode may keep an ordinary user out later
        target = os.open(self.work_name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.work.fd)
        try:
            self._copy_attributes(self._path())
            os.fsync(target)
        finally:
            os.close(target)

    def _path(self) -> bytes:
        return files.path_at(self.work.fd, self.work_name)

    def _copy_attributes(self, place: files.Place, source: int | None = None) -> None:
        """To the copy at *place*, of the object, which may be open as *source*.

        Owner first (chown drops suid and capabilities), then xattrs and ACLs, mode, times.
        """
        ownership, st = self.work.ownership, self.st
        ownership.own(place, st.st_uid, st.st_gid)
        if source is None:
            self._copy_xattrs(place)
        else:
            copy_xattrs(source, place, self.names, self.layer.ownership, ownership)
        if self.origin is not None:
            xattrs.put(place, self.names.origin, self.origin)
        if self.nlink is not None:
            xattrs.put(place, self.names.nlink, self.nlink)
        if self.protattr is not None:
            xattrs.put(place, self.names.protattr, self.protattr)
        ownership.complete(place, st.st_uid, st.st_gid, st.st_mode, st.st_rdev)
        files.utimens(place, st.st_atime_ns, st.st_mtime_ns)

    def _copy_xattrs(self, place: files.Place) -> None:
        try:
            with self.layer.object_path(self.source_dir, self.name) as source:
                copy_xattrs(source, place, self.names, self.layer.ownership, self.work.ownership)
        except OSError as exc:
            if exc.errno != errno.EXDEV:  # what is mounted on the directory has nothing to say about it
                raise


class DataDraft:
    """The data of a metacopy in upper on their way up; the mark goes last, so that until then the lower ones count.

    *source* and *target* are the draft's own descriptors, *target* open for writing. There is nothing to throw away.
    """

    def __init__(self, source: int, target: int, size: int, names: XattrNames, sync: bool) -> None:
        self.source = source
        self.target = target
        self.size = size
        self.names = names
        self.sync = sync
        #: Nothing will be written any more.
        self.over = False
        self._failure: BaseException | None = None
        self._busy = threading.Lock()

    def discard(self) -> None:
        """What was copied stays as good as it was."""

    def build(self) -> None:
        """Copy. Whoever calls it again, or meanwhile, gets what became of the first."""
        with self._busy:
            if not self.over:
                try:
                    self._build()
                except BaseException as exc:
                    self._failure = exc
                finally:
                    self.over = True
                    os.close(self.source)
                    os.close(self.target)
            if self._failure is not None:
                raise self._failure

    def _build(self) -> None:
        """Also put back what writing disturbs: the times, and capabilities (the caller may not mean to change a thing)."""
        path = files.path_at(self.target, b"")
        if xattrs.find(path, self.names.metacopy) is None:  # by another name, which marks that are missing did not say was one
            return
        before = os.fstat(self.target)
        capability = xattrs.find(path, _CAPABILITY)
        try:
            # a metacopy is a hole; what a broken one has of its own would show behind the end of shorter data
            os.ftruncate(self.target, min(before.st_size, os.fstat(self.source).st_size))
            files.copy_data(self.source, self.target, self.size)
            self._restore(path, before, capability)
            if self.sync:
                os.fsync(self.target)
            xattrs.drop(path, self.names.metacopy)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(self.target, before.st_size)  # as it may have been cut
                files.punch_hole(self.target, before.st_size)
            with contextlib.suppress(OSError):
                self._restore(path, before, capability)
            raise

    @staticmethod
    def _restore(path: bytes, before: os.stat_result, capability: bytes | None) -> None:
        if capability is not None:
            xattrs.put(path, _CAPABILITY, capability)
        files.utimens(path, before.st_atime_ns, before.st_mtime_ns)


def copy_xattrs(
    source: files.Place, target: files.Place, names: XattrNames, was: Ownership = PLAIN, becomes: Ownership = PLAIN
) -> None:
    """Copy all attributes but the layers' own marks, between layers that keep owners as said.

    What upper cannot hold is an error for ACLs and security.*, else left out (ovl_copy_xattr).
    """
    for name in xattrs.names(source):
        meant = was.shown(name)
        if names.is_private(name) or meant is None:
            continue
        stored = becomes.stored(meant)
        value = xattrs.find(source, name)
        if value is None:
            continue
        try:
            xattrs.put(target, stored, was.value(meant, value))
        except OSError as exc:
            needed = stored.startswith(b"security.") or stored in (ACCESS, DEFAULT)
            if needed or exc.errno not in (errno.EOPNOTSUPP, errno.EPERM):
                raise


def encode_origin(layer: Layer, dir_fd: int, name: bytes) -> bytes:
    """The ``origin`` value that names a lower object; empty ("copied up, origin unknown") where there are no file handles."""
    try:
        kind, handle = files.file_handle(dir_fd, name)
    except OSError:
        return b""
    length = _ORIGIN_HEADER.size + len(handle)
    if length > 255 or kind > 255:
        return b""
    flags = 0 if sys.byteorder == "little" else _ORIGIN_BIG_ENDIAN
    return _ORIGIN_HEADER.pack(0, _ORIGIN_MAGIC, length, flags, kind, layer.uuid()) + handle


def decode_origin(value: bytes, lowers: tuple[Layer, ...]) -> os.stat_result | None:
    """The lower object an ``origin`` value names, None when it cannot be found: never an error."""
    if len(value) <= _ORIGIN_HEADER.size:
        return None
    version, magic, length, flags, kind, uuid = _ORIGIN_HEADER.unpack_from(value)
    big = bool(flags & _ORIGIN_BIG_ENDIAN)
    if version != 0 or magic != _ORIGIN_MAGIC or length != len(value) or big != (sys.byteorder == "big"):
        return None
    tried: set[int] = set()
    for layer in lowers:
        if layer.device in tried:
            continue
        tried.add(layer.device)
        try:
            if layer.uuid() != uuid:
                continue
            with layer.for_handles() as mount_fd:
                fd = files.open_by_handle(mount_fd, kind, value[_ORIGIN_HEADER.size :])
        except OSError:
            continue
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)
    return None
