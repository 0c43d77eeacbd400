"""All questions, one after the other: `bench/run`."""

from __future__ import annotations

from bench import (
    compiler,
    copy_up,
    git_status,
    grep,
    list_long,
    lookup,
    memory,
    mount_latency,
    python_start,
    random_io,
    read_small,
    rm_tree,
    seq_read,
    seq_write,
    sqlite,
    untar,
    walk,
)
from bench.harness import main

# rm_tree after those that make many files, see harness.empty
FILES = (walk, read_small, grep, list_long, git_status, python_start, compiler, untar, copy_up, sqlite, rm_tree)
DATA = (seq_read, seq_write, random_io)
SERVER = (lookup, mount_latency, memory)
QUESTIONS = (*FILES, *DATA, *SERVER)

if __name__ == "__main__":
    main(*(workload for question in QUESTIONS for workload in question.WORKLOADS), description=__doc__)
