"""``unionfs fsck``."""

from __future__ import annotations

import json
from typing import Any

import click

from unionfs import engines
from unionfs.cli.attach import within_rights
from unionfs.cli.entry import cause, say, usage_line
from unionfs.cli.group import CONTEXT, as_bytes, debug_option, layer_options
from unionfs.cli.layers import read_layers
from unionfs.errors import UnionfsError, UsageError, printable
from unionfs.options import MountOptions

# The exit codes of fsck(8).
_REPAIRED, _LEFT, _FAILED, _USAGE = 1, 4, 8, 16

_CODES = """\b
Exit code, as of fsck(8):
  0  nothing is wrong
  1  all that was wrong has been repaired
  4  something is wrong still
  8  it could not be checked or repaired, for example because the upper is in use
 16  the command line is wrong
"""


class _Failed(UnionfsError):
    """The check could not be made."""

    exit_code = _FAILED


class _WrongUse(UnionfsError):
    """The command line is wrong."""

    exit_code = _USAGE


class _Command(click.Command):
    """One whose wrong use has the exit code of fsck(8)."""

    def make_context(self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as exc:
            raise _WrongUse(usage_line(exc)) from exc


@click.command(cls=_Command, context_settings=CONTEXT, epilog=_CODES)
@click.option("--upper", type=as_bytes, metavar="DIR", help="What is to be checked.")
@layer_options
@click.option("--repair", is_flag=True, help="Make right what can be made right without losing anything.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@debug_option
def fsck(
    upper: bytes | None, lower: tuple[bytes, ...], work: bytes | None, texts: tuple[bytes, ...], repair: bool, as_json: bool
) -> int:
    """Find what is wrong with an upper directory and its work directory.

    That is: redirects and metacopies whose target is gone or which the options given do not follow, whiteouts and marks where they mean
    nothing, what a killed mount left behind, marks that only another program reads. Name all the lower directories, and the options it is
    mounted with; the work directory if there is one still. Lowers are only read. With --repair nothing may be mounted on the upper; what
    might lose data is never done, only told.
    """
    try:
        given = within_rights(read_layers(texts, lower, upper, work))
        engines.check_served(given)
        if given.upper is None or not given.lowers:
            raise UsageError("name the lower directories and the upper (see unionfs fsck --help)")
        if given.work is None and engines.features(given).index:
            raise UsageError("with index=on the upper cannot be checked without its work directory: name that, too")
    except UsageError as exc:
        raise _WrongUse(str(exc)) from exc
    try:
        return _check(given, given.upper, repair, as_json)
    except (UnionfsError, OSError) as exc:
        raise _Failed(cause(exc)) from exc


def _check(given: MountOptions, upper: bytes, repair: bool, as_json: bool) -> int:
    from unionfs.overlay.check import check

    findings = check(upper, given.lowers, given.work, engines.features(given), data=given.data_lowers, repair=repair)
    wrong = [finding for finding in findings if not finding.harmless]
    repaired = [finding for finding in wrong if repair and finding.repairable]
    if as_json:
        say(json.dumps([
            {"kind": finding.kind.value, "path": finding.path.decode("utf-8", "surrogateescape"), "text": finding.text,
             "repairable": finding.repairable, "repaired": repair and finding.repairable, "harmless": finding.harmless}
            for finding in findings
        ]))  # fmt: skip
    else:
        for finding in findings:
            end = " (harmless)" if finding.harmless else " (repaired)" if finding in repaired else ""
            say(f"{printable(finding.path)}: {finding.text}{end}")
    if len(repaired) < len(wrong):
        return _LEFT
    return _REPAIRED if repaired else 0
