"""How long does it take to compile a program of one source and five headers in the union, to a place outside it?"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that the file runs alone

from bench.harness import Size, Turn, Workload, main
from bench.tree import Layers

HEADERS = 5


def prepare(layers: Layers, size: Size) -> list[str]:
    """Every header includes the next; the first two are in the top layer."""
    names = [f"include/part{number}.h" for number in range(HEADERS)]
    for number, name in enumerate(names):
        layer = layers.top if number < 2 else layers.base
        (layer / "include").mkdir(exist_ok=True)
        following = f'#include "part{number + 1}.h"\n' if number + 1 < HEADERS else ""
        (layer / name).write_text(f"#pragma once\n{following}static inline int part{number}(int x) {{ return x + {number}; }}\n")
    calls = " + ".join(f"part{number}(n)" for number in range(HEADERS))
    (layers.base / "main.c").write_text(f'#include "part0.h"\nint main(int n, char **words) {{ return !words + {calls}; }}\n')
    return [*names, "main.c"]


def measure(turn: Turn) -> None:
    compile_it = ("cc", "-Iinclude", "-o", str(turn.scratch / "program"), "main.c")
    for _ in range(2):
        turn.do(*compile_it)
    turn.time("third cc", *compile_it, per=("file", len(turn.names)))


WORKLOADS = (Workload("compiler", prepare, measure, needs="cc"),)


if __name__ == "__main__":
    main(*WORKLOADS, description=__doc__)
