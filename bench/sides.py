"""What is measured side by side: how each filesystem is found and mounted. Listed in the order of the tables."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unionfs-bench"
# Ours: what is said to `mount` in the order of the tables, the default first. What a version does not know is left out.
OURS = {
    "unionfs channel": ("--engine=channel",),
    "unionfs io=writeback": ("--engine=channel", "-o", "io=writeback"),
    "unionfs io=passthrough": ("--engine=channel", "-o", "io=passthrough"),
    "unionfs pyfuse3": ("--engine=pyfuse3",),
}


@dataclass(frozen=True)
class Stack:
    """The directories of one mount; `lowers` is topmost first. `volatile` asks for no fsync at copy-up."""

    lowers: tuple[Path, ...]
    upper: Path
    work: Path
    target: Path
    volatile: bool

    @property
    def overlay_options(self) -> str:
        lowers = ":".join(map(str, self.lowers))
        return f"lowerdir={lowers},upperdir={self.upper},workdir={self.work}"


@dataclass(frozen=True)
class Side:
    """One filesystem. `mount` gives the command that returns once mounted, or None for the plain directory."""

    name: str
    program: tuple[str, ...]
    mount: Callable[[tuple[str, ...], Stack], list[str]] | None
    fuse: bool = True
    ours: bool = False

    def version(self) -> str:
        if not self.fuse:
            return os.uname().release
        asked = subprocess.run([*self.program, "--version"], capture_output=True, text=True, env=environment(), timeout=30, check=False)
        # Debian's print the version of libfuse's fusermount as well.
        lines = [line for line in (asked.stdout + asked.stderr).splitlines() if "version" in line.lower()]
        own = [line for line in lines if "overlay" in line or "unionfs" in line] or lines
        return own[0].strip() if own else "unknown"


def environment() -> dict[str, str]:
    """For every program measured: the checkout is importable, messages are in English, git is not configured."""
    git = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    return {**os.environ, **git, "PYTHONPATH": str(ROOT), "LC_ALL": "C"}


def our_program() -> tuple[str, ...]:
    installed = ROOT / ".venv/bin/unionfs"
    if installed.exists():
        return (str(installed),)
    return (sys.executable, "-m", "unionfs")


def kernel(program: tuple[str, ...], stack: Stack) -> list[str]:
    options = stack.overlay_options + (",volatile" if stack.volatile else "")
    return [*program, "-t", "overlay", "overlay", "-o", options, str(stack.target)]


def fuse_overlayfs(program: tuple[str, ...], stack: Stack) -> list[str]:
    options = stack.overlay_options + (",volatile" if stack.volatile else "")
    return [*program, "-o", options, str(stack.target)]


def unionfs_fuse(program: tuple[str, ...], stack: Stack) -> list[str]:
    branches = ":".join([f"{stack.upper}=RW", *(f"{lower}=RO" for lower in stack.lowers)])
    return [*program, "-o", "cow,allow_other,use_ino,suid,dev", branches, str(stack.target)]


def our_mount(chosen: tuple[str, ...]) -> Callable[[tuple[str, ...], Stack], list[str]]:
    def command(program: tuple[str, ...], stack: Stack) -> list[str]:
        argv = [*program, "mount", *chosen]
        for lower in stack.lowers:
            argv += ["--lower", str(lower)]
        argv += ["--upper", str(stack.upper), "--work", str(stack.work)]
        return [*argv, *(["-o", "volatile"] if stack.volatile else []), str(stack.target)]

    return command


def all_sides() -> list[Side]:
    ours = our_program()
    return [
        Side("native", ("",), None, fuse=False),
        Side("kernel overlayfs", ("mount",), kernel, fuse=False),
        Side("fuse-overlayfs", ("/usr/bin/fuse-overlayfs",), fuse_overlayfs),
        Side("unionfs-fuse", ("/usr/bin/unionfs-fuse",), unionfs_fuse),
        Side("fuse-overlayfs 2", (str(CACHE / "bin/fuse-overlayfs"),), fuse_overlayfs),
        *(Side(name, ours, our_mount(chosen), ours=True) for name, chosen in OURS.items()),
    ]


def is_present(side: Side) -> bool:
    return side.mount is None or shutil.which(side.program[0]) is not None
