"""``unionfs umount``."""

from __future__ import annotations

import click

from unionfs import state
from unionfs.cli.detach import detach
from unionfs.cli.entry import warn
from unionfs.cli.group import CONTEXT, as_bytes, debug_option
from unionfs.errors import printable
from unionfs.linux import mounts

_SECONDS = 10.0


@click.command(context_settings=CONTEXT)
@click.option("-l", "--lazy", is_flag=True, help="Take the mount away at once, even while it is in use.")
@click.argument("target", type=as_bytes, metavar="MNT")
@debug_option
def umount(target: bytes, lazy: bool) -> None:
    """End the union mounted at MNT.

    Returns when its server is gone, so that the upper can be used again; with -l the server stays until nobody uses the mount.
    """
    info, where = state.mount_of(target)
    server = state.find(info)
    try:
        detach(where, lazy=lazy)
        if server is None or not server.alive or lazy or _is_mounted(info.device):
            return
        if not server.wait_until_gone(_SECONDS):
            warn(f"{printable(where)} is unmounted, but its server (process {server.record.pid}) still runs: is it mounted elsewhere?")
    finally:
        if server is not None:
            server.close()


def _is_mounted(device: str) -> bool:
    """Whether the same union is still mounted at another place."""
    return any(info.device == device for info in mounts.mountinfo())
