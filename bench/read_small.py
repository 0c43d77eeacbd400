"""How long does it take to read 2,400 small files: from disk, and when everything has been read before?"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that the file runs alone

from bench.harness import Size, Turn, Workload, main
from bench.tree import Layers, source_tree


def prepare(layers: Layers, size: Size) -> list[str]:
    return source_tree(layers, size.files)


def measure(turn: Turn) -> None:
    listing = turn.scratch / "names"
    listing.write_text("\0".join(turn.names))
    cat = ("xargs", "-0", "-a", str(listing), "cat")
    turn.do("xargs", "-a", "/dev/null", "cat")  # the programs themselves are in memory
    turn.do("find", ".", "-size", "+0")
    turn.time("first cat of all", *cat, per=("file", len(turn.names)))
    turn.do(*cat)
    turn.time("third cat of all", *cat, per=("file", len(turn.names)))


WORKLOADS = (Workload("read-small", prepare, measure, cold=True),)


if __name__ == "__main__":
    main(*WORKLOADS, description=__doc__)
