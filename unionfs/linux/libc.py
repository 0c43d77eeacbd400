"""libc through ctypes: one checked call, and raw system calls by number.

ctypes releases the GIL around every call, so these may run in worker threads.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

#: Numbers that are the same on every architecture (asm-generic from 424 on).
SYS_OPEN_TREE = 428
SYS_MOVE_MOUNT = 429
SYS_FSOPEN = 430
SYS_FSCONFIG = 431
SYS_FSMOUNT = 432
SYS_OPENAT2 = 437
SYS_MOUNT_SETATTR = 442

_BY_MACHINE = {
    "x86_64": {"pivot_root": 155},
    "aarch64": {"pivot_root": 41},
    "riscv64": {"pivot_root": 41},
    "ppc64le": {"pivot_root": 203},
    "s390x": {"pivot_root": 217},
}


def syscall_number(name: str) -> int:
    """The number of an old system call on this machine; OSError(ENOSYS) where we do not know it."""
    machine = os.uname().machine
    try:
        return _BY_MACHINE[machine][name]
    except KeyError:
        raise OSError(38, f"{name} is not known on {machine}") from None


def fail(what: bytes | str | None = None) -> OSError:
    """The OSError for the errno the last call left behind."""
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), what)


def syscall(number: int, *args: Any, what: bytes | str | None = None) -> int:
    """Raw system call; returns its non-negative result or raises OSError. Integers are passed as C long."""
    result = libc.syscall(
        ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in args)
    )
    if result < 0:
        raise fail(what)
    return int(result)


def checked(result: int, what: bytes | str | None = None) -> int:
    """Pass a libc result through, raising OSError when it is negative."""
    if result < 0:
        raise fail(what)
    return result


def give_back_memory() -> None:
    """Return freed heap pages to the system (malloc_trim; glibc only)."""
    trim = getattr(libc, "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
