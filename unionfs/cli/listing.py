"""``unionfs list``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from unionfs import state
from unionfs.cli.entry import say
from unionfs.cli.group import CONTEXT, debug_option
from unionfs.errors import printable


@click.command("list", context_settings=CONTEXT)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@debug_option
def list_mounts(as_json: bool) -> None:
    """Show the unions that are mounted, and their layers.

    A mount is live, dead (its server is gone; mounting over it, or unionfs umount, takes it away), elsewhere (in another mount
    namespace, or taken away lazily and still in use) or unknown (made by another user). The kernel's are those that --engine=kernel
    mounted and that were given no fsname=.
    """
    found = state.all_mounts()
    if as_json:
        say(json.dumps([_as_json(mount) for mount in found], indent=2))
        return
    for mount in found:
        for line in _lines(mount):
            say(line)


def _as_json(mount: state.Mount) -> dict[str, Any]:
    known = {} if mount.record is None else state.as_json(mount.record)
    known.pop("claims", None)
    target = mount.target.decode("utf-8", "surrogateescape")
    return {**known, "target": target, "state": mount.state, "device": mount.device}


def _lines(mount: state.Mount) -> Iterator[str]:
    record = mount.record
    if record is None:
        yield f"{printable(mount.target)} ({mount.state})"
        return
    process = f", process {record.pid}" if mount.state != "dead" and record.pid else ""
    yield f"{printable(mount.target)} ({mount.state}, engine {record.engine}, {record.options}{process})"
    if record.upper is not None and record.work is not None:
        yield f"    upper {printable(record.upper)}"
        yield f"    work  {printable(record.work)}"
    for lower in record.lowers:
        yield f"    lower {printable(lower)}"
    for lower in record.data_lowers:
        yield f"    data  {printable(lower)}"
