"""``unionfs mount``."""

from __future__ import annotations

import click

from unionfs import options
from unionfs.cli import attach
from unionfs.cli.entry import show_tracebacks
from unionfs.cli.group import CONTEXT, as_bytes
from unionfs.cli.layers import read_layers
from unionfs.options import MountOptions


@click.command(context_settings=CONTEXT, epilog="\b\nMount options (-o), separated by commas:\n" + options.describe())
@click.option("--lower", multiple=True, type=as_bytes, metavar="DIR", help="A read-only layer; the topmost first. May be repeated.")
@click.option("--upper", type=as_bytes, metavar="DIR", help="Where changes go. Without it the mount is read-only.")
@click.option("--work", type=as_bytes, metavar="DIR", help="The work directory of the upper, on the same mount.")
@click.option("-o", "texts", multiple=True, type=as_bytes, metavar="OPTS", help="Mount options, see below. May be repeated.")
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground; log to the terminal.")
@click.option("-d", "--debug", is_flag=True, help="As -f, with debug output, and a traceback when it fails.")
@click.option("--log", type=as_bytes, metavar="FILE", help="Log to FILE instead of $UNIONFS_LOG or syslog.")
@click.option(
    "--engine",
    type=click.Choice(options.ENGINES),
    help="Our server, the same on pyfuse3, the kernel's overlayfs, or that where it can.  [default: channel]",
)
@click.argument("target", type=as_bytes, metavar="MNT")
def mount(
    lower: tuple[bytes, ...],
    upper: bytes | None,
    work: bytes | None,
    texts: tuple[bytes, ...],
    foreground: bool,
    debug: bool,
    log: bytes | None,
    engine: str | None,
    target: bytes,
) -> int:
    """Mount a union of directories at MNT.

    Returns 0 once the mount answers. `unionfs umount MNT` ends it.
    """
    if debug:
        show_tracebacks()
    given = _read(texts, lower, upper, work, engine)
    debug = debug or given.debug
    return attach.mount(
        attach.Request(
            options=given,
            target=attach.prepare_target(target),
            log=log,
            foreground=foreground or debug,
            debug=debug,
            engine=given.engine or options.ENGINES[0],
        )
    )


def _read(
    texts: tuple[bytes, ...], lower: tuple[bytes, ...], upper: bytes | None, work: bytes | None, engine: str | None
) -> MountOptions:
    found = read_layers(texts, lower, upper, work, engine)
    options.check_layers(found)
    return found
