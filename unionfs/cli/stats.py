"""``unionfs stats``."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

import click

from unionfs import state
from unionfs.cli import watch as watching
from unionfs.cli.entry import say
from unionfs.cli.group import CONTEXT, as_bytes, debug_option
from unionfs.cli.watch import Activity, megabytes
from unionfs.errors import MountError, UsageError, printable

_ENDING_SECONDS = 1.0


class _Command(click.Command):
    """Lets the number after --watch be left out, whatever comes next."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """click would take the mount for the number."""
        for place, word in enumerate(args):
            if word == "--watch" and not any(map(watching.is_number, args[place + 1 : place + 2])):
                args[place] = "--watch=1"
        return super().parse_args(ctx, args)


@click.command(cls=_Command, context_settings=CONTEXT)
@click.option("--watch", "interval", type=watching.as_seconds, metavar="[SECONDS]", help="Again and again, what happened since; else 1.")
@click.option("-n", "count", type=click.IntRange(min=1), metavar="COUNT", help="With --watch: so many times.")
@click.option("--json", "as_json", is_flag=True, help="For programs; with --watch an object a line.")
@click.argument("target", type=as_bytes, metavar="MNT")
@debug_option
def stats(target: bytes, interval: float | None, count: int | None, as_json: bool) -> None:
    """Show what the server of MNT has done and holds: requests by kind, nodes, open descriptors, memory.

    With --watch show it live: requests of each kind a second, and the microseconds one took. A terminal is redrawn. It ends when the
    mount goes away, or by Ctrl-C.
    """
    if interval is None and count is not None:
        raise UsageError("-n is for --watch")
    info, place = state.served_mount(target)
    if interval is not None:
        with suppress(KeyboardInterrupt):
            _watch(info.device, place, interval, count, as_json=as_json)
        return
    answer = state.ask(info.device, {"cmd": "stats"})
    if as_json:
        say(json.dumps(answer, indent=2, sort_keys=True))
        return
    for line in _lines(answer):
        say(line)


def _lines(answer: dict[str, Any]) -> list[str]:
    requests: dict[str, int] = answer.get("requests", {})
    lines = [f"{'requests':<20}{sum(requests.values()):>12}"]
    lines += [f"  {kind:<18}{count:>12}" for kind, count in sorted(requests.items(), key=lambda item: (-item[1], item[0]))]
    shown = {
        "nodes": "nodes", "open_fds": "open descriptors", "rss": "resident bytes", "pss": "  its own share",
        "cpu": "seconds of CPU", "uptime": "uptime in seconds",
    }  # fmt: skip
    lines += [f"{title:<20}{answer[key]:>12.0f}" for key, title in shown.items() if key in answer]
    return lines


def _watch(device: str, target: bytes, interval: float, count: int | None, *, as_json: bool) -> None:
    """Show what the server does until there have been *count* turns. MountError when it is gone."""
    screen = watching.Screen()
    question = watching.question(interval)
    before = state.ask(device, question)
    for _ in watching.turns(interval, count):
        try:
            after = state.ask(device, question)
        except MountError:
            if _stays(device):
                raise
            raise MountError(f"{printable(target)}: the mount has gone") from None
        did = watching.activity(before, after)
        if did is None:
            raise MountError(f"{printable(target)}: the mount has gone, and another has come")
        if as_json:
            say(json.dumps({"target": target.decode("utf-8", "surrogateescape"), **watching.as_json(did)}))
        else:
            screen.show(_live_lines(target, did, after["requests"]))
        before = after


def _stays(device: str) -> bool:
    """Whether the mount *device* is still there after a moment: a server that ends stops answering before it is known to be gone."""
    deadline = time.monotonic() + _ENDING_SECONDS
    while any(mount.device == device and mount.state != "elsewhere" for mount in state.all_mounts()):
        if time.monotonic() > deadline:
            return True
        time.sleep(_ENDING_SECONDS / 20)
    return False


def _live_lines(target: bytes, did: Activity, totals: dict[str, int]) -> list[str]:
    each = "" if did.each is None else f", {did.each:.1f} us each"
    lines = [
        f"{printable(target)}: {did.rate:.0f} requests a second{each}; {did.cpu:.0%} of a CPU",
        f"{did.nodes} nodes, {did.open_fds} open descriptors, {megabytes(did.rss)} in memory, {megabytes(did.pss)} of it its own share",
        f"{'kind':<18}{'a second':>12}{'us each':>12}{'of the time':>12}{'in all':>12}",
    ]
    measured = sum(did.microseconds.values())
    for kind in did.busiest():
        took = did.microseconds.get(kind, 0)
        one = watching.per_request(took, did.requests[kind])
        lines.append(
            f"{kind:<18}{did.requests[kind] / did.seconds:>12.0f}{'-' if one is None else f'{one:.1f}':>12}"
            f"{f'{took / measured:.0%}' if measured else '-':>12}{totals[kind]:>12}"
        )
    return lines
