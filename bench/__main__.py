"""All questions, one after the other: `bench/run`."""

from __future__ import annotations

from bench import (
    copy_up,
    lookup,
    memory,
    mount_latency,
    read_small,
    rm_tree,
    seq_read,
    seq_write,
    untar,
    walk,
)
from bench.harness import main

# rm_tree after those that make many files, see harness.empty
QUESTIONS = (walk, read_small, untar, copy_up, rm_tree, seq_read, seq_write, lookup, mount_latency, memory)

if __name__ == "__main__":
    main(*(workload for question in QUESTIONS for workload in question.WORKLOADS), description=__doc__)
