"""``unionfs refresh``."""

from __future__ import annotations

import os

import click

from unionfs import state
from unionfs.cli.group import CONTEXT, as_bytes, debug_option
from unionfs.errors import MountError, UsageError, printable

#: A large tree is looked at name by name.
_SECONDS = 600.0


@click.command(context_settings=CONTEXT)
@click.argument("target", type=as_bytes, metavar="MNT")
@click.argument("path", type=as_bytes, metavar="[PATH]", required=False)
@debug_option
def refresh(target: bytes, path: bytes | None) -> None:
    """Have MNT show what was changed in its layers while it was mounted.

    All that is remembered of the mount, or of PATH and what is below it, is compared with the layers; once the command has returned,
    who looks sees the new state. PATH is one in the mount: relative to MNT, or absolute and below it. Symlinks in it are not followed.
    """
    info, place = state.served_mount(target)
    inside = b"" if path is None else inner_path(path, place, os.path.abspath(target))
    answer = state.ask(info.device, {"cmd": "refresh", "path": inside.decode("utf-8", "surrogateescape")}, seconds=_SECONDS)
    if "error" in answer:
        raise MountError(f"{printable(target)}: {answer['error']}")


def inner_path(path: bytes, *places: bytes) -> bytes:
    """*path* from the root of a mount that is known by *places*, by its text alone: nothing in the mount is touched. Raises UsageError."""
    inside = os.path.normpath(path)
    if inside.startswith(b"/"):
        inside = b"/" + inside.lstrip(b"/")  # POSIX lets two slashes be
        for place in places:
            if inside == place or inside.startswith(place.rstrip(b"/") + b"/"):
                inside = inside[len(place) :].lstrip(b"/")
                break
        else:
            raise UsageError(f"{printable(path)} is not below {printable(places[0])}")
    if inside.split(b"/")[0] == b"..":
        raise UsageError(f"{printable(path)} leads out of the mount")
    return b"" if inside == b"." else inside
