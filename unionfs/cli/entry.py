"""Where every call arrives: which program is meant, and how a failure is told.

The launcher passes the name it was called by in UNIONFS_ARGV0, because Python itself only sees the path of the module.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from unionfs.errors import UnionfsError, UsageError, reason

#: The commands of ``unionfs``: where each is defined. Imported by name when called, so that none pays for another.
COMMANDS = {
    "convert": "unionfs.cli.convert:convert",
    "diff": "unionfs.cli.diff:diff",
    "fsck": "unionfs.cli.fsck:fsck",
    "list": "unionfs.cli.listing:list_mounts",
    "mount": "unionfs.cli.mount:mount",
    "refresh": "unionfs.cli.refresh:refresh",
    "run": "unionfs.cli.run:run",
    "stats": "unionfs.cli.stats:stats",
    "top": "unionfs.cli.top:top",
    "umount": "unionfs.cli.umount:umount",
}

_INTERRUPTED = 130
_tracebacks_shown = False


def main() -> int:
    """Run what was asked for; the exit code."""
    keep_standard_descriptors()
    called_as = os.path.basename(os.environ.pop("UNIONFS_ARGV0", "") or sys.argv[0])
    arguments = sys.argv[1:]
    try:
        if is_mount_program(called_as, arguments):
            from unionfs.cli.mount_program import main as mount_program

            return mount_program(called_as, [os.fsencode(argument) for argument in arguments])
        return _commands(arguments)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # whoever read our output has had enough
        _leave_stdout()
        return 1


def _leave_stdout() -> None:
    """Python flushes once more at exit: what cannot be written must not fail there again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def is_mount_program(called_as: str, arguments: Sequence[str]) -> bool:
    """Whether this is a call by mount(8) or a container engine rather than of a command."""
    if called_as.startswith("mount.fuse.") or called_as == "fuse-overlayfs":
        return True
    if not arguments or arguments[0] in COMMANDS:
        return False
    return any(argument.startswith("-o") for argument in arguments)


def keep_standard_descriptors() -> None:
    """Open /dev/null on those of 0, 1, 2 that are closed: else a layer or the mount could become somebody's output."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # Python has none for a descriptor that it found closed
    sys.stderr = sys.stderr or open(2, "w", closefd=False)


def _commands(arguments: Sequence[str]) -> int:
    """``unionfs COMMAND``."""
    if arguments[:1] == ["mount"]:
        from unionfs.cli.mount import mount

        given = mount.read(arguments[1:])
        if given is not None:
            try:
                return mount.run(**given)
            except (UnionfsError, OSError) as exc:
                return tell(exc)
    return _commands_with_click(arguments)


def _commands_with_click(arguments: Sequence[str]) -> int:
    import click

    from unionfs.cli.group import unionfs

    try:
        result: object = unionfs.main(list(arguments) or ["--help"], prog_name="unionfs", standalone_mode=False)
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except click.Abort:
        return _INTERRUPTED
    except click.UsageError as exc:
        return tell(UsageError(usage_line(exc)))
    except click.ClickException as exc:
        return tell(UnionfsError(exc.format_message()))
    except (UnionfsError, OSError) as exc:
        return tell(exc)
    return result if isinstance(result, int) else 0


def usage_line(exc: object) -> str:
    """A click usage error as one line that says where more is to be had."""
    context = getattr(exc, "ctx", None)
    where = context.command_path if context else "unionfs"
    message = " ".join(getattr(exc, "format_message", lambda: str(exc))().split()).rstrip(".")
    return f"{message[:1].lower()}{message[1:]} (see {where} --help)"


def show_tracebacks() -> None:
    """From now on a failure is told with its traceback (--debug)."""
    global _tracebacks_shown
    _tracebacks_shown = True


def tell(exc: BaseException) -> int:
    """Say on stderr in one line what went wrong; the exit code."""
    if _tracebacks_shown:
        import traceback

        traceback.print_exception(exc)
    complain(cause(exc))
    return exc.exit_code if isinstance(exc, UnionfsError) else 1


def cause(exc: BaseException) -> str:
    """``reason``, or what is behind it where a relative path had to be made absolute and there is nothing it is relative to."""
    if isinstance(exc, FileNotFoundError) and exc.filename is None and not _has_working_directory():
        return "the working directory has been deleted: go to another one, or give every path from the root"
    return reason(exc)


def _has_working_directory() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def complain(line: str) -> None:
    """One line on stderr."""
    print("unionfs:", " ".join(line.splitlines()), file=sys.stderr, flush=True)


def warn(line: str) -> None:
    """A warning: one line on stderr."""
    complain(f"warning: {line}")


def say(line: str) -> None:
    """One line on stdout, in UTF-8 whatever the locale says: output may hold any name."""
    try:
        sys.stdout.buffer.write(line.encode("utf-8", "backslashreplace") + b"\n")
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as exc:
        _leave_stdout()
        raise UnionfsError(f"cannot write the output: {exc.strerror}") from exc
