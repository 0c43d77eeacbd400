"""How long do 1,000 updates of one row take, each a transaction, in an SQLite database of 20 MB in a lower layer?

The first of them copies the database up. SQLite is told not to wait for the disk (synchronous = off): what remains are
its small reads and writes, and a journal that is made and removed for each transaction.
"""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that the file runs alone

from bench.harness import Size, Turn, Workload, main
from bench.tree import Layers, text

ROW = 1000


def prepare(layers: Layers, size: Size) -> list[str]:
    connection = sqlite3.connect(layers.base / "data.db")
    with connection:
        connection.execute("create table item (number integer primary key, changes integer, content text)")
        content = text(ROW).decode()
        rows = ((0, content) for _ in range((size.database_mib << 20) // ROW))
        connection.executemany("insert into item (changes, content) values (?, ?)", rows)
    connection.close()
    return ["data.db"]


def measure(turn: Turn) -> None:
    count = turn.size.updates
    turn.ask({"updates of one row": "s"}, "update", turn.names[0], str(count), per=("update", count))


# SQLite refuses a database whose inode number changes when it is copied up, as it does there.
WORKLOADS = (Workload("sqlite", prepare, measure, unable=("unionfs-fuse",)),)


if __name__ == "__main__":
    main(*WORKLOADS, description=__doc__)
