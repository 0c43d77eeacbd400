"""How fast is one large lower file read from start to end: from disk, and from the page cache?"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that the file runs alone

from bench.harness import Size, Turn, Workload, main
from bench.tree import Layers, text


def prepare(layers: Layers, size: Size) -> list[str]:
    (layers.base / "big").write_bytes(text(size.big_mib << 20))
    return ["big"]


def measure(turn: Turn) -> None:
    read = ("dd", "if=big", "of=/dev/null", "bs=1M", "status=none")
    mebibytes = ("MiB", turn.size.big_mib)
    turn.do("dd", "if=/dev/null", "of=/dev/null", "status=none")  # the program itself is in memory
    turn.time("first read", *read, per=mebibytes)
    turn.time("second read", *read, per=mebibytes)


WORKLOADS = (Workload("seq-read", prepare, measure, cold=True),)


if __name__ == "__main__":
    main(*WORKLOADS, description=__doc__)
