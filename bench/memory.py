"""How much memory does a server need: after mount, for each file it has seen, and when the kernel has forgotten them?

RSS of all server processes of the mount. A walk of 200,000 files (--nodes) gives each a node; drop_caches makes the kernel
forget the nodes, and a good server gives their memory back.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that the file runs alone

from bench.harness import Size, Turn, Workload, drop_caches, main
from bench.tree import Layers, empty_files

IN_DIRECTORY = 1000


def prepare(layers: Layers, size: Size) -> list[str]:
    return empty_files(layers, size.nodes, IN_DIRECTORY)


def measure(turn: Turn) -> None:
    mounted = turn.server_kib()
    with turn.counted("walk", ("directory", len(turn.names))):
        turn.do("find", ".", "-printf", "%i %s\\n")
    walked = turn.server_kib()
    forgotten = after_forgetting(turn)
    nodes = turn.size.nodes + len(turn.names)
    turn.note("after mount", "MiB", mounted / 1024)
    turn.note("growth for each node", "KiB", (walked - mounted) / nodes)
    turn.note("growth given back", "%", 100 * (walked - forgotten) / max(walked - mounted, 1))


def after_forgetting(turn: Turn) -> int:
    """The server's memory once the kernel's FORGETs have been answered, which takes it a moment."""
    drop_caches(2)
    least = turn.server_kib()
    still = 0
    while still < (2 if turn.size.quick else 10):
        time.sleep(0.2)
        now = turn.server_kib()
        still = still + 1 if now >= least else 0
        least = min(least, now)
    return least


WORKLOADS = (Workload("memory", prepare, measure, native=False, kernel=False, rounds=1),)


if __name__ == "__main__":
    main(*WORKLOADS, description=__doc__)
