"""The mount program: what mount(8) and container engines call, without ``click`` so that it starts fast.

Two forms. ``PROG -o OPTS TARGET`` is fuse-overlayfs's, with libfuse's flags: -f foreground, -d debug, -s nothing. ``PROG SOURCE TARGET
-o OPTS`` is mount(8)'s for its helpers: -f mounts nothing, -s tolerates what is unknown (as we do anyway), -n and -v mean nothing to us.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from unionfs import __version__, engines, options, state
from unionfs.cli import attach
from unionfs.cli.entry import say, show_tracebacks, tell, warn
from unionfs.errors import MountError, UnionfsError, UsageError, printable
from unionfs.linux import mounts
from unionfs.options import MountOptions, Parsed

#: mount(8)'s exit codes.
USAGE = 1
FAILURE = 32

_FLAGS = b"fdsnvihV"
_LONG = {
    b"--help": b"h",
    b"--version": b"V",
    b"--debug": b"d",
    b"--foreground": b"f",
    b"--fake": b"f",
    b"--verbose": b"v",
    b"--no-mtab": b"n",
    b"--sloppy": b"s",
    b"--internal-only": b"i",
}
_VALUED = {b"-o": "o", b"-t": "t", b"-N": "N", b"--options": "o", b"--types": "t", b"--log": "log"}

_HELP = """\
usage: {name} [-f] [-d] [--log FILE] -o OPTIONS TARGET
       {name} SOURCE TARGET [-fsnvi] [-o OPTIONS]

Mount a union of directories. In the second form, mount(8)'s, SOURCE stands for lowerdir= where that is not given, and -f mounts nothing.

Options:
{options}"""


class Call:
    """The command line, taken apart."""

    def __init__(self) -> None:
        self.flags: set[str] = set()
        self.texts: list[bytes] = []
        self.operands: list[bytes] = []
        self.log: bytes | None = None


def main(name: str, arguments: Sequence[bytes]) -> int:
    """Run as the mount program *name*; the exit code."""
    by_mount = False
    try:
        call = take_apart(arguments)
        by_mount = len(call.operands) == 2
        if "V" in call.flags:
            say(f"{name}: version {__version__}")
            return 0
        if "h" in call.flags:
            say(_HELP.format(name=name, options=options.describe()))
            return 0
        return _mount(call)
    except UsageError as exc:
        tell(exc)
        return USAGE
    except (UnionfsError, OSError) as exc:
        code = tell(exc)
        return FAILURE if by_mount else code


def take_apart(arguments: Sequence[bytes]) -> Call:
    """The parts of the command line. Raises UsageError."""
    call = Call()
    rest = iter(arguments)
    for argument in rest:
        if argument == b"--":
            call.operands += rest
        elif argument.startswith(b"--"):
            _take_long(call, argument, rest)
        elif argument.startswith(b"-") and len(argument) > 1:
            _take_short(call, argument, rest)
        else:
            call.operands.append(argument)
    return call


def _take_long(call: Call, argument: bytes, rest: Iterator[bytes]) -> None:
    name, equals, value = argument.partition(b"=")
    if name in _VALUED:
        _take_value(call, _VALUED[name], value if equals else next(rest, None), name)
    elif argument in _LONG:
        call.flags.add(_LONG[argument].decode())
    else:
        raise UsageError(f"unknown option {printable(argument)}")


def _take_short(call: Call, argument: bytes, rest: Iterator[bytes]) -> None:
    if argument[:2] in _VALUED:
        _take_value(call, _VALUED[argument[:2]], argument[2:] or next(rest, None), argument[:2])
        return
    for flag in argument[1:]:
        if flag not in _FLAGS:
            raise UsageError(f"unknown option {printable(argument)}")
        call.flags.add(chr(flag))


def _take_value(call: Call, kind: str, value: bytes | None, name: bytes) -> None:
    if value is None:
        raise UsageError(f"option {printable(name)} needs a value")
    if kind == "o":
        call.texts.append(value)
    elif kind == "log":
        call.log = value


def _mount(call: Call) -> int:
    if len(call.operands) not in (1, 2):
        raise UsageError("expected a directory to mount on" if not call.operands else "expected at most SOURCE and TARGET")
    by_mount = len(call.operands) == 2
    parsed = options.parse(call.texts)
    if parsed.options.remount:
        return _remount(call.operands[-1], call.texts)
    if by_mount:
        parsed = parsed._replace(options=_with_source(parsed.options, call.operands[0]))
    options.check_layers(parsed.options)
    engine = parsed.options.engine or options.ENGINES[0]
    if parsed.options.whfiles is None:  # container engines unpack layers so for a mount program; who says kernel knows that it reads none
        parsed = parsed._replace(options=parsed.options._replace(whfiles=engine != "kernel"))
    engines.check_engine(parsed.options, engine)
    _warn(parsed)
    if by_mount and "f" in call.flags:
        return 0
    debug = parsed.options.debug or (not by_mount and "d" in call.flags)
    if debug:
        show_tracebacks()
    return attach.mount(
        attach.Request(
            options=parsed.options,
            target=attach.prepare_target(call.operands[-1]),
            log=call.log,
            foreground=not by_mount and (debug or "f" in call.flags),
            debug=debug,
            engine=engine,
        )
    )


def _with_source(given: MountOptions, source: bytes) -> MountOptions:
    """mount -a tells by its source whether a line of fstab is mounted already, so the mount shows the one it was given."""
    if not given.lowers:
        lowers, data = options.split_layers(source)
        given = given._replace(lowers=lowers, data_lowers=data + given.data_lowers)
    return given if given.fsname is not None else given._replace(fsname=source)


def _warn(parsed: Parsed) -> None:
    for line in parsed.warnings:
        warn(line)
    for name in parsed.unknown:
        warn(f"option {printable(name)} is not known here")


_MS_FLAGS = {
    "nosuid": mounts.MS_NOSUID,
    "nodev": mounts.MS_NODEV,
    "noexec": mounts.MS_NOEXEC,
    "noatime": mounts.MS_NOATIME,
    "nodiratime": mounts.MS_NODIRATIME,
    "strictatime": mounts.MS_STRICTATIME,
    "nosymfollow": 0x100,
}


def _remount(path: bytes, texts: Sequence[bytes]) -> int:
    """Change the flags of a live mount; those that are not named stay. Raises MountError."""
    info, target = state.mount_of(path)
    now = [word.encode() for word in (*info.options, "ro" if "ro" in info.super_options else "rw")]
    wanted = options.parse([b",".join(now), *texts]).options
    found = state.find(info)
    if found is not None:
        found.close()
        if found.record.upper is None and not wanted.read_only:
            raise MountError(f"{printable(target)} cannot be made writable: it was mounted without an upper directory")
    flags = mounts.MS_REMOUNT | (mounts.MS_RDONLY if wanted.read_only else 0)
    for flag in wanted.vfs_flags:
        flags |= _MS_FLAGS[flag]
    if wanted.vfs_flags.isdisjoint(("noatime", "strictatime")):
        flags |= mounts.MS_RELATIME  # with no word on it the kernel would keep what is
    try:
        mounts.mount(info.source, target, None, flags)
    except OSError as exc:
        raise MountError(f"cannot remount {printable(target)}: {exc.strerror}") from exc
    return 0
