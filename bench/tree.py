"""The trees the benches work on: the same bytes on every machine and in every run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WORDS = b"layer upper lower work whiteout opaque merge copy rename link mount inode node name entry cache page".split()
LARGEST_FILE = 400_000


@dataclass(frozen=True)
class Layers:
    """The two lower directories of every mount; `top` is above `base`."""

    top: Path
    base: Path


def text(size: int) -> bytes:
    """Deterministic lines of words, `size` bytes."""
    pick = random.Random(1)
    lines = [b" ".join(pick.choices(WORDS, k=12)) + b"\n" for _ in range(200)]
    block = b"".join(pick.choices(lines, k=8000))
    return (block * (size // len(block) + 1))[:size]


def directories() -> Iterator[str]:
    """168 directories, three levels deep."""
    for first in range(8):
        yield f"tree/d{first}"
        for second in range(4):
            yield f"tree/d{first}/e{second}"
            for third in range(4):
                yield f"tree/d{first}/e{second}/f{third}"


def directories_above(names: list[str]) -> int:
    """How many directories a walk that meets all `names` reads, the root of the tree among them."""
    return len({parent for name in names for parent in Path(name).parents})


def source_tree(layers: Layers, files: int) -> list[str]:
    """Write `files` files below `tree/`, 2,400 of them 59 MB; returns their relative names, sorted.

    Most are a few kilobytes and a few are large, as in a source tree. Every sixth is in `top` and the rest in
    `base`, so that every directory is merged from two layers.
    """
    pick = random.Random(2)
    pool = text(4 * LARGEST_FILE)
    places = list(directories())
    for layer in (layers.base, layers.top):
        for place in places:
            (layer / place).mkdir(parents=True, exist_ok=True)
    names = []
    for number in range(files):
        name = f"{places[number % len(places)]}/file{number:05}.txt"
        size = min(LARGEST_FILE, int(pick.lognormvariate(9.3, 1.3)))
        start = pick.randrange(len(pool) - size)
        layer = layers.top if number % 6 == 0 else layers.base
        (layer / name).write_bytes(pool[start : start + size])
        names.append(name)
    return sorted(names)


def empty_files(layers: Layers, files: int, in_directory: int) -> list[str]:
    """Write `files` empty files, `in_directory` to a directory, into `base`; returns the directories."""
    made = []
    for number in range(files):
        if number % in_directory == 0:
            made.append(f"many/d{number // in_directory:05}")
            (layers.base / made[-1]).mkdir(parents=True)
        (layers.base / made[-1] / f"file{number:07}").touch()
    return made
