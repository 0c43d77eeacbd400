"""Making the mount: by the kernel's new mount API, detached, for the privileged, by fusermount3 for everybody else."""

from __future__ import annotations

import array
import os
import socket
from typing import NamedTuple

from unionfs.errors import MountError, printable
from unionfs.linux import mounts

#: "For ever": attributes and names change only through us.
FOREVER = 365 * 86400.0


class Settings(NamedTuple):
    """What decides how a union is mounted and served.

    ``mount_attrs``: names of linux.mounts.MOUNT_ATTRS. ``timeout``: seconds for which the kernel may believe names and attributes.
    ``engine``: channel or pyfuse3. ``io``: cached, writeback or passthrough.
    """

    fsname: str = "unionfs"
    subtype: str = "unionfs"
    allow_other: bool = True
    read_only: bool = False
    mount_attrs: frozenset[str] = frozenset()
    acl: bool = True
    timeout: float = FOREVER
    debug: bool = False
    engine: str = "channel"
    io: str = "cached"


def create_mount(settings: Settings) -> tuple[int, int]:
    """(fuse descriptor, detached mount): for the privileged. Attach the mount with linux.mounts.move_mount. Raises MountError."""
    fuse_fd = _open_fuse()
    strings = {
        "source": os.fsencode(settings.fsname),
        "subtype": settings.subtype.encode(),
        "fd": b"%d" % fuse_fd,
        "rootmode": b"40000",
        "user_id": b"%d" % os.geteuid(),
        "group_id": b"%d" % os.getegid(),
    }
    flags = ["default_permissions"]
    if settings.allow_other:
        flags.append("allow_other")
    if settings.read_only:
        flags.append("ro")
    try:
        return fuse_fd, mounts.fs_mount("fuse", strings, flags, settings.mount_attrs)
    except OSError as exc:
        os.close(fuse_fd)
        raise MountError(f"cannot mount: {exc.strerror} ({exc.filename})") from exc


def _open_fuse() -> int:
    try:
        # non-blocking: a request may be withdrawn between poll and read
        return os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        raise MountError(f"cannot open /dev/fuse: {exc.strerror}") from exc


def mount_with_fusermount(settings: Settings, target: bytes) -> int:
    """The fuse descriptor of a mount that fusermount3 made at *target*: for ordinary users. Raises MountError."""
    options = ["default_permissions", f"subtype={settings.subtype}", "fsname=" + _escaped(settings.fsname)]
    if settings.allow_other:
        options.append("allow_other")
    options.append("ro" if settings.read_only else "rw")
    options.extend(sorted(settings.mount_attrs - {"ro"}))
    import subprocess

    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            done = subprocess.run(
                ["fusermount3", "-o", ",".join(options), "--", target],
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
            )
        except OSError as exc:
            raise MountError(f"cannot run fusermount3: {exc.strerror}") from exc
        if done.returncode:
            reason = done.stderr.decode("utf-8", "replace").strip().splitlines()
            raise MountError(reason[-1] if reason else f"fusermount3 failed on {printable(target)}")
        theirs.close()  # else the end of what fusermount3 sent would never be seen
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(4))
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[:4])
    if not fds:
        raise MountError("fusermount3 passed no descriptor")
    os.set_inheritable(fds[0], False)
    os.set_blocking(fds[0], False)
    return fds[0]


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace(",", "\\,")
