"""How long does a Python that lies in the union take to import asyncio, json and email, when it has done so before?

A copy of the interpreter and of its standard library is in the lower layer. Python asks of each file it opens whether
that is a terminal, and the kernel of each program it starts whether that has capabilities.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that the file runs alone

from bench import guard
from bench.harness import Size, Turn, Workload, main
from bench.tree import Layers

PROGRAM = "usr/bin/python3"
IMPORT = "import asyncio, json, email"
UNUSED = ("test", "idlelib", "site-packages", "dist-packages", "config-*", "ensurepip", "lib2to3", "tkinter", "*.a")
LOADED = "; import sys; print(sys.prefix, sum(bool(getattr(m, '__cached__', None)) for m in sys.modules.values()))"


def prepare(layers: Layers, size: Size) -> list[str]:
    """Returns the number of modules that are loaded from files of the union."""
    program = layers.base / PROGRAM
    program.parent.mkdir(parents=True)
    shutil.copy2(os.path.realpath(sys.executable), program)
    library = Path(sysconfig.get_path("stdlib"))
    place = layers.base / "usr" / library.relative_to(sys.base_prefix)
    shutil.copytree(library, place, ignore=shutil.ignore_patterns(*UNUSED), ignore_dangling_symlinks=True)
    # The first run writes what byte code is missing.
    _, said = guard.run([str(program), "-I", "-c", IMPORT + LOADED], output=True)
    prefix, _, loaded = said.rpartition(" ")
    if prefix != str(layers.base / "usr"):
        raise guard.Failed(f"a copied Python takes its library from {prefix}")
    return [loaded]


def measure(turn: Turn) -> None:
    start = (f"./{PROGRAM}", "-I", "-c", IMPORT)
    for _ in range(2):
        turn.do(*start)
    turn.time("third import", *start, per=("module", int(turn.names[0])))


WORKLOADS = (Workload("python", prepare, measure),)


if __name__ == "__main__":
    main(*WORKLOADS, description=__doc__)
