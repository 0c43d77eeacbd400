"""Taking a mount away without looking at what is in it."""

from __future__ import annotations

import errno
import os

from unionfs.errors import MountError, printable
from unionfs.linux import mounts


def detach(target: bytes, *, lazy: bool = False) -> None:
    """Unmount *target*: umount2(2) for whoever may, else fusermount3. Raises MountError.

    *lazy* takes it out of the tree at once; it lives on for as long as something in it is in use.
    """
    if target == b"/":  # the kernel would make it read-only, or with MNT_DETACH take the whole system away
        raise MountError("/: the root directory cannot be unmounted")
    try:
        mounts.umount2(target, mounts.UMOUNT_NOFOLLOW | (mounts.MNT_DETACH if lazy else 0))
    except OSError as exc:
        if exc.errno == errno.EPERM:
            _fusermount(target, lazy)
        elif exc.errno == errno.EBUSY:
            raise MountError(f"{printable(target)}: the mount is in use (-l takes it away all the same)") from exc
        else:
            raise MountError(f"cannot unmount {printable(target)}: {exc.strerror}") from exc


def _fusermount(target: bytes, lazy: bool) -> None:
    import subprocess

    command: list[str | bytes] = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", target]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, env={**os.environ, "LC_ALL": "C"})
    except FileNotFoundError as exc:
        raise MountError("cannot unmount as an ordinary user: there is no fusermount3") from exc
    if done.returncode:
        told = " ".join(done.stderr.decode("utf-8", "backslashreplace").split()) or f"fusermount3 ended with {done.returncode}"
        raise MountError(f"cannot unmount {printable(target)}: {told.removeprefix('fusermount3: ')}")
