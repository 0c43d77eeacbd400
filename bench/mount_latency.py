"""How long does it take from starting the mount command until the mount answers?"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that the file runs alone

from bench.harness import Size, Turn, Workload, main
from bench.tree import Layers


def prepare(layers: Layers, size: Size) -> list[str]:
    return []


def measure(turn: Turn) -> None:
    turn.note("until it answers", "ms", turn.mount_seconds * 1000)


WORKLOADS = (Workload("mount", prepare, measure, native=False),)


if __name__ == "__main__":
    main(*WORKLOADS, description=__doc__)
