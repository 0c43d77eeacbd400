"""``unionfs diff``."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

import click

from unionfs import state
from unionfs.cli.entry import say, warn
from unionfs.cli.group import CONTEXT, as_bytes, debug_option
from unionfs.errors import LayerError, MountError, printable
from unionfs.linux import mounts
from unionfs.linux.process import may_use_trusted_xattrs


@dataclass(frozen=True)
class _Layers:
    upper: bytes
    lowers: tuple[bytes, ...]
    userxattr: bool
    whfiles: bool
    #: Where the index is, for a mount with index=on.
    work: bytes | None = None


@click.command(context_settings=CONTEXT)
@click.option("--lower", multiple=True, type=as_bytes, metavar="DIR", help="A layer to compare with, topmost first. May be repeated.")
@click.option("--work", type=as_bytes, metavar="DIR", help="The work directory of an UPPER that was mounted with index=on.")
@click.option("--userxattr", is_flag=True, help="UPPER was written by a mount with that option (implied as there).")
@click.option("--whfiles", is_flag=True, help="Layers hold .wh. files as whiteouts.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.argument("where", type=as_bytes, metavar="MNT|UPPER")
@debug_option
def diff(where: bytes, lower: tuple[bytes, ...], work: bytes | None, userxattr: bool, whfiles: bool, as_json: bool) -> None:
    """Show what an upper directory changes: A added, C changed, D deleted.

    It is compared with the layers given, else with those of the mount it belongs to. With neither, new and changed are told apart by
    the marks of copy-up alone.
    """
    from unionfs.overlay.diff import changes
    from unionfs.overlay.features import Features

    layers = _of_mount(where) or _of_directory(where, bool(lower))
    work = work or layers.work
    userxattr = userxattr or layers.userxattr or not may_use_trusted_xattrs()
    features = Features(userxattr=userxattr, whfiles=whfiles or layers.whfiles, index=work is not None)
    found = changes(layers.upper, lower or layers.lowers, features, work=work)
    if as_json:
        say(json.dumps([{"kind": change.kind.value, "path": change.path.decode("utf-8", "surrogateescape")} for change in found]))
        return
    for change in found:
        say(f"{change.kind.value} {printable(change.path)}")


def _of_mount(path: bytes) -> _Layers | None:
    """The layers of the union mounted at *path*, None when there is none. Raises MountError for one without an upper."""
    info = mounts.mount_at(state.locate(path))
    if info is None or not state.is_ours(info):
        return None
    record = state.record_of(info)
    if record is None:
        raise MountError(f"{printable(path)}: the layers of this mount are not known here; name its upper directory instead")
    if record.upper is None:
        raise MountError(f"{printable(path)} has no upper directory: nothing can change")
    return _from_record(record, record.upper)


def _of_directory(path: bytes, lowers_given: bool) -> _Layers:
    """*path* as an upper, with the lowers of the live mount it belongs to, if any."""
    try:
        st = os.stat(path)
    except OSError as exc:
        raise LayerError(f"{printable(path)}: {exc.strerror}") from exc
    for record, _ in state.records():
        if record.upper is not None and record.claims[:1] == ((st.st_dev, st.st_ino),):
            return _from_record(record, path)
    if not lowers_given:
        warn("the lower layers are not known: use --lower to tell what is new from what is changed")
    return _Layers(path, (), userxattr=False, whfiles=False)


def _from_record(record: state.Record, upper: bytes) -> _Layers:
    words = record.options.split(",")
    work = record.work if "index=on" in words else None
    return _Layers(upper, record.lowers, userxattr="userxattr" in words, whfiles="whfiles" in words, work=work)
