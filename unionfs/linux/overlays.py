"""Whether an overlay of the kernel's has a directory: it takes no lock that others could see."""

from __future__ import annotations

import errno
import os

from unionfs.errors import InUseError, printable
from unionfs.linux import mounts

FSTYPE = "overlay"


def refuse_if_kernel_has(*directories: bytes | None) -> None:
    """InUseError when one of these is the upper or work of an overlay of the kernel's, as far as we see mounts.

    One that is shown with relative paths may have any directory; only then the kernel itself is asked, since it logs the question.
    """
    wanted = {os.path.realpath(path): path for path in directories if path is not None}
    unclear = False
    for info in mounts.mountinfo():
        if info.fstype != FSTYPE:
            continue
        for key in ("upperdir", "workdir"):
            path = mounts.super_option(info, key) or b"/"
            if path in wanted:
                raise _in_use(wanted[path], f": the kernel's at {printable(info.target)}")
            unclear |= not path.startswith(b"/")
    for path in wanted.values() if unclear else ():
        if is_held(path):
            raise _in_use(path, " of the kernel's")


def _in_use(path: bytes, whose: str) -> InUseError:
    return InUseError(f"directory {printable(path)} is in use by another mount{whose}")


def is_held(path: bytes) -> bool:
    """Whether an overlay has the directory *path* as upper or work, in whatever mount namespace; no where it is missing or we may not ask.

    One that demands its upper for itself (index=on) is then refused with EBUSY, and else because its work would lie on another mount,
    before anything is written (ovl_get_upper, ovl_get_workdir).
    """
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        work = mounts.open_tree(b"", mounts.OPEN_TREE_CLONE | mounts.AT_EMPTY_PATH, fd)
        try:
            os.close(mounts.fs_create(FSTYPE, (("lowerdir+", fd), ("upperdir", fd), ("workdir", work), ("index", b"on")), ()))
        finally:
            os.close(work)
    except OSError as exc:
        return exc.errno == errno.EBUSY
    finally:
        os.close(fd)
    return False
