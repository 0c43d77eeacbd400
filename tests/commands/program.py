"""Calling the programs the way users do, and looking at what they leave."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import system
from tests.support.mounts import REPOSITORY, Layers, our_program

SECONDS = 40.0
Argument = str | bytes | Path


@dataclass(frozen=True)
class Done:
    """How a call ended."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()


def environment(**more: str) -> dict[str, str]:
    """The test's environment and *more*, with what the program needs when it is not installed."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "ignore", **more}


def run(
    *arguments: Argument, command: Sequence[Argument] | None = None, env: Mapping[str, str] | None = None, cwd: Path | None = None,
    pass_fds: Sequence[int] = (), user: int | None = None,
) -> Done:  # fmt: skip
    """Run `unionfs ARGUMENTS`, or *command*; returns once its output has ended, so nobody may have kept a copy."""
    done = subprocess.run(
        [*(our_program() if command is None else command), *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=False,
        env=environment() if env is None else env, cwd=cwd, pass_fds=pass_fds, user=user, group=user, timeout=SECONDS,
        extra_groups=None if user is None else [],
    )  # fmt: skip
    return Done(done.returncode, done.stdout.decode(errors="surrogateescape"), done.stderr.decode(errors="surrogateescape"))


def named(directory: Path, name: str) -> list[str]:
    """A command in *directory* that is our program called by *name*."""
    program = our_program()
    link = directory / name
    if len(program) == 1:
        link.symlink_to(program[0])
    else:  # what the launcher does where one is installed
        link.write_text(f'#!/bin/sh\nUNIONFS_ARGV0={name} PYTHONPATH={REPOSITORY} exec {" ".join(program)} "$@"\n')
        link.chmod(0o755)
    return [str(link)]


def make_layers(scratch: Path, *, lowers: int = 1) -> Layers:
    """Directories for a mount: each lower holds `file` and a file named after itself."""
    found = tuple(scratch / f"lower{number}" for number in range(lowers))
    for lower in found:
        lower.mkdir()
        (lower / "file").write_text(f"in {lower.name}\n")
        (lower / f"only-{lower.name}").write_text("here\n")
    upper, work = scratch / "upper", scratch / "work"
    upper.mkdir()
    work.mkdir()
    return Layers(found, upper, work)


def flags(layers: Layers) -> list[str]:
    """*layers* as arguments of `unionfs mount`."""
    words = [word for lower in layers.lowers for word in ("--lower", str(lower))]
    return [*words, "--upper", str(layers.upper), "--work", str(layers.work)] if layers.upper else words


def texts(layers: Layers) -> str:
    """*layers* as mount options."""
    found = "lowerdir=" + ":".join(str(lower) for lower in layers.lowers)
    return f"{found},upperdir={layers.upper},workdir={layers.work}" if layers.upper else found


@dataclass(frozen=True)
class Place:
    """A directory to mount on."""

    path: Path

    def is_mounted(self) -> bool:
        """Now; a mount comes and goes."""
        return system.mounted_at(self.path) is not None

    @property
    def device(self) -> str:
        point = system.mounted_at(self.path)
        assert point is not None
        return point.device

    @property
    def server(self) -> int:
        """The process that serves what is mounted here, as the registry has it."""
        pid = listed(self.path)["pid"]
        assert isinstance(pid, int)
        return pid


def listed(target: Path) -> dict[str, Any]:
    """What `unionfs list` says of one mount."""
    found: list[dict[str, Any]] = json.loads(run("list", "--json").out)
    return next((mount for mount in found if mount["target"] == os.fsencode(target).decode("utf-8", "surrogateescape")), {})


@contextmanager
def place(scratch: Path, name: str | bytes = "mnt") -> Iterator[Place]:
    """A directory to mount on; whatever is mounted there at the end is taken away, and its server with it."""
    path = scratch / os.fsdecode(name)
    path.mkdir()
    found = Place(path)
    try:
        yield found
    finally:
        while found.is_mounted():
            connection = system.mounted_at(path)
            assert connection is not None
            for process in system.processes():
                if connection.connection in system.held_connections(process.pid):
                    os.kill(process.pid, 18)  # SIGCONT: a stopped server could not see its end
            system.unmount(path, system.MNT_DETACH)


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Until condition() holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
