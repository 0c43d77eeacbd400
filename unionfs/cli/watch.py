"""Looking at servers again and again: what ``unionfs stats --watch`` and ``top`` share."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import click

from unionfs.cli.entry import say

#: How long a server goes on measuring after a question, beyond the next one.
_MORE_SECONDS = 5.0
_SHORTEST = 0.1
_LONGEST = 3600.0
_HOME = "\x1b[H"
_CLEAR = "\x1b[2J"
_REST_OF_LINE = "\x1b[K"
_REST_OF_SCREEN = "\x1b[J"


@dataclass(frozen=True)
class Activity:
    """What a server did in ``seconds``, and what it holds at their end.

    ``requests`` and ``microseconds``: by kind; the latter is empty where the engine does not measure. ``cpu``: CPUs that it kept busy.
    ``pss``: bytes, what is shared divided among those who share it; as many as ``rss`` where the kernel does not tell.
    """

    seconds: float
    requests: dict[str, int]
    microseconds: dict[str, int]
    cpu: float
    rss: int
    pss: int
    nodes: int
    open_fds: int

    @property
    def rate(self) -> float:
        """Requests a second."""
        return sum(self.requests.values()) / self.seconds

    @property
    def each(self) -> float | None:
        """Microseconds a request; None without requests, or where they are not measured."""
        return per_request(sum(self.microseconds.values()), sum(self.requests.values()))

    def busiest(self) -> list[str]:
        """Kinds, the one first that took most time, or was asked most."""
        return sorted(self.requests, key=lambda kind: (-self.microseconds.get(kind, 0), -self.requests[kind], kind))


def per_request(microseconds: int, requests: int) -> float | None:
    """Microseconds each of *requests* took, None if that is not known."""
    return microseconds / requests if microseconds and requests else None


def activity(before: dict[str, Any], after: dict[str, Any]) -> Activity | None:
    """What happened between two answers to "stats"; None if they are not of one server."""
    seconds = after["uptime"] - before["uptime"]
    if after["pid"] != before["pid"] or seconds <= 0:
        return None
    return Activity(
        seconds, _grown(before["requests"], after["requests"]), _grown(before["microseconds"], after["microseconds"]),
        (after["cpu"] - before["cpu"]) / seconds, after["rss"], after.get("pss", after["rss"]), after["nodes"], after["open_fds"],
    )  # fmt: skip


def _grown(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {kind: count - before.get(kind, 0) for kind, count in after.items() if count > before.get(kind, 0)}


def as_json(did: Activity) -> dict[str, Any]:
    """For programs."""
    return {
        "seconds": round(did.seconds, 3), "requests": did.requests, "microseconds": did.microseconds, "cpu": round(did.cpu, 4),
        "rss": did.rss, "pss": did.pss, "nodes": did.nodes, "open_fds": did.open_fds,
    }  # fmt: skip


def question(interval: float) -> dict[str, Any]:
    """What to ask a server that will be asked again after *interval*."""
    return {"cmd": "stats", "timed": interval + _MORE_SECONDS}


def is_number(word: str) -> bool:
    """Whether *word* is one, sensible or not."""
    try:
        float(word)
    except ValueError:
        return False
    return True


def as_seconds(value: str) -> float:
    """The type of an interval."""
    seconds = float(value) if is_number(value) else math.nan
    if not _SHORTEST <= seconds <= _LONGEST:
        raise click.BadParameter(f"{value!r} is no number of seconds from {_SHORTEST:g} to {_LONGEST:g}")
    return seconds


def turns(interval: float, count: int | None) -> Iterator[int]:
    """0, 1, ... *count* - 1, or for ever; before each *interval* seconds pass, less what the caller took."""
    due = time.monotonic()
    turn = 0
    while count is None or turn < count:
        due = max(due + interval, time.monotonic())
        time.sleep(due - time.monotonic() if due > time.monotonic() else 0)
        yield turn
        turn += 1


class Screen:
    """Standard output: a terminal shows the latest state, anything else all of them, with an empty line between two."""

    def __init__(self) -> None:
        self._redraws = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._used = False

    def show(self, lines: Sequence[str]) -> None:
        """*lines*; of those a terminal has no room for, the beginning."""
        if self._redraws:
            self._redraw(lines)
        else:
            say("\n".join(["", *lines] if self._used else lines))
        self._used = True

    def _redraw(self, lines: Sequence[str]) -> None:
        columns, rows = os.get_terminal_size(sys.stdout.fileno())
        if columns <= 0 or rows <= 1:  # it does not know
            columns, rows = 80, 24
        shown = [line[:columns] + _REST_OF_LINE for line in lines[: rows - 1]]
        say(("" if self._used else _CLEAR) + _HOME + "\n".join(shown) + ("\n" if shown else "") + _REST_OF_SCREEN)


def megabytes(size: int) -> str:
    """*size* in bytes, for people."""
    return f"{size / 1e6:.1f} MB"
