"""How fast is one large new file written, with fsync at the end?"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that the file runs alone

from bench.harness import Size, Turn, Workload, main
from bench.tree import Layers


def prepare(layers: Layers, size: Size) -> list[str]:
    return []


def measure(turn: Turn) -> None:
    count = f"count={turn.size.big_mib}"
    write = ("dd", "if=/dev/zero", "of=big", "bs=1M", count, "conv=fsync", "status=none")
    turn.time("write and fsync", *write, per=("MiB", turn.size.big_mib))


WORKLOADS = (Workload("seq-write", prepare, measure),)


if __name__ == "__main__":
    main(*WORKLOADS, description=__doc__)
