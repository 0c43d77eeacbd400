"""What a process decides about itself: how it dies, what it holds open, which signals it takes, what others see of it."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from collections.abc import Collection
from typing import NamedTuple

from unionfs.linux import libc as _l

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_CLOSE_RANGE_CLOEXEC = 4
_LAST_FD = 0x7FFFFFFF
_SI_KERNEL = 0x80
_SIGINFO_SIZE = 128
_CAP_DAC_READ_SEARCH = 2
_CAP_FSETID = 4
_CAP_SYS_ADMIN = 21
_INITIAL_USER_NAMESPACE = 0xEFFFFFFD  # PROC_USER_INIT_INO


def overflow_ids() -> tuple[int, int]:
    """(uid, gid) the kernel shows for ids that mean nothing where they are shown."""
    found = []
    for kind in ("uid", "gid"):
        with open(f"/proc/sys/kernel/overflow{kind}", encoding="ascii") as file:
            found.append(int(file.read()))
    return found[0], found[1]


def may_use_trusted_xattrs() -> bool:
    """Whether we may read and write ``trusted.*`` attributes: only with CAP_SYS_ADMIN in the initial user namespace (xattr(7))."""
    return _may_initially(_CAP_SYS_ADMIN)


def may_pass_through() -> bool:
    """Whether we may let the kernel's FUSE read and write files by itself: again CAP_SYS_ADMIN there (fuse_backing_open)."""
    return _may_initially(_CAP_SYS_ADMIN)


def may_follow_handles() -> bool:
    """Whether a file handle that cannot be opened has no object: with CAP_DAC_READ_SEARCH in the initial user namespace.

    In another one Linux since 6.11 opens some, and says ESTALE of those that lie below a directory of unmapped ids (may_decode_fh).
    """
    return _may_initially(_CAP_DAC_READ_SEARCH)


def _may_initially(capability: int) -> bool:
    """Whether we have it in the initial user namespace."""
    if os.stat("/proc/self/ns/user").st_ino != _INITIAL_USER_NAMESPACE:
        return False
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        effective = next(line.split()[1] for line in file if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> capability & 1)


def is_in_group(pid: int, gid: int) -> bool:
    """Whether the process *pid* is in the group *gid*; not, if it is gone or cannot be seen."""
    return str(gid) in (*_status_of(pid, "Gid:")[3:], *_status_of(pid, "Groups:"))


def may_keep_sgid(pid: int, gid: int) -> bool:
    """Whether the process *pid* is in the group *gid* or has CAP_FSETID (kernel in_group_or_capable)."""
    return may_keep_suid(pid) or is_in_group(pid, gid)


def may_keep_suid(pid: int) -> bool:
    """Whether a file that the process *pid* writes to keeps suid: with CAP_FSETID."""
    found = _status_of(pid, "CapEff:")
    return bool(found) and bool(int(found[0], 16) >> _CAP_FSETID & 1)


def is_privileged(pid: int) -> bool:
    """Whether the process *pid* has CAP_SYS_ADMIN; not, if it is gone or cannot be seen."""
    found = _status_of(pid, "CapEff:")
    return bool(found) and bool(int(found[0], 16) >> _CAP_SYS_ADMIN & 1)


def _status_of(pid: int, line: str) -> list[str]:
    """The words of a line of /proc/PID/status."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            return next((found.split()[1:] for found in file if found.startswith(line)), [])
    except OSError:
        return []


def die_with_parent() -> None:
    """Be killed when the thread that forked us is gone; changing user or capabilities afterwards undoes it (prctl(2))."""
    _l.checked(_l.libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))


def close_from(first: int, keep: Collection[int] = ()) -> None:
    """Close every descriptor from *first* on, except those in *keep*."""
    for fd in sorted(fd for fd in keep if fd >= first):
        os.closerange(first, fd)
        first = fd + 1
    _l.checked(_l.libc.close_range(ctypes.c_uint(first), ctypes.c_uint(_LAST_FD), 0))


def close_on_exec_from(first: int) -> None:
    """Mark every descriptor from *first* on close-on-exec."""
    _l.checked(_l.libc.close_range(ctypes.c_uint(first), ctypes.c_uint(_LAST_FD), _CLOSE_RANGE_CLOEXEC))


def replace_title(title: bytes) -> None:
    """Show *title* as this process's name and command line, and nothing as its environment.

    The strings execve left on the stack are overwritten: /proc/PID/cmdline and environ are read from there, by whoever
    may. The process must not use getenv or setenv of libc afterwards (os.environ is a copy and stays).
    """
    with open("/proc/self/stat", "rb") as stream:
        fields = stream.read().rpartition(b")")[2].split()
    arg_start, env_end = int(fields[45]), int(fields[48])  # fields 48 and 51 of proc_pid_stat(5)
    size = env_end - arg_start
    if arg_start and size > len(title):
        ctypes.memset(arg_start, 0, size)
        ctypes.memmove(arg_start, title, len(title))
    _l.checked(_l.libc.prctl(_PR_SET_NAME, title[:15], 0, 0, 0))


class Received(NamedTuple):
    """A signal taken from a ``signal_fd``; *from_kernel* tells one the terminal sent, to the whole group, from kill(2)'s."""

    number: int
    from_kernel: bool


def signal_fd(signals: Collection[int]) -> int:
    """Block *signals* and return a non-blocking descriptor that hands them out one by one (signalfd(2))."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    width = 8 * ctypes.sizeof(ctypes.c_ulong)
    words = [0] * (1024 // width)
    for number in signals:
        words[(number - 1) // width] |= 1 << (number - 1) % width
    mask = struct.pack(f"@{len(words)}L", *words)
    return _l.checked(_l.libc.signalfd(-1, mask, os.O_CLOEXEC | os.O_NONBLOCK))


def read_signal(fd: int) -> Received | None:
    """The next pending signal of a ``signal_fd``, None when there is none."""
    try:
        info = os.read(fd, _SIGINFO_SIZE)
    except BlockingIOError:
        return None
    number, _, code = struct.unpack_from("=Iii", info)
    return Received(number, code == _SI_KERNEL)


def reset_signals() -> None:
    """Every signal back to its default action and unblocked, as programs expect to start (Python ignores SIGPIPE)."""
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
