"""Why a test that mounts cannot run on this machine, if it cannot."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path


def _filesystem_known(name: str) -> bool:
    return any(line.split()[-1] == name for line in Path("/proc/filesystems").read_text().splitlines())


def _filesystem(name: str, module: str) -> bool:
    if not _filesystem_known(name):
        subprocess.run(["modprobe", "-q", module], check=False, stderr=subprocess.DEVNULL, timeout=20)
    return _filesystem_known(name)


@functools.cache
def missing_for_fuse() -> str | None:
    """None when our filesystem can be mounted as root, else the reason to skip."""
    if os.geteuid() != 0:
        return "mounting needs root"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"no usable /dev/fuse: {error.strerror}"
    return None


@functools.cache
def missing_for_overlayfs() -> str | None:
    """None when the kernel's overlayfs can be mounted, else the reason to skip."""
    if os.geteuid() != 0:
        return "mounting needs root"
    return None if _filesystem("overlay", "overlay") else "this kernel has no overlayfs"
