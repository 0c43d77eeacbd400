"""The ``unionfs`` command group, and the parameter types its commands share."""

from __future__ import annotations

import importlib
import os

import click

from unionfs import __version__
from unionfs.cli.entry import COMMANDS, show_tracebacks

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def as_bytes(value: str) -> bytes:
    """The type of a parameter that is a path or a text as it was typed: layer names may hold any byte."""
    if not value:
        raise click.BadParameter("must not be empty")
    return os.fsencode(value)


def _set_debug(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
    if value:
        show_tracebacks()
    return value


#: For every command: a failure comes with its traceback.
debug_option = click.option("--debug", is_flag=True, hidden=True, expose_value=False, callback=_set_debug)


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


@click.group(cls=LazyGroup, context_settings=CONTEXT)
@click.version_option(__version__, "-V", "--version", message="unionfs: version %(version)s")
def unionfs() -> None:
    """Copy-on-write union mounts: read-only layers under one that takes the changes."""
