"""How long does `ls -lR` of the whole tree take, when it has been listed before: names, attributes and the xattrs ls asks for?"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that the file runs alone

from bench.harness import Size, Turn, Workload, main
from bench.tree import Layers, directories_above, source_tree


def prepare(layers: Layers, size: Size) -> list[str]:
    return source_tree(layers, size.files)


def measure(turn: Turn) -> None:
    listing = ("ls", "-lR")
    for _ in range(2):
        turn.do(*listing)
    turn.time("third ls -lR", *listing, per=("directory", directories_above(turn.names)))


WORKLOADS = (Workload("list-long", prepare, measure),)


if __name__ == "__main__":
    main(*WORKLOADS, description=__doc__)
