"""The ``unionfs`` command group, and the parameter types its commands share."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable
from typing import Any

import click

from unionfs import __version__
from unionfs.cli import arguments
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


_LAYER_OPTIONS = (
    click.option("--lower", multiple=True, type=as_bytes, metavar="DIR", help="A read-only layer; the topmost first. May be repeated."),
    click.option("--work", type=as_bytes, metavar="DIR", help="The work directory of the upper."),
    click.option("-o", "texts", multiple=True, type=as_bytes, metavar="OPTS", help="Its mount options: userxattr, whfiles..."),
)


def layer_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--lower, --work and -o, for commands that are about an upper and mount nothing; cli/layers.py reads them."""
    for option in reversed(_LAYER_OPTIONS):
        command = option(command)
    return command


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command | arguments.Command = getattr(importlib.import_module(module), name)
        return command if isinstance(command, click.Command) else _with_click(cmd_name, command)


def _with_click(name: str, command: arguments.Command) -> click.Command:
    """The same *command* to click."""
    key, metavar = command.operand
    return click.Command(
        name,
        context_settings=CONTEXT,
        callback=command.run,
        params=[*map(_option_with_click, command.options), click.Argument([key], type=as_bytes, metavar=metavar)],
        help=inspect.cleandoc(command.run.__doc__ or ""),
        epilog=command.notes(),
    )


def _option_with_click(option: arguments.Option) -> click.Option:
    names = [option.key, *option.names]
    if option.is_flag:
        return click.Option(names, is_flag=True, help=option.help)
    kind = click.Choice(option.choices) if option.choices else as_bytes
    return click.Option(names, type=kind, multiple=option.repeated, metavar=option.metavar, help=option.help)


@click.group(cls=LazyGroup, context_settings=CONTEXT)
@click.version_option(__version__, "-V", "--version", message="unionfs: version %(version)s")
def unionfs() -> None:
    """Copy-on-write union mounts: read-only layers under one that takes the changes."""
