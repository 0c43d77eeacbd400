"""What the layers together say about a directory: pure, fed with plain (name, type) lists.

Sources are whatever the caller uses to name a layer's copy of the directory; here they are only compared and handed back.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from typing import Generic, TypeVar

S = TypeVar("S")


class Entry(Generic[S]):
    """One visible name of a merged directory.

    ``source``: the topmost layer that has it, whose copy is shown.
    ``kind``: S_IFDIR, S_IFREG ... of that copy.
    ``more``: for a directory, the layers below whose directories of that name merge into it (before opaqueness is looked at).
    ``below``: whether a layer below shows something under this name when the topmost copy goes: then removing it needs a whiteout.
    ``cookie``: its place in the listing, never reused.
    ``node``: slot for the owner of the index.
    """

    __slots__ = ("below", "cookie", "kind", "more", "node", "source")

    def __init__(self, source: S, kind: int, cookie: int) -> None:
        self.source = source
        self.kind = kind
        self.cookie = cookie
        self.more: tuple[S, ...] = ()
        self.below = False
        self.node: object | None = None


def merge(listings: Iterable[tuple[S, Iterable[tuple[bytes, int]]]]) -> dict[bytes, Entry[S]]:
    """Merge *listings*, topmost layer first, of (name, type); type 0 is a whiteout.

    A whiteout hides its name in all layers below it; so does anything that is no directory; directories of one name merge until one of the
    two stands between them.
    """
    found: dict[bytes, Entry[S]] = {}
    closed: set[bytes] = set()  # names about which the layers below have no say any more
    for source, listing in listings:
        for name, kind in listing:
            if name in closed:
                continue
            entry = found.get(name)
            if entry is None:
                if kind == 0:
                    closed.add(name)
                else:
                    found[name] = Entry(source, kind, len(found) + 1)
                continue
            if kind == 0:
                closed.add(name)
                continue
            entry.below = True
            if entry.kind == stat.S_IFDIR == kind:
                entry.more += (source,)
            else:
                closed.add(name)
    return found
