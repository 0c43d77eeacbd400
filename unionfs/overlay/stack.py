"""Opening the layers of a union before anything is mounted: checks, private clones, locks, a clean work directory."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Sequence

from unionfs.errors import InUseError, LayerError, printable
from unionfs.linux import files, mounts, xattrs
from unionfs.overlay.acl import ACCESS, DEFAULT
from unionfs.overlay.copy_up import Work, can_make_devices, can_make_whiteout_files, empty_tree, remove_tree
from unionfs.overlay.features import DEFAULTS, Features, Sync
from unionfs.overlay.index_dir import IndexDirectory, open_index
from unionfs.overlay.layer import Layer
from unionfs.overlay.owners import CONTAINERS_STAT, STAT_NAMES, USER_STAT, Owners
from unionfs.overlay.ownership import PLAIN, AlreadyMapped, Ownership
from unionfs.overlay.whiteout import CONVERSION, OPAQUE, XattrNames

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_IN_ROOT = files.RESOLVE_IN_ROOT | files.RESOLVE_NO_SYMLINKS | files.RESOLVE_NO_MAGICLINKS
_CLONE_REFUSED = (errno.EPERM, errno.EINVAL, errno.ENOSYS)


class Stack:
    """The opened layers, topmost lower first. ``data``: layers with no names of their own, whose files metacopies point to."""

    def __init__(self, lowers: tuple[Layer, ...], names: XattrNames, features: Features = DEFAULTS, data: tuple[Layer, ...] = ()) -> None:
        self.lowers = lowers
        self.upper: Layer | None = None
        self.work: Work | None = None
        self.names = names
        self.features = features
        self.data = data
        #: With ``features.index``, where upper and lowers have file handles.
        self.index: IndexDirectory | None = None
        #: Descriptors whose flock says the upper and work are taken; they end with the process whatever happens to it.
        self.locks: tuple[int, ...] = ()

    @property
    def sync(self) -> bool:
        """Whether copied-up data is on disk before it becomes visible."""
        return self.features.sync is not Sync.NEVER

    @property
    def strict(self) -> bool:
        """Whether everything that is copied up is on disk before the verb that needed it ends, its name included."""
        return self.features.sync is Sync.STRICT

    def unmark(self) -> None:
        """Take the mark of a volatile mount away again: nobody has seen the mount, so nothing can have been lost."""
        if self.features.volatile and self.work is not None:
            remove_tree(self.work.fd, b"incompat")

    def close(self) -> None:
        """Give up every descriptor, the locks last."""
        for layer in (*self.lowers, *self.data):
            layer.close()
        if self.upper is not None:
            self.upper.close()
        if self.work is not None:
            os.close(self.work.fd)
        if self.index is not None:
            self.index.close()
        for fd in self.locks:
            os.close(fd)


def open_stack(
    lowers: Sequence[bytes],
    upper: bytes | None,
    work: bytes | None,
    features: Features = DEFAULTS,
    *,
    data: Sequence[bytes] = (),
    converting: bool = False,
) -> Stack:
    """Open all layers, topmost lower first; without *upper* the stack is read-only.

    Paths may be relative or symlinks. Raises LayerError for a directory that is missing or unsuitable, InUseError when the upper or work
    belongs to a live mount. On failure nothing stays open. *data*: data-only layers, below all others. *converting*: an upper whose
    conversion was interrupted is welcome.
    """
    if not lowers:
        raise LayerError("a union needs at least one lower directory")
    if (upper is None) != (work is None):
        given, lacking = ("work", "upper") if upper is None else ("upper", "work")
        raise LayerError(f"{given} directory without {lacking} directory: give both or neither")
    names = XattrNames(features.userxattr, features.whfiles)
    opened: list[Layer] = []
    try:
        for path in (*lowers, *data):
            opened.append(_open_lower(path, features.owners))
        stack = Stack(tuple(opened[: len(lowers)]), names, features, tuple(opened[len(lowers) :]))
        if upper is not None and work is not None:
            _add_upper(stack, upper, work, converting=converting)
        return stack
    except BaseException:
        for layer in opened:
            layer.close()
        raise


def _open_path(path: bytes, what: str) -> int:
    try:
        return os.open(path, _DIRECTORY)
    except OSError as exc:
        raise LayerError(f"{what} directory {printable(path)}: {exc.strerror}") from exc


def _clone(fd: int, attrs: tuple[str, ...]) -> int | None:
    """A private clone of the mount below *fd*, rooted there; None where the kernel does not let us."""
    try:
        clone = mounts.open_tree(b"", mounts.OPEN_TREE_CLONE | mounts.AT_EMPTY_PATH, fd)
    except OSError as exc:
        if exc.errno in _CLONE_REFUSED:
            return None
        raise
    try:
        mounts.mount_setattr(clone, attrs)
    except OSError:  # flags another user namespace locked cannot be changed; we never write to a lower anyway
        pass
    return clone


def _open_lower(path: bytes, owners: Owners | None) -> Layer:
    fd = _open_path(path, "lower")
    mapped = owners is not None and bool(owners.users.ranges or owners.groups.ranges) and mounts.is_idmapped(fd)
    try:
        clone = _clone(fd, ("ro", "noatime"))
    except OSError as exc:
        os.close(fd)
        raise LayerError(f"lower directory {printable(path)}: {exc.strerror}") from exc
    if clone is not None:
        os.close(fd)
        fd = clone
    layer = Layer(fd, private=clone is not None, where=path)
    attribute = stat_attribute(fd)
    if attribute is not None:
        layer.ownership = Ownership(attribute)
    elif mapped and owners is not None:
        layer.ownership = AlreadyMapped(owners)
    return layer


def stat_attribute(root_fd: int) -> bytes | None:
    """The attribute in which a layer keeps owners and modes: that which its root has."""
    root = files.path_at(root_fd, b"")
    try:
        return next((name for name in STAT_NAMES if xattrs.find(root, name) is not None), None)
    except PermissionError:  # a directory that may be entered, not read
        return None


def _upper_ownership(root_fd: int, path: bytes, lowers: tuple[Layer, ...], features: Features) -> Ownership:
    """How upper keeps owners and modes.

    If it is to begin now to have them in an attribute, its root gets that, and says of itself what the topmost such lower says of its own
    root, as with fuse-overlayfs, else what it is.
    """
    squashed = features.owners is not None and features.owners.squashed
    there = stat_attribute(root_fd)
    wanted = features.stat_attribute or there
    if wanted == CONTAINERS_STAT and there == USER_STAT:  # what fuse-overlayfs before 1.11 made of the same option
        wanted = USER_STAT
    ownership = Ownership(wanted, squashed=squashed)
    root = files.path_at(root_fd, b"")
    if wanted is not None and xattrs.find(root, wanted) is None:
        st = next((lower.root_stat() for lower in lowers if lower.ownership.attribute), os.fstat(root_fd))
        try:
            ownership.complete(root, st.st_uid, st.st_gid, st.st_mode)
        except OSError as exc:
            raise LayerError(f"upper directory {printable(path)} cannot hold {printable(wanted)}: {exc.strerror}") from exc
    return ownership if wanted is not None or squashed else PLAIN


def refuse_half_converted(upper_fd: int, path: bytes) -> None:
    """LayerError when a conversion of this upper was interrupted."""
    for namespace in (XattrNames(), XattrNames(userxattr=True)):
        if xattrs.find(files.path_at(upper_fd, b""), namespace.prefix + CONVERSION) is not None:
            raise LayerError(f"upper directory {printable(path)}: its conversion was interrupted and has to be finished (unionfs convert)")


def refuse_incompatible(work_fd: int, path: bytes) -> None:
    """LayerError when a mark in this work directory, as that of a volatile mount, forbids every later mount (ovl_workdir_cleanup)."""
    incompat = _incompatible(work_fd)
    if incompat is not None:
        where = os.path.join(path, b"work/incompat", incompat)
        raise LayerError(
            f"work directory {printable(path)} was left by a mount that cannot be continued;"
            f" if the upper may be used all the same, delete {printable(where)}"
        )


def _add_upper(stack: Stack, upper: bytes, work: bytes, *, converting: bool) -> None:
    held: list[int] = []
    try:
        upper_fd, work_fd, private = _open_pair(upper, work, held)
        for fd, what, path in ((upper_fd, "upper", upper), (work_fd, "work", work)):
            held.append(lock(fd, what, path))
        locks = tuple(held[-2:])
        _refuse_lowers_within((*stack.lowers, *stack.data), upper, work)
        if not converting:
            refuse_half_converted(upper_fd, upper)
        if os.fstatvfs(upper_fd).f_flag & os.ST_RDONLY:
            raise LayerError(f"upper directory {printable(upper)} is on a read-only filesystem")
        ownership = _upper_ownership(upper_fd, upper, stack.lowers, stack.features)
        work_dir = _prepare_work(work_fd, work, stack.names)
        held.append(work_dir)
        devices = can_make_devices(work_dir)
        whiteout_files = not devices and can_make_whiteout_files(work_dir)
        layer = Layer(upper_fd, private=private, where=upper)
        layer.ownership = ownership
        index = open_index(work_fd, work, layer, stack.lowers, stack.names) if stack.features.index else None
        if index is not None:
            held.append(index.fd)
        if stack.features.volatile:
            _mark_volatile(work_dir)
    except OSError as exc:
        _close_all(held)
        raise LayerError(f"upper directory {printable(upper)}, work directory {printable(work)}: {exc.strerror}") from exc
    except BaseException:
        _close_all(held)
        raise
    traps = frozenset((st.st_dev, st.st_ino) for st in (os.fstat(upper_fd), os.fstat(work_fd)))
    for lower in (*stack.lowers, *stack.data):
        lower.traps = traps
    os.close(work_fd)
    marks = None if devices or whiteout_files else stack.names
    stack.upper, stack.index, stack.locks = layer, index, locks
    stack.work = Work(work_dir, ownership, whiteout_files=whiteout_files, whiteout_marks=marks)
    if whiteout_files:  # then they count in every layer, since each was an upper once
        stack.features = stack.features._replace(whfiles=True)
        stack.names = XattrNames(stack.features.userxattr, whfiles=True)


def _refuse_lowers_within(lowers: tuple[Layer, ...], upper: bytes, work: bytes) -> None:
    """LayerError for a lower that is, or lies in, upper or work: changes of the mount would change it (ELOOP in ovl_check_layer).

    Upper in a lower is another matter: ``--lower /`` has it, and finds it empty there.
    """
    for what, outer in (("upper", upper), ("work", work)):
        top = os.path.realpath(outer)
        for lower in lowers:
            if os.path.commonpath([top, os.path.realpath(lower.where)]) == top:
                relation = f"is, or lies in, the {what} directory {printable(outer)}"
                raise LayerError(f"lower directory {printable(lower.where)} {relation}: it would change")


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _open_pair(upper: bytes, work: bytes, held: list[int]) -> tuple[int, int, bool]:
    """(upper, work, private): descriptors reached through one mount, so that a rename between them works.

    Both are opened through one clone of the mount, rooted at their nearest common directory, so submounts stay out.
    """
    upper_fd = _open_path(upper, "upper")
    held.append(upper_fd)
    work_fd = _open_path(work, "work")
    held.append(work_fd)
    if mounts.mount_id(upper_fd) != mounts.mount_id(work_fd):
        raise LayerError(f"upper {printable(upper)} and work {printable(work)} are not under the same mount")
    upper_path, work_path = (os.readlink(files.path_at(fd, b"")) for fd in (upper_fd, work_fd))
    common = os.path.commonpath([upper_path, work_path])
    if common in (upper_path, work_path):
        raise LayerError(f"upper {printable(upper)} and work {printable(work)}: neither may be inside the other")
    top = os.open(common, _DIRECTORY)
    try:
        clone = _clone(top, ()) if mounts.mount_id(top) == mounts.mount_id(upper_fd) else None
    finally:
        os.close(top)
    if clone is None:
        return upper_fd, work_fd, False
    try:
        pair = [files.openat2(clone, os.path.relpath(p, common), _DIRECTORY, _IN_ROOT) for p in (upper_path, work_path)]
    finally:
        os.close(clone)
    _close_all(held)
    held[:] = pair
    return pair[0], pair[1], True


def hold(path: bytes, what: str) -> tuple[Layer, int]:
    """The directory *path* (its part is *what*), to be changed outside a mount, and the descriptor whose flock keeps mounts away meanwhile.

    Raises LayerError, InUseError. Both are the caller's to close.
    """
    fd = _open_path(path, what)
    try:
        held = lock(fd, what, path)
    except BaseException:
        os.close(fd)
        raise
    clone = _clone(fd, ())
    if clone is None:
        return Layer(fd, private=False, where=path), held
    os.close(fd)
    return Layer(clone, private=True, where=path), held


def lock(dir_fd: int, what: str, path: bytes) -> int:
    """A descriptor that says the upper or work directory is taken, until it is closed. Raises InUseError."""
    fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(fd)
        if exc.errno == errno.EWOULDBLOCK:
            raise InUseError(f"{what} directory {printable(path)} is in use by another mount") from exc
        raise
    return fd


def _prepare_work(work_fd: int, path: bytes, names: XattrNames) -> int:
    """Make or empty ``WORKDIR/work`` and return its descriptor; refuse when it says that its upper cannot be trusted."""
    try:
        os.mkdir(b"work", 0o700, dir_fd=work_fd)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(b"work", dir_fd=work_fd, follow_symlinks=False).st_mode):
            raise LayerError(f"{printable(os.path.join(path, b'work'))} is no directory: it is in the way of the mount's own") from None
        refuse_incompatible(work_fd, path)
        empty_tree(work_fd, b"work")
    fd = os.open(b"work", _DIRECTORY | os.O_NOFOLLOW, dir_fd=work_fd)
    itself = files.path_at(fd, b"")
    try:
        os.chmod(itself, 0o700)
        for acl in (ACCESS, DEFAULT):  # else everything built here would inherit them (ovl_workdir_create drops them too)
            if xattrs.find(itself, acl) is not None:
                xattrs.drop(itself, acl)
        xattrs.put(itself, names.opaque, OPAQUE)
        xattrs.drop(itself, names.opaque)
    except OSError as exc:
        os.close(fd)
        raise LayerError(
            f"upper and work cannot hold {printable(names.prefix)}* attributes ({exc.strerror}): an opaque directory could not be stored"
        ) from exc
    return fd


def _mark_volatile(work_dir: int) -> None:
    """Make the next mount of this upper refuse, whoever makes it: nobody can tell whether the machine has crashed meanwhile.

    Like the kernel we never take the mark away (ovl_create_volatile_dirty); an ordinary user could not open a directory of mode 0.
    """
    mode = 0o700 if os.geteuid() else 0
    names = (b"incompat", b"incompat/volatile")
    for name in names:
        os.mkdir(name, 0o700, dir_fd=work_dir)
    os.close(os.open(b"incompat/volatile/dirty", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode & 0o600, dir_fd=work_dir))
    for name in reversed(names):
        os.chmod(name, mode, dir_fd=work_dir)


def _incompatible(work_fd: int) -> bytes | None:
    """The first entry of ``work/incompat``, if there is one."""
    try:
        fd = os.open(b"work/incompat", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=work_fd)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        found = sorted(os.listdir(fd))
    finally:
        os.close(fd)
    return os.fsencode(found[0]) if found else None
