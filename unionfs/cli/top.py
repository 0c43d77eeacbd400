"""``unionfs top``."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import click

from unionfs import state
from unionfs.cli import watch as watching
from unionfs.cli.entry import say
from unionfs.cli.group import CONTEXT, debug_option
from unionfs.cli.watch import Activity, megabytes
from unionfs.errors import MountError, printable

#: One that has stopped must not hold up the others.
_ANSWER_SECONDS = 1.0
_SHOWN_KINDS = 3
#: device to its answer; of those that gave none, what is wrong.
Answers = dict[str, dict[str, Any] | str]


@click.command(context_settings=CONTEXT)
@click.option("-n", "count", type=click.IntRange(min=1), metavar="COUNT", help="So many times; else until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="For programs: an object a line.")
@click.argument("interval", type=watching.as_seconds, metavar="[SECONDS]", default="2")
@debug_option
def top(interval: float, count: int | None, as_json: bool) -> None:
    """Show live what the servers of all mounts do, the busiest first: every SECONDS (2), what happened since.

    Requests a second, microseconds one took, share of a CPU, memory, and the kinds of requests that took most of the time. A terminal is
    redrawn. Mounts of the kernel's have no server, and those of other users are not shown.
    """
    with suppress(KeyboardInterrupt):
        _watch(interval, count, as_json=as_json)


def _watch(interval: float, count: int | None, *, as_json: bool) -> None:
    screen = watching.Screen()
    question = watching.question(interval)
    before = _ask_all(_served(), question)
    for _ in watching.turns(interval, count):
        served = _served()
        answers = _ask_all(served, question)
        found = [(mount, _did(before.get(mount.device), answers[mount.device])) for mount in served]
        found.sort(key=lambda each: -each[1].rate if isinstance(each[1], Activity) else 0.0)
        if as_json:
            say(json.dumps({"mounts": [_as_json(mount, did) for mount, did in found]}))
        else:
            screen.show(_lines(found))
        before = answers


def _served() -> list[state.Mount]:
    """The mounts that have a server of ours, one for each server."""
    found = {
        mount.device: mount
        for mount in state.all_mounts()
        if mount.record is not None and mount.record.pid and mount.state in ("live", "elsewhere")
    }
    return list(found.values())


def _ask_all(served: Iterable[state.Mount], question: dict[str, Any]) -> Answers:
    """All at once: a server that has stopped is waited for only once."""
    answers: Answers = {}

    def ask(device: str) -> None:
        try:
            answers[device] = state.ask(device, question, seconds=_ANSWER_SECONDS)
        except MountError:
            answers[device] = "does not answer"

    threads = [threading.Thread(target=ask, args=(mount.device,), daemon=True) for mount in served]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def _did(before: dict[str, Any] | str | None, after: dict[str, Any] | str) -> Activity | str:
    """What a server did since, or why that is not known."""
    if isinstance(after, str):
        return after
    return (watching.activity(before, after) if isinstance(before, dict) else None) or "has just come"


def _as_json(mount: state.Mount, did: Activity | str) -> dict[str, Any]:
    target = {"target": mount.target.decode("utf-8", "surrogateescape"), "device": mount.device}
    return {**target, "state": did} if isinstance(did, str) else {**target, "state": mount.state, **watching.as_json(did)}


def _lines(found: Sequence[tuple[state.Mount, Activity | str]]) -> list[str]:
    active = [did for _, did in found if isinstance(did, Activity)]
    lines = [
        f"{len(found)} mount{'s' * (len(found) != 1)}, {sum(did.rate for did in active):.0f} requests a second, "
        f"{sum(did.cpu for did in active):.0%} of a CPU, {megabytes(sum(did.pss for did in active))}",
        f"{'requests/s':>10} {'us each':>8} {'cpu':>5} {'memory':>9} {'nodes':>8}  {'mount':<30}  busiest",
    ]
    for mount, did in found:
        figures = f"{did:<44}" if isinstance(did, str) else _figures(did)
        kinds = [] if isinstance(did, str) else did.busiest()[:_SHOWN_KINDS]
        lines.append(f"{figures}  {printable(mount.target):<30}  {', '.join(kinds)}".rstrip())
    return lines


def _figures(did: Activity) -> str:
    each = "-" if did.each is None else f"{did.each:.1f}"
    return f"{did.rate:>10.0f} {each:>8} {did.cpu:>5.0%} {megabytes(did.pss):>9} {did.nodes:>8}"
