"""``unionfs run``: a command in a container on a throw-away or kept upper."""

from __future__ import annotations

import os
import secrets
import sys

import click

from unionfs.errors import UnionfsError, UsageError
from unionfs.runtime.plan import NETWORKS, SCRATCH, RunOptions, make_plan

_FAILED = 125


class _Usage(click.UsageError):
    exit_code = _FAILED


class _RunCommand(click.Command):
    """Exit codes below 125 belong to the command that is run: a wrong option gives 125, as any failure of ours does."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: object
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as exc:
            raise _Usage(exc.message, exc.ctx) from None


@click.command(
    "run",
    cls=_RunCommand,
    context_settings={"allow_interspersed_args": False},
    short_help="Run a command in a container on a union.",
)
@click.option(
    "--lower", "lowers", metavar="DIR", multiple=True, required=True, help="Read-only layer; repeat it, topmost first."
)
@click.option("--upper", metavar="DIR", help="Keep the changes in DIR; without it they are thrown away.")
@click.option("--work", metavar="DIR", help="Work directory, on the upper's mount (default: UPPER.work, removed again).")
@click.option(
    "--network", type=click.Choice(NETWORKS), default="none", show_default=True, help="Loopback only, or the host's."
)
@click.option(
    "--scratch",
    metavar="DIR",
    envvar="UNIONFS_SCRATCH",
    default=os.fsdecode(SCRATCH),
    show_default=True,
    help="Where throw-away uppers live while they are used.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be done, a step a line, and do nothing.")
@click.argument("command", nargs=-1, required=True, metavar="CMD [ARG]...")
def run(
    lowers: tuple[str, ...],
    upper: str | None,
    work: str | None,
    network: str,
    scratch: str,
    dry_run: bool,
    command: tuple[str, ...],
) -> None:
    """Run CMD in new mount, pid, uts, ipc and net namespaces, with the union of the --lower directories as its root.

    Every change CMD makes goes to a throw-away upper, or to --upper. Returns CMD's exit code; 125 when the
    container could not be made, 126 and 127 when CMD cannot be executed or found, 128+N when signal N ended it.
    """
    options = RunOptions(
        lowers=tuple(map(_absolute, lowers)),
        command=tuple(map(os.fsencode, command)),
        name=secrets.token_hex(6).encode(),
        upper=None if upper is None else os.path.realpath(os.fsencode(upper)),
        work=None if work is None else _absolute(work),
        network=network,
        scratch=_absolute(scratch),
        term=os.environb.get(b"TERM", b"dumb"),
        terminal=_is_terminal(0) and _is_terminal(1),
    )
    try:
        plan = make_plan(options)
    except UsageError as exc:
        raise _failure(str(exc)) from None
    if dry_run:
        click.echo("\n".join(plan.lines()))
        return
    from unionfs.runtime.run import execute

    sys.exit(execute(plan))


def _absolute(path: str) -> bytes:
    """*path* from the root, where the server lives; not normalised, since ``..`` after a symlink is not textual."""
    if not path:
        raise _failure("a path is empty")
    return os.path.join(os.getcwdb(), os.fsencode(path))


def _failure(message: str) -> UnionfsError:
    error = UsageError(message)
    error.exit_code = _FAILED
    return error


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False
