"""Commands with a deadline, and the way out of a FUSE mount that has stopped answering.

A client of a hung FUSE server sleeps unkillably. Only `abort` in fusectl frees it, so every command of the
benches runs through `run`, which aborts the connection of its mount before it kills the command.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

FUSECTL = Path("/sys/fs/fuse/connections")


class Hung(Exception):
    """A command passed its deadline; its mount was aborted."""


class Failed(Exception):
    """A command exited with another status than 0; str() is the end of what it said."""

    def __init__(self, reason: str, status: int = 1) -> None:
        super().__init__(reason)
        self.status = status


def connection(target: Path) -> str | None:
    """The name in fusectl of the topmost FUSE mount on `target`, found without touching the mount."""
    found = None
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields, _, tail = line.partition(" - ")
        _, _, device, _, mountpoint = fields.split()[:5]
        if mountpoint == str(target) and tail.split()[0].startswith("fuse"):
            found = device.partition(":")[2]
    return found


def is_mounted(target: Path) -> bool:
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    return any(line.split()[4] == str(target) for line in lines)


def abort(target: Path) -> None:
    """End the FUSE connection mounted on `target`: its server and its clients get errors instead of waiting."""
    number = connection(target)
    if number is not None:
        # The connection may end by itself between the look and the write.
        with contextlib.suppress(OSError):
            (FUSECTL / number / "abort").write_text("1")


@contextlib.contextmanager
def fusectl() -> Iterator[None]:
    """Have fusectl mounted, and unmount it again if it was not."""
    if any(FUSECTL.iterdir()) or is_mounted(FUSECTL):
        yield
        return
    subprocess.run(["mount", "-t", "fusectl", "none", str(FUSECTL)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(FUSECTL)], check=False)


@contextlib.contextmanager
def watchdog(target: Path, seconds: float) -> Iterator[None]:
    """Abort the mount on `target` when the body takes longer: for system calls made by this process itself."""
    fired = threading.Event()

    def bite() -> None:
        fired.set()
        abort(target)

    timer = threading.Timer(seconds, bite)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if fired.is_set():
            raise Hung(f"no answer from {target.name} in {seconds:.0f} s")


def wait(pid: int, seconds: float) -> bool:
    """Whether a child ended in time. Popen.wait(timeout) sleeps up to 50 ms between its looks: no use in a bench."""
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(pidfd)


def run(
    argv: Sequence[str],
    target: Path | None = None,
    seconds: float = 60,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    output: bool = False,
) -> tuple[float, str]:
    """Run a command; returns (seconds it took, what it printed if `output`).

    `target` is the mount it works on. Raises Hung after the deadline, Failed on a non-zero exit.
    """
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(open("/dev/null", "rb"))
        # A server that stays behind keeps its copy of the descriptor: a file never blocks on that, a pipe would.
        said = stack.enter_context(open(os.memfd_create("said", os.MFD_CLOEXEC), "w+b"))
        started = time.perf_counter()
        process = subprocess.Popen(argv, stdin=source, stdout=said if output else subprocess.DEVNULL, stderr=said, cwd=cwd, env=env)
        ended = False
        try:
            ended = wait(process.pid, seconds)
            took = time.perf_counter() - started
        finally:
            if not ended:
                if target is not None:
                    abort(target)
                process.kill()
            process.wait()
        if not ended:
            raise Hung(f"{argv[0]} took longer than {seconds:.0f} s")
        said.seek(0)
        text = said.read().decode(errors="replace").strip()
    if process.returncode:
        raise Failed(f"{argv[0]} exited {process.returncode}: {text[-300:]}", process.returncode)
    return took, text
