"""How long does `find` over the whole tree take, with empty and with filled caches?

The first find after a mount pays for every look-up; the second should cost the kernel alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that the file runs alone

from bench.harness import Size, Turn, Workload, main
from bench.tree import Layers, directories_above, source_tree

FIND = ("find", ".", "-printf", "%i %m %s %T@ %p\\n")


def prepare(layers: Layers, size: Size) -> list[str]:
    return source_tree(layers, size.files)


def measure(turn: Turn) -> None:
    turn.do("find", "/dev/null")  # the program itself is in memory
    for measure in ("first find", "second find", "third find"):
        turn.time(measure, *FIND, per=("directory", directories_above(turn.names)))


WORKLOADS = (Workload("walk", prepare, measure, cold=True),)


if __name__ == "__main__":
    main(*WORKLOADS, description=__doc__)
