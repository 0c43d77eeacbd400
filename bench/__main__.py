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

QUESTIONS = (walk, read_small, untar, rm_tree, copy_up, seq_read, seq_write, lookup, mount_latency, memory)

if __name__ == "__main__":
    main(*(workload for question in QUESTIONS for workload in question.WORKLOADS), description=__doc__)
