"""``unionfs run``: a command in a container on a throw-away or kept upper."""

from __future__ import annotations

import os
import secrets
from typing import Any

import click

from unionfs.cli.entry import cause, complain, say, usage_line
from unionfs.cli.group import CONTEXT, as_bytes, debug_option
from unionfs.errors import UsageError
from unionfs.options import ENGINES
from unionfs.runtime.plan import NETWORKS, SCRATCH, RunOptions, make_plan

_FAILED = 125


class _RunCommand(click.Command):
    """Exit codes below 125 belong to the command that is run: a wrong option gives 125, as any failure of ours does."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as exc:
            raise _usage_error(usage_line(exc)) from None


@click.command(cls=_RunCommand, context_settings={**CONTEXT, "allow_interspersed_args": False})
@click.option(
    "--lower",
    "lowers",
    type=as_bytes,
    metavar="DIR",
    multiple=True,
    required=True,
    help="A read-only layer; the topmost first. May be repeated.",
)
@click.option("--upper", type=as_bytes, metavar="DIR", help="Keep the changes in DIR instead of throwing them away.")
@click.option(
    "--work", type=as_bytes, metavar="DIR", help="The work directory of the upper.  [default: UPPER.work, removed again]"
)
@click.option(
    "--network", type=click.Choice(NETWORKS), default="none", show_default=True, help="Loopback only, or the host's."
)
@click.option(
    "--scratch",
    type=as_bytes,
    metavar="DIR",
    envvar="UNIONFS_SCRATCH",
    default=os.fsdecode(SCRATCH),
    show_default=True,
    help="Where a throw-away upper is while the command runs; best on a disk.",
)
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default=ENGINES[0],
    show_default=True,
    help="Who mounts: our server, the kernel's overlayfs, or that where it can.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be done, a step a line, and do nothing.")
@debug_option
@click.argument("command", nargs=-1, required=True, type=os.fsencode, metavar="CMD [ARG]...")
def run(
    lowers: tuple[bytes, ...],
    upper: bytes | None,
    work: bytes | None,
    network: str,
    scratch: bytes,
    engine: str,
    dry_run: bool,
    command: tuple[bytes, ...],
) -> int:
    """Run CMD in new mount, pid, uts, ipc and net namespaces, with the union of the --lower directories as its root.

    Every change goes to an upper that is thrown away afterwards, or to --upper. Returns CMD's exit code; 125 when the
    container cannot be made, 126 and 127 when CMD cannot be executed or found, 128+N when signal N ended it.
    """
    try:
        options = RunOptions(
            lowers=tuple(map(_absolute, lowers)),
            command=command,
            name=secrets.token_hex(6).encode(),
            upper=None if upper is None else os.path.realpath(upper),
            work=None if work is None else _absolute(work),
            network=network,
            scratch=_absolute(scratch),
            term=os.environb.get(b"TERM", b"dumb"),
            terminal=os.isatty(0) and os.isatty(1),
            engine=engine,
        )
        plan = make_plan(options)
    except (UsageError, FileNotFoundError) as exc:  # the latter for a working directory that is gone
        raise _usage_error(cause(exc)) from None
    if dry_run:
        say("\n".join(plan.lines()))
        return 0
    from unionfs.runtime.run import execute

    return execute(plan, _start_log, complain)


def _absolute(path: bytes) -> bytes:
    """*path* from the root, where the server lives; not normalised, since ``..`` after a symlink is not textual."""
    return path if path.startswith(b"/") else os.path.join(os.getcwdb(), path)


def _usage_error(message: str) -> UsageError:
    error = UsageError(message)
    error.exit_code = _FAILED
    return error


def _start_log() -> None:
    """In the server: log to where a mount's server would."""
    from unionfs.cli import logs

    logs.start(None, debug=False, foreground=False)
