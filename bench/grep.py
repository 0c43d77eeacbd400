"""How long does `grep -r` over the whole tree take, when everything has been read before?"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that the file runs alone

from bench.harness import Size, Turn, Workload, main
from bench.tree import Layers, source_tree


def prepare(layers: Layers, size: Size) -> list[str]:
    names = source_tree(layers, size.files)
    (layers.base / "tree/needle").write_text("needle\n")
    return [*names, "tree/needle"]


def measure(turn: Turn) -> None:
    search = ("grep", "-r", "needle", ".")
    for _ in range(2):
        turn.do(*search, output=True)
    # Printing to /dev/null, grep would stop at its first match.
    turn.time("third grep -r", *search, output=True, per=("file", len(turn.names)))


WORKLOADS = (Workload("grep", prepare, measure),)


if __name__ == "__main__":
    main(*WORKLOADS, description=__doc__)
