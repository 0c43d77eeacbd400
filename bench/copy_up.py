"""How long does it take to append a line to each of 1,000 lower files: with fsync before rename, and volatile?

The Debian and Rust fuse-overlayfs and unionfs-fuse never fsync a copy, so `volatile` compares like with like.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that the file runs alone

from bench.harness import Size, Turn, Workload, main
from bench.tree import Layers, source_tree


def prepare(layers: Layers, size: Size) -> list[str]:
    return source_tree(layers, size.files)[: size.appended]


def measure(turn: Turn) -> None:
    listing = turn.scratch / "names"
    listing.write_text("\n".join(turn.names))
    turn.ask({"append to lower files": "s"}, "append", str(listing), per=("file", len(turn.names)))


WORKLOADS = (
    Workload("copy-up", prepare, measure),
    Workload("copy-up volatile", prepare, measure, volatile=True),
)


if __name__ == "__main__":
    main(*WORKLOADS, description=__doc__)
