"""What does one read or write of 4 KiB in a random place of a large file cost: from disk, from memory, to a new file?

With fio where that is installed, else with a loop in Python. The writes end with one fsync, which they share.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that the file runs alone

from bench.harness import Size, Turn, Workload, main
from bench.tree import Layers, text

COLD = 5  # a read from disk takes that much longer at least; there are fewer of them


def prepare(layers: Layers, size: Size) -> list[str]:
    (layers.base / "big").write_bytes(text(size.big_mib << 20))
    return ["big"]


def fio(name: str, what: str, mebibytes: int, count: int) -> tuple[str, ...]:
    job = (f"--name={what}", f"--filename={name}", f"--rw={what}", "--bs=4k", "--ioengine=psync", "--thread")
    # It must neither drop the caches we filled nor lay out the file anew.
    ours = ("--invalidate=0", "--fallocate=none", f"--size={mebibytes}M", f"--io_size={4 * count}k", "--end_fsync=1")
    return ("fio", *job, *ours, "--output-format=json")


def micros_of_fio(said: str, what: str) -> float:
    """Of reads the mean of fio's own clock, of writes their share of the whole time, which is in milliseconds."""
    (job,) = json.loads(said[said.index("{") : said.rindex("}") + 1])["jobs"]
    if what == "randread":
        return float(job["read"]["lat_ns"]["mean"]) / 1000
    return float(job["write"]["runtime"]) * 1000 / int(job["write"]["total_ios"])


def measure_one(turn: Turn, measure: str, name: str, what: str, count: int) -> None:
    per = ("read" if what == "randread" else "write", count)
    if shutil.which("fio") is None:
        turn.ask({measure: "us"}, "random-io", name, what, str(count), per=per)
        return
    with turn.counted(measure, per):
        _, said = turn.do(*fio(name, what, turn.size.big_mib, count), output=True)
    turn.note(measure, "us", micros_of_fio(said, what))


def measure(turn: Turn) -> None:
    size = turn.size
    copy = ("dd", "if=big", "bs=1M", "status=none")
    measure_one(turn, "4k random read, cold", "big", "randread", size.random_reads // COLD)
    turn.do(*copy, "of=/dev/null")
    measure_one(turn, "4k random read, warm", "big", "randread", size.random_reads)
    turn.do(*copy, "of=new", "conv=fsync")
    measure_one(turn, "4k random write", "new", "randwrite", size.random_writes)


WORKLOADS = (Workload("random-io", prepare, measure, cold=True),)


if __name__ == "__main__":
    main(*WORKLOADS, description=__doc__)
