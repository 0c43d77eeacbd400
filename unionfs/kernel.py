"""Mounting by the kernel's overlayfs: the same options and directories, no server.

The kernel is given descriptors of the layers: so any byte may be in their names, which may be as long as they like and are shown whole in
mountinfo. Who else uses an upper is watched over as for our own mounts; the kernel would only warn in its log.
"""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import ExitStack

from unionfs import engines
from unionfs.errors import LayerError, MountError, printable
from unionfs.linux import mounts
from unionfs.options import MountOptions

_CONTEXTS = ("context", "fscontext", "defcontext", "rootcontext")
_LAYERS = ("lowerdir+", "datadir+", "upperdir", "workdir")
_SELINUX = "/sys/fs/selinux/enforce"
_MARK = b"work/incompat/volatile"

Parameters = list[tuple[str, bytes | int | None]]


def create_mount(options: MountOptions) -> int:
    """The detached mount of an overlay.

    Raises LayerError for a directory that is missing and MountError with the kernel's reason. Preconditions: hold_upper has been
    called, and engines.not_in_kernel says nothing of *options*.
    """
    with ExitStack() as held:
        parameters: Parameters = [
            (name, value)
            for name, value in engines.kernel_parameters(options)
            if name not in _CONTEXTS or os.path.exists(_SELINUX)  # as mount(8): the word means nothing without SELinux
        ]
        attrs = options.vfs_flags | ({"ro"} if options.read_only else set())
        try:
            return _create([*parameters, *_open_layers(options, held)], attrs)
        except OSError as exc:
            if options.volatile and options.work is not None:  # the mark comes before the layers are looked at
                shutil.rmtree(os.path.join(options.work, _MARK), ignore_errors=True)
            raise MountError(f"the kernel's overlayfs refuses: {_reason(exc)}") from exc


def mount(options: MountOptions, target: bytes) -> None:
    """Mount an overlay on the directory *target*; raises what create_mount does, and InUseError."""
    with ExitStack() as held:
        hold_upper(options, held)
        fd = create_mount(options)
        held.callback(os.close, fd)
        _attach(fd, options, target)


def _attach(fd: int, options: MountOptions, target: bytes) -> None:
    try:
        mounts.move_mount(fd, target)
        if options.private:
            mounts.mount(b"none", target, None, mounts.MS_PRIVATE)
    except OSError as exc:
        raise MountError(f"cannot mount on {printable(target)}: {exc.strerror}") from exc


def _open_layers(options: MountOptions, held: ExitStack) -> Parameters:
    """The parameters that name the layers, as descriptors that *held* closes."""
    named = [("lowerdir+", "lower", path) for path in options.lowers]
    named += [("datadir+", "data", path) for path in options.data_lowers]
    if options.upper is not None and options.work is not None:
        named += [("upperdir", "upper", options.upper), ("workdir", "work", options.work)]
    found: Parameters = []
    for key, what, path in named:
        fd = _open(what, path)
        held.callback(os.close, fd)
        _refuse_other_owners(fd, what, path)
        found.append((key, fd))
    if len(found) == 1:  # the kernel wants two layers where nothing is to be written: an empty one adds nothing
        fd = mounts.fs_create("tmpfs", (), ("ro",))
        held.callback(os.close, fd)
        found.append(("datadir+", fd))
    return found


def _refuse_other_owners(fd: int, what: str, path: bytes) -> None:
    """MountError for a layer that keeps owners and modes in attributes: the kernel would show, and allow, what the inodes say."""
    from unionfs.overlay.stack import stat_attribute

    attribute = stat_attribute(fd)
    if attribute is not None:
        kept = f"keeps owners and modes in {printable(attribute)}; our own server reads them"
        raise MountError(f"{what} directory {printable(path)} {kept}")


def hold_upper(options: MountOptions, held: ExitStack) -> None:
    """Have upper and work to ourselves until *held* ends. Raises InUseError, LayerError.

    A mount that is attached here needs no longer: refuse_if_kernel_has sees it.
    """
    from unionfs.overlay.stack import lock, refuse_half_converted, refuse_incompatible

    for what, path in (("upper", options.upper), ("work", options.work)):
        if path is not None:
            fd = _open(what, path)
            held.callback(os.close, fd)
            held.callback(os.close, lock(fd, what, path))
            if what == "upper":
                refuse_half_converted(fd, path)
            else:
                refuse_incompatible(fd, path)


def _open(what: str, path: bytes) -> int:
    try:
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise LayerError(f"{what} directory {printable(path)}: {exc.strerror}") from exc


def _create(parameters: Parameters, attrs: set[str] | frozenset[str]) -> int:
    try:
        return mounts.fs_create("overlay", parameters, attrs)
    except OSError as exc:
        if exc.errno != errno.EINVAL or exc.filename not in _LAYERS:
            raise
        return mounts.fs_create("overlay", [_as_text(*parameter) for parameter in parameters], attrs)


def _as_text(key: str, value: bytes | int | None) -> tuple[str, bytes | int | None]:
    """Layers by their paths, for Linux before 6.13; of upperdir and workdir it takes a backslash for an escape."""
    if not isinstance(value, int):
        return key, value
    path = os.fsencode(os.readlink(f"/proc/self/fd/{value}"))
    return key, path.replace(b"\\", b"\\\\") if key in ("upperdir", "workdir") else path


def _reason(exc: OSError) -> str:
    """One line; what the kernel only says to dmesg is not known here."""
    where = "" if exc.filename in (None, "overlay", "tmpfs") else f" ({exc.filename})"
    hint = ""
    if exc.errno == errno.ELOOP and exc.filename == "overlay":
        return "one of the directories is, or lies in, another of them"
    if exc.strerror == os.strerror(exc.errno or 0) and exc.errno == errno.EINVAL:
        hint = ": dmesg may say more"
    return f"{exc.strerror}{where}{hint}"
