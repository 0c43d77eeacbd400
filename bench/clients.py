"""Client programs that the benches run inside a mount: `python clients.py FUNCTION ARG...` prints its figures.

Imports nothing of the project, so that it starts fast; the current directory is the mount.
"""

from __future__ import annotations

import mmap
import os
import sys
import time

BATCH = 100


def micros(names: list[str]) -> float:
    """Microseconds for each access(2) of a name; unlike stat(2) it costs Python no exception when there is none."""
    access, exists = os.access, os.F_OK
    started = time.perf_counter()
    for name in names:
        access(name, exists)
    return (time.perf_counter() - started) / len(names) * 1e6


def median(figures: list[float]) -> float:
    return sorted(figures)[len(figures) // 2]


def misses(count: int) -> float:
    """Median over batches of `count` look-ups of names that nobody asked for before."""
    batches = [[f"new{start + i:07}" for i in range(BATCH)] for start in range(0, count, BATCH)]
    return median([micros(batch) for batch in batches])


def hits(directory: str, count: int) -> float:
    """Median over batches of one look-up of each of the files file0000000, ... of a directory."""
    os.chdir(directory)
    batches = [[f"file{start + i:07}" for i in range(BATCH)] for start in range(0, count, BATCH)]
    return median([micros(batch) for batch in batches])


def misses_during_fsync(mebibytes: int, cycles: int) -> tuple[float, float]:
    """Look-ups begun while another process waits in fsync of a file it wrote: median (us) and longest (ms).

    A server that does one thing at a time answers a single one, after the fsync.
    """
    syncing = mmap.mmap(-1, 1)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            write_and_sync(syncing, mebibytes, cycles)
            status = 0
        finally:
            syncing[0] = 2
            os._exit(status)
    figures = []
    number = 0
    while syncing[0] != 2:
        if syncing[0] == 0:
            time.sleep(0.0002)
            continue
        number += 1
        figures.append(micros([f"other{number:07}"]))
        os.sched_yield()  # under a real-time policy on one CPU the child would never run again
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit("the file could not be written")
    return median(figures), max(figures) / 1000


def write_and_sync(syncing: mmap.mmap, mebibytes: int, cycles: int) -> None:
    block = os.urandom(1 << 20)
    for cycle in range(cycles):
        fd = os.open(f"big{cycle}", os.O_WRONLY | os.O_CREAT, 0o644)
        for _ in range(mebibytes):
            os.write(fd, block)
        syncing[0] = 1
        os.fsync(fd)
        syncing[0] = 0
        os.close(fd)


def append(listing: str) -> float:
    """Seconds to append one line to each of the files that are named in `listing`."""
    with open(listing) as lines:
        names = lines.read().split()
    started = time.perf_counter()
    for name in names:
        fd = os.open(name, os.O_WRONLY | os.O_APPEND)
        os.write(fd, b"one more line\n")
        os.close(fd)
    return time.perf_counter() - started


def update(database: str, count: int) -> float:
    """Seconds to change `count` rows of a table, each in a transaction of its own that does not wait for the disk."""
    import random
    import sqlite3

    pick = random.Random(3)
    started = time.perf_counter()
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("pragma synchronous = off")
    (rows,) = connection.execute("select max(number) from item").fetchone()
    for _ in range(count):
        connection.execute("update item set changes = changes + 1 where number = ?", (pick.randint(1, rows),))
    connection.close()
    return time.perf_counter() - started


def random_io(name: str, what: str, count: int) -> float:
    """Microseconds for each of `count` reads or writes of 4 KiB in random places; after writes the file is synced."""
    import random

    pick = random.Random(4)
    blocks = [4096 * pick.randrange(os.stat(name).st_size // 4096) for _ in range(count)]
    block = os.urandom(4096)
    fd = os.open(name, os.O_RDONLY if what == "randread" else os.O_WRONLY)
    started = time.perf_counter()
    if what == "randread":
        for place in blocks:
            os.pread(fd, 4096, place)
    else:
        for place in blocks:
            os.pwrite(fd, block, place)
        os.fsync(fd)
    took = time.perf_counter() - started
    os.close(fd)
    return took / count * 1e6


def main(function: str, *arguments: str) -> None:
    if function == "misses":
        print(misses(int(arguments[0])))
    elif function == "hits":
        print(hits(arguments[0], int(arguments[1])))
    elif function == "misses-during-fsync":
        print(*misses_during_fsync(int(arguments[0]), int(arguments[1])))
    elif function == "append":
        print(append(arguments[0]))
    elif function == "update":
        print(update(arguments[0], int(arguments[1])))
    elif function == "random-io":
        print(random_io(arguments[0], arguments[1], int(arguments[2])))
    else:
        raise SystemExit(f"no such client: {function}")


if __name__ == "__main__":
    main(*sys.argv[1:])
