"""What does one LOOKUP cost, there and back: of a missing name, of a file, and while another request is slow?

Every name is asked for once, so that no cache of the kernel answers. The slow request is an fsync of a large file,
which a server should run beside the others. The native line is what the client itself costs.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that the file runs alone

from bench.harness import Size, Turn, Workload, main
from bench.tree import Layers, empty_files


def prepare(layers: Layers, size: Size) -> list[str]:
    return empty_files(layers, size.lookups, in_directory=size.lookups)


def measure(turn: Turn) -> None:
    count = str(turn.size.lookups)
    turn.ask({"missing name": "us"}, "misses", count, per=("name", turn.size.lookups))
    turn.ask({"file": "us"}, "hits", turn.names[0], count, per=("file", turn.size.lookups))
    waiting = {"missing name during fsync": "us", "longest wait during fsync": "ms"}
    turn.ask(waiting, "misses-during-fsync", str(turn.size.big_mib), "3")


WORKLOADS = (Workload("lookup", prepare, measure),)


if __name__ == "__main__":
    main(*WORKLOADS, description=__doc__)
