"""``unionfs stats``."""

from __future__ import annotations

import json
from typing import Any

import click

from unionfs import state
from unionfs.cli.entry import say
from unionfs.cli.group import CONTEXT, as_bytes, debug_option


@click.command(context_settings=CONTEXT)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.argument("target", type=as_bytes, metavar="MNT")
@debug_option
def stats(target: bytes, as_json: bool) -> None:
    """Show what the server of MNT has done and holds: requests by kind, nodes, open descriptors, memory."""
    info, _ = state.served_mount(target)
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
    shown = {"nodes": "nodes", "open_fds": "open descriptors", "rss": "resident bytes", "uptime": "uptime in seconds"}
    lines += [f"{title:<20}{answer[key]:>12.0f}" for key, title in shown.items() if key in answer]
    return lines
