"""Fixtures for `unionfs run`: a small root filesystem, a way to run things on it, and the check that nothing is left.

This process is made a subreaper while these tests run: what a killed runner leaves becomes our child and can be seen.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.sandbox import Sandbox
from tests.support import requirements, system

_PR_SET_CHILD_SUBREAPER = 36
_SECONDS_TO_LEAVE = 10.0


@pytest.fixture(autouse=True)
def subreaper() -> Iterator[None]:
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    yield
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.fixture(scope="session")
def busybox_root(session_scratch: Path) -> Path:
    """A root filesystem of one static program and its links; no /dev, /proc or /sys."""
    program = shutil.which("busybox")
    if program is None:
        pytest.skip("busybox (Debian's busybox-static) is not installed")
    root = session_scratch / "busybox"
    for name in ("bin", "etc", "root", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy(program, root / "bin" / "busybox")
    for applet in subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split():
        with contextlib.suppress(FileExistsError):
            (root / "bin" / applet).symlink_to("busybox")
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc" / "motd").write_text("from the lower\n")
    return root


@pytest.fixture
def sandbox(scratch: Path, busybox_root: Path) -> Iterator[Sandbox]:
    """Runs commands on the busybox root; afterwards no process, mount, directory or complaint in the log may be left."""
    reason = requirements.missing_for_fuse()
    if reason:
        pytest.skip(reason)
    before = _descendants()
    made = Sandbox(scratch, (busybox_root,))
    yield made
    made.close()
    complaints = _left_behind(made, before)
    if complaints:
        pytest.fail("\n".join(complaints), pytrace=False)


def _left_behind(sandbox: Sandbox, before: set[int]) -> list[str]:
    deadline = time.monotonic() + _SECONDS_TO_LEAVE
    while (left := _leftovers(sandbox, before)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return [*left, *sandbox.log_complaints()]


def _leftovers(sandbox: Sandbox, before: set[int]) -> list[str]:
    """What a run may leave while it ends, and must not leave after that."""
    names = os.listdir(sandbox.runs) if sandbox.runs.exists() else []
    processes = [found for pid in _descendants() - before if (found := system.process(pid)) is not None]
    return [
        *(f"directory left behind: {sandbox.runs / name}" for name in names),
        *(f"process left behind: {found.pid} {found.command}" for found in processes),
        *(f"mount left behind: {point.target}" for point in system.mounts_below(sandbox.scratch)),
    ]


def _descendants() -> set[int]:
    """The living processes below this one; those that ended and are ours to bury are buried."""
    parents = {found.pid: found for found in system.processes()}
    found: set[int] = set()
    for pid, process in parents.items():
        ancestor: system.Process | None = process
        while ancestor is not None and ancestor.pid != os.getpid():
            ancestor = parents.get(ancestor.parent)
        if ancestor is None or pid == os.getpid():
            continue
        if process.alive:
            found.add(pid)
        elif process.parent == os.getpid() and process.command.startswith("[unionfs"):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
    return found
