"""How long does it take root to unpack an archive of 2,400 files into the mount: once, and twice at once?"""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that the file runs alone

from bench.harness import Size, Turn, Workload, main
from bench.tree import Layers, source_tree

ARCHIVE = "tree.tar"


def prepare(layers: Layers, size: Size) -> list[str]:
    """The archive is beside the layers, not in one, so that reading it costs every filesystem the same."""
    made = Layers(layers.base.with_name("archived-top"), layers.base.with_name("archived-base"))
    names = source_tree(made, size.files)
    with tarfile.open(layers.base.with_name(ARCHIVE), "w") as archive:
        for part in (made.base, made.top):
            archive.add(part / "tree", "tree")
    return names


def measure(turn: Turn) -> None:
    archive = turn.scratch.with_name(ARCHIVE)
    archive.read_bytes()  # in memory
    turn.time("tar x", "tar", "-xf", str(archive), per=("file", len(turn.names)))


def measure_two(turn: Turn) -> None:
    archive = turn.scratch.with_name(ARCHIVE)
    archive.read_bytes()  # in memory
    both = 'mkdir one two; tar -xf "$0" -C one & tar -xf "$0" -C two && wait $!'
    turn.time("two tar x at once", "sh", "-c", both, str(archive), per=("file", 2 * len(turn.names)))


WORKLOADS = (Workload("untar", prepare, measure), Workload("two untars", prepare, measure_two))


if __name__ == "__main__":
    main(*WORKLOADS, description=__doc__)
