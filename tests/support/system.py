"""The few things the tests ask of the kernel directly: mounts, processes, FUSE connections.

Nothing here touches a path *inside* a mount, so nothing here can hang on one. Used by the watchdog (another
process) as well as by the fixtures.
"""

from __future__ import annotations

import ctypes
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MNT_DETACH = 2
SESSION_VARIABLE = "UNIONFS_TEST_SESSION"
FUSECTL = Path("/sys/fs/fuse/connections")

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class MountPoint:
    """One line of /proc/PID/mountinfo."""

    device: str  # "MAJOR:MINOR"
    target: str
    fstype: str

    @property
    def connection(self) -> int | None:
        """The number of the FUSE connection behind it, as fusectl names it: the minor of the anonymous device."""
        major, minor = self.device.split(":")
        return int(minor) if self.fstype.split(".")[0] == "fuse" and major == "0" else None


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), field)


def mount_points(pid: int | str = "self") -> list[MountPoint]:
    """All mounts that a process sees, oldest first."""
    points = []
    for line in Path(f"/proc/{pid}/mountinfo").read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        points.append(MountPoint(device=fields[2], target=_unescape(fields[4]), fstype=after.split(" ")[0]))
    return points


def mounted_at(target: Path | str) -> MountPoint | None:
    """The topmost mount on exactly this path, or None; never a stat of the path itself."""
    found = [point for point in mount_points() if point.target == str(target)]
    return found[-1] if found else None


def mounts_below(root: Path | str) -> list[MountPoint]:
    """Mounts on or below root, innermost (youngest) first."""
    prefix = f"{root}/"
    return [point for point in reversed(mount_points()) if f"{point.target}/".startswith(prefix)]


def mount(source: str, target: Path | str, fstype: str, flags: int = 0, data: str = "") -> None:
    """mount(2). Raises OSError."""
    if _libc.mount(os.fsencode(source), os.fsencode(target), fstype.encode(), flags, os.fsencode(data)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))


def unmount(target: Path | str, flags: int = 0) -> None:
    """umount2(2): no helper program is asked. Raises OSError."""
    if _libc.umount2(os.fsencode(target), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))


# ---- processes ----

@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    state: str  # one letter, as in /proc/PID/stat
    command: str

    @property
    def alive(self) -> bool:
        """A zombie does not count: pid 1 of a container may never reap it."""
        return self.state not in "ZX"


def process(pid: int) -> Process | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return None
    name, _, rest = stat.partition("(")[2].rpartition(")")
    state, parent = rest.split()[:2]
    return Process(pid, int(parent), state, command or f"[{name}]")


def processes() -> Iterator[Process]:
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (found := process(int(entry))) is not None:
            yield found


def _environment_holds(pid: int, marker: bytes) -> bool:
    try:
        return marker in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def session_processes(token: str, pytest_pid: int) -> list[Process]:
    """Every living process that this test session started: its descendants, and daemons that carry its mark.

    A descendant is found by its parents (a forked child shows the environment that pytest was started with); a
    daemon has lost its parents but kept the environment.
    """
    everything = {found.pid: found for found in processes()}

    def descends(found: Process | None) -> bool:
        while found is not None and found.pid != pytest_pid:
            found = everything.get(found.parent)
        return found is not None

    marker = f"{SESSION_VARIABLE}={token}".encode()
    return [
        found
        for found in everything.values()
        if found.alive and found.pid not in (pytest_pid, os.getpid())
        and (_environment_holds(found.pid, marker) or descends(found))
    ]


def wait_until_gone(pid: int, seconds: float) -> bool:
    """True when the process has ended (or is a zombie) within the time."""
    deadline = time.monotonic() + seconds
    while (found := process(pid)) is not None and found.alive:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


# ---- FUSE connections ----

def held_connections(pid: int) -> set[int]:
    """FUSE connections a process serves, also those mounted in another mount namespace (fdinfo since Linux 6.17)."""
    held: set[int] = set()
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return held
    for number in numbers:
        try:
            if os.readlink(f"/proc/{pid}/fd/{number}") == "/dev/fuse":
                info = Path(f"/proc/{pid}/fdinfo/{number}").read_text()
                held.update(int(found) for found in re.findall(r"^fuse_connection:\s*(\d+)", info, re.MULTILINE))
        except OSError:  # this one was closed meanwhile: a server that has just begun still imports
            continue
    return held


def mount_fusectl() -> None:
    """Make /sys/fs/fuse/connections usable; harmless when it is already, or when we may not."""
    if mounted_at(FUSECTL) is None:
        try:
            mount("none", FUSECTL, "fusectl")
        except OSError:
            pass


def abort_connection(number: int) -> bool:
    """Fail every request of the connection, pending ones too; False when it does not exist (any more)."""
    try:
        (FUSECTL / str(number) / "abort").write_text("1")
    except OSError:
        return False
    return True
