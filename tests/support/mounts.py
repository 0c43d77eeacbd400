"""Mounts for tests: ours through the command line, the kernel's overlayfs, and a third for comparison.

Every mount made here is undone by Mounts.close, whatever the test did. A mount that cannot be unmounted plainly is
detached lazily and reported, as is a server that stays, and any line of its log that says WARNING or worse and that
the test did not announce with Mount.expect_log.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import system
from unionfs.linux.process import may_use_trusted_xattrs

REPOSITORY = Path(__file__).resolve().parents[2]
USER_OPTIONS = "index=off,metacopy=off,xino=off,userxattr"  # with a word on redirect_dir the kernel refuses it to users
KERNEL_OPTIONS = "redirect_dir=on,index=off,metacopy=off,xino=off" if may_use_trusted_xattrs() else USER_OPTIONS
MOUNT_SECONDS = 30.0
_BAD_LOG_LINE = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b|^Traceback ")


def our_program() -> list[str]:
    """The installed command, or the module where nothing is installed."""
    installed = REPOSITORY / ".venv" / "bin" / "unionfs"
    return [str(installed)] if installed.exists() else [sys.executable, "-m", "unionfs"]


@dataclass(frozen=True)
class Layers:
    """The directories of one stack. `lowers` is topmost first; below them are the data-only ones."""

    lowers: tuple[Path, ...]
    upper: Path | None = None
    work: Path | None = None
    data: tuple[Path, ...] = field(default=(), kw_only=True)


class MountFailed(Exception):
    """The mount command said no. `status` is its exit code, str() what it printed."""

    def __init__(self, status: int, output: str) -> None:
        super().__init__(output.strip() or f"exit status {status}")
        self.status = status


@dataclass(eq=False)
class Mount:
    """One live mount."""

    target: Path
    layers: Layers
    kind: str
    log: Path | None = None
    servers: tuple[int, ...] = ()
    expected_log: list[str] = field(default_factory=list)
    _done: bool = False
    _killed: bool = False

    @property
    def path(self) -> bytes:
        return os.fsencode(self.target)

    @property
    def alive(self) -> bool:
        """Still mounted, and its servers still run."""
        return system.mounted_at(self.target) is not None and all(
            (found := system.process(pid)) is not None and found.alive for pid in self.servers)

    def expect_log(self, pattern: str) -> None:
        """Announce WARNING or ERROR lines that match this regular expression; others still fail the test."""
        self.expected_log.append(pattern)

    def kill_server(self) -> None:
        """SIGKILL, as a crash would; what is left mounted is cleaned up by unmount()."""
        self.kill_expected()
        for pid in self.servers:
            os.kill(pid, signal.SIGKILL)
        for pid in self.servers:
            system.wait_until_gone(pid, 10)

    def kill_expected(self) -> None:
        """Announce that the server will die before the mount."""
        self._killed = True

    def unmount(self) -> list[str]:
        """Unmount and wait for the server's end. Returns what went wrong, one line each."""
        if self._done:
            return []
        self._done = True
        return [*self._death(), *self._detach(), *self._servers_left(), *self.log_complaints()]

    def _death(self) -> list[str]:
        """A server that is gone while its mount is still there was not asked to go."""
        if self._killed or self.alive or system.mounted_at(self.target) is None:
            return []
        log = self.log.read_text(errors="replace")[-2000:] if self.log and self.log.exists() else ""
        return [f"{self.target}: the server died on its own; its log ends: {log or 'nothing'}"]

    def _detach(self) -> list[str]:
        deadline = time.monotonic() + 2
        while True:
            try:
                system.unmount(self.target)
                return []
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.ENOENT):
                    return []  # the test unmounted it itself
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    system.unmount(self.target, system.MNT_DETACH)
                    return [f"{self.target}: could only be unmounted lazily: {error.strerror}"]
            time.sleep(0.01)

    def _servers_left(self) -> list[str]:
        left = [pid for pid in self.servers if not system.wait_until_gone(pid, 10)]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        return [f"{self.target}: server {pid} was still there 10 s after the unmount" for pid in left]

    def log_complaints(self) -> list[str]:
        """The lines of the server's log that no test should cause without announcing them."""
        if self.log is None or not self.log.exists():
            return []
        lines = self.log.read_text(errors="replace").splitlines()
        return [
            "\n".join([f"{self.log.name}: {line}", *lines[number + 1:number + 30 if "Traceback" in line else 0]])
            for number, line in enumerate(lines)
            if _BAD_LOG_LINE.search(line) and not any(re.search(known, line) for known in self.expected_log)
        ]


def _run_to_its_end(command: Sequence[str], environment: dict[str, str] | None = None) -> None:
    """Run a mount command to its end. Its output goes to a file: a server that keeps a pipe open must not stop us."""
    with os.fdopen(os.memfd_create("mount output"), "w+b") as output:
        started = subprocess.run(command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                 timeout=MOUNT_SECONDS, check=False, env=environment)
        output.seek(0)
        if started.returncode != 0:
            raise MountFailed(started.returncode, output.read().decode(errors="replace"))


