"""``unionfs mount``."""

from __future__ import annotations

from unionfs import options
from unionfs.cli import attach
from unionfs.cli.arguments import Command, Option
from unionfs.cli.entry import show_tracebacks
from unionfs.cli.layers import read_layers
from unionfs.options import MountOptions


def _mount(
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


def _notes() -> str:
    return "\b\nMount options (-o), separated by commas:\n" + options.describe()


mount = Command(
    _mount,
    (
        Option("lower", ("--lower",), "A read-only layer; the topmost first. May be repeated.", "DIR", repeated=True),
        Option("upper", ("--upper",), "Where changes go. Without it the mount is read-only.", "DIR"),
        Option("work", ("--work",), "The work directory of the upper, on the same mount.", "DIR"),
        Option("texts", ("-o",), "Mount options, see below. May be repeated.", "OPTS", repeated=True),
        Option("foreground", ("-f", "--foreground"), "Stay in the foreground; log to the terminal."),
        Option("debug", ("-d", "--debug"), "As -f, with debug output, and a traceback when it fails."),
        Option("log", ("--log",), "Log to FILE instead of $UNIONFS_LOG or syslog.", "FILE"),
        Option(
            "engine",
            ("--engine",),
            "Our server, the same on pyfuse3, the kernel's overlayfs, or that where it can.  [default: channel]",
            choices=options.ENGINES,
        ),
    ),
    ("target", "MNT"),
    _notes,
)
