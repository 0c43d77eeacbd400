"""`unionfs run` as a user calls it, from the outside."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support import system
from tests.support.mounts import REPOSITORY, our_program

SECONDS = 30.0


@dataclass(frozen=True)
class Finished:
    """How a run ended."""

    code: int
    out: str
    err: str


@dataclass
class Sandbox:
    """Runs commands on a stack of lowers, topmost first; `runs` is where their throw-away directories are."""

    scratch: Path
    lowers: tuple[Path, ...]
    started: list[subprocess.Popen[str]] = field(default_factory=list)
    expected_log: list[str] = field(default_factory=list)

    @property
    def runs(self) -> Path:
        return self.scratch / "runs"

    @property
    def log(self) -> Path:
        return self.scratch / "server.log"

    def command_line(self, command: Sequence[str], options: Sequence[str] = ()) -> list[str]:
        lowers = [argument for lower in self.lowers for argument in ("--lower", str(lower))]
        return [*our_program(), "run", "--scratch", str(self.runs), *lowers, *options, *command]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "UNIONFS_LOG": str(self.log)}

    def start(self, *command: str, options: Sequence[str] = (), **popen: Any) -> subprocess.Popen[str]:
        """Start `unionfs run`; close() kills it if it still runs then."""
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(
            self.command_line(command, options),
            cwd=REPOSITORY,
            text=True,
            **{"env": self.environment(), **streams, **popen},
        )
        self.started.append(process)
        return process

    def run(self, *command: str, options: Sequence[str] = (), **popen: Any) -> Finished:
        """Run to the end."""
        process = self.start(*command, options=options, **popen)
        out, err = process.communicate(timeout=SECONDS)
        return Finished(process.returncode, out, err)

    def shell(self, script: str, *options: str, **popen: Any) -> Finished:
        """Run a shell script to the end."""
        return self.run("sh", "-c", script, options=options, **popen)

    def start_and_wait(self, script: str, *options: str) -> subprocess.Popen[str]:
        """Start a shell script and return when it has written "ready" on a line of its own."""
        process = self.start("sh", "-c", script, options=options)
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], SECONDS)[0], "no sign of the command"
        assert process.stdout.readline() == "ready\n"
        return process

    def log_complaints(self) -> list[str]:
        """What a server logged and should not have."""
        if not self.log.exists():
            return []
        lines = self.log.read_text(errors="replace").splitlines()
        return [f"log: {line}" for line in lines if any(word in line for word in (" WARNING ", " ERROR ", " CRITICAL "))]

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
            process.wait(SECONDS)


def children(pid: int) -> list[int]:
    """The children of a process, in the order of their start."""
    try:
        return sorted(int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    except OSError:
        return []


def pid_namespace(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/pid")


def server_of(runner: int) -> int | None:
    """The server among a runner's children, once it is there."""
    return _child(runner, inside=False)


def init_of(runner: int) -> int | None:
    """The container's pid 1 among a runner's children, once it is there."""
    return _child(runner, inside=True)


def _child(runner: int, *, inside: bool) -> int | None:
    own = pid_namespace(os.getpid())
    for child in children(runner):
        with contextlib.suppress(OSError):
            if (pid_namespace(child) != own) is inside:
                return child
    return None


def members(namespace: str) -> list[int]:
    """The living processes of a pid namespace."""
    found = []
    for process in system.processes():
        with contextlib.suppress(OSError):
            if process.alive and pid_namespace(process.pid) == namespace:
                found.append(process.pid)
    return found


def kill(pid: int | None) -> None:
    """SIGKILL, if it is still there."""
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_for(condition: Any, seconds: float = SECONDS) -> Any:
    """The first true value of condition()."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)
    return value