def _servers_of(target: Path) -> tuple[int, ...]:
    """The processes that hold the connection of the FUSE mount at target."""
    point = system.mounted_at(target)
    if point is None or point.connection is None:
        return ()
    return tuple(found.pid for found in system.processes() if point.connection in system.held_connections(found.pid))


def _joined(paths: Sequence[Path]) -> str:
    return ":".join(str(path) for path in paths)


class Mounts:
    """Makes mounts under one scratch directory and undoes them."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        #: Arguments of every mount of ours, from the environment: the same tests in another mode.
        self.always = shlex.split(os.environ.get("UNIONFS_TEST_MOUNT", ""))
        self.made: list[Mount] = []
        self._numbers = itertools.count()

    def _target(self) -> Path:
        target = self.scratch / f"mnt{next(self._numbers)}"
        target.mkdir(mode=0o755)
        return target

    def _keep(self, mount: Mount) -> Mount:
        self.made.append(mount)
        return mount

    def ours(self, layers: Layers, *options: str, target: Path | None = None,
             environment: dict[str, str] | None = None, prefix: Sequence[str] = ()) -> Mount:
        """Mount with `unionfs mount`, started by the command `prefix` if any; options are further arguments.

        Raises MountFailed."""
        target = target or self._target()
        log = self.scratch / f"{target.name}.{next(self._numbers)}.log"
        command = [*prefix, *our_program(), "mount", "--log", str(log), *self.always, *options]
        for lower in layers.lowers:
            command += ["--lower", str(lower)]
        for below in layers.data:
            command += ["-o", f"datadir+={below}"]
        if layers.upper is not None:
            command += ["--upper", str(layers.upper), "--work", str(layers.work)]
        _run_to_its_end([*command, str(target)], environment)
        return self._keep(Mount(target, layers, "ours", log, _servers_of(target)))

    def kernel(self, layers: Layers, *, target: Path | None = None, options: str = KERNEL_OPTIONS) -> Mount:
        """Mount the kernel's overlayfs. One lower alone is given an empty companion, which it demands."""
        target = target or self._target()
        lowers = layers.lowers
        if layers.upper is None and len(lowers) == 1:
            empty = self.scratch / f"empty{next(self._numbers)}"
            empty.mkdir()
            lowers = (*lowers, empty)
        data = ["::".join([f"lowerdir={_joined(lowers)}", *map(str, layers.data)]), options]
        if layers.upper is not None:
            data.append(f"upperdir={layers.upper},workdir={layers.work}")
        try:
            system.mount("overlay", target, "overlay", data=",".join(data))
        except OSError as error:
            raise MountFailed(error.errno or 0, str(error)) from error
        return self._keep(Mount(target, layers, "kernel"))

    def fuse_overlayfs(self, layers: Layers, *more: str, target: Path | None = None) -> Mount:
        """Mount Debian's fuse-overlayfs, with *more* options: known to be wrong in places, it shows what the comparison can find."""
        target = target or self._target()
        program = shutil.which("fuse-overlayfs")
        assert program is not None, "fuse-overlayfs is not installed"
        options = f"lowerdir={_joined(layers.lowers)}"
        if layers.upper is not None:
            options += f",upperdir={layers.upper},workdir={layers.work}"
        _run_to_its_end([program, "-o", ",".join([options, *more]), str(target)])
        return self._keep(Mount(target, layers, "fuse-overlayfs", None, _servers_of(target)))

    def by_kind(self, kind: str) -> Callable[..., Mount]:
        """The mounting function of a name: ours, pyfuse3 (our reference engine), kernel or fuse-overlayfs. It takes the layers, a target,
        and as `options` a text of -o."""
        def ours(layers: Layers, *, options: str = "", target: Path | None = None) -> Mount:
            return self.ours(layers, *(("-o", options) if options else ()), target=target)

        def pyfuse3(layers: Layers, *, options: str = "", target: Path | None = None) -> Mount:
            return ours(layers, options=",".join(filter(None, ("engine=pyfuse3", options))), target=target)

        def fuse_overlayfs(layers: Layers, *, options: str = "", target: Path | None = None) -> Mount:
            return self.fuse_overlayfs(layers, target=target)

        functions: dict[str, Callable[..., Mount]] = {
            "ours": ours, "pyfuse3": pyfuse3, "kernel": self.kernel, "fuse-overlayfs": fuse_overlayfs}
        return functions[kind]

    def close(self) -> list[str]:
        """Undo all mounts, youngest first. Returns everything that went wrong."""
        complaints = list(itertools.chain.from_iterable(mount.unmount() for mount in reversed(self.made)))
        self.made.clear()
        for point in system.mounts_below(self.scratch):
            complaints.append(f"{point.target}: a {point.fstype} mount was left behind")
            with contextlib.suppress(OSError):
                system.unmount(point.target, system.MNT_DETACH)
        return complaints
