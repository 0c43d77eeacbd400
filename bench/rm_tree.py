"""How long does `rm -rf` of a tree of the lower layers take: a directory full of whiteouts at a time?"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that the file runs alone

from bench.harness import Size, Turn, Workload, main
from bench.tree import Layers, source_tree


def prepare(layers: Layers, size: Size) -> list[str]:
    return source_tree(layers, size.files)


def measure(turn: Turn) -> None:
    turn.time("rm -rf", "rm", "-rf", "tree", per=("file", len(turn.names)))


WORKLOADS = (Workload("rm-tree", prepare, measure),)


if __name__ == "__main__":
    main(*WORKLOADS, description=__doc__)
