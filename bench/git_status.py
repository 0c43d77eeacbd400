"""How long does the third `git status` of a repository of 310 files take: as it is, and when git may not lock its index?

Its first run sees other inode numbers than the index has, and writes the index; from then on it only looks.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that the file runs alone

from bench import guard, sides
from bench.harness import Size, Turn, Workload, main
from bench.tree import Layers, source_tree

LONG_AGO = 1_000_000_000  # git compares the content of files that are as young as its index


def prepare(layers: Layers, size: Size) -> list[str]:
    """The repository is in the lower layer alone, as one that a container image brings."""
    names = source_tree(Layers(layers.base, layers.base), size.tracked)
    for name in names:
        os.utime(layers.base / name, (LONG_AGO, LONG_AGO))
    author = ("-c", "user.name=bench", "-c", "user.email=bench@example.org")
    for command in (("init", "-q"), ("add", "."), (*author, "commit", "-q", "-m", "All files")):
        guard.run(["git", *command], cwd=layers.base, env=sides.environment())
    return names


def measure(turn: Turn) -> None:
    for _ in range(2):
        turn.do("git", "status")
    turn.time("third git status", "git", "status")
    # The option sets GIT_OPTIONAL_LOCKS=0.
    turn.time("git status without locks", "git", "--no-optional-locks", "status")


WORKLOADS = (Workload("git-status", prepare, measure, needs="git"),)


if __name__ == "__main__":
    main(*WORKLOADS, description=__doc__)
