"""The layers and mount options a command is told, in flags or in ``-o``: the same for every command that takes them."""

from __future__ import annotations

from unionfs import engines, options
from unionfs.cli.entry import warn
from unionfs.errors import UsageError, printable
from unionfs.options import MountOptions


def read_layers(
    texts: tuple[bytes, ...], lower: tuple[bytes, ...], upper: bytes | None, work: bytes | None, engine: str | None = None
) -> MountOptions:
    """What *texts* (of -o) and the flags say together; UsageError when that is not to be understood or its engine cannot do it."""
    parsed = options.parse(texts)
    if parsed.unknown:
        raise UsageError(f"unknown mount option {', '.join(printable(name) for name in parsed.unknown)} (see unionfs mount --help)")
    found = parsed.options
    if found.remount:
        raise UsageError("option remount is for mount(8): mount -o remount,ro MNT")
    for flag, typed, name, written in (
        ("--lower", lower, "lowerdir=", found.lowers),
        ("--upper", upper, "upperdir=", found.upper),
        ("--work", work, "workdir=", found.work),
        ("--engine", engine, "engine=", found.engine),
    ):
        if typed and written:
            raise UsageError(f"{flag} and -o {name} are both given")
    found = found._replace(
        lowers=lower or found.lowers, upper=upper or found.upper, work=work or found.work, engine=engine or found.engine
    )
    engines.check_engine(found, found.engine or options.ENGINES[0])
    for line in parsed.warnings:
        warn(line)
    return found
