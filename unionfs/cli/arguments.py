"""A command that is described by values rather than by click's decorators, since importing click takes 11 ms.

``read`` takes a command line apart that is plainly right. Any other goes to click, by the same description (see group.py): for the help,
for what is wrong with it, for rarer ways to write it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Option(NamedTuple):
    """``key``: what the function calls it. ``metavar``: of its value, any text. ``choices``: the values it can have. Neither: a flag."""

    key: str
    names: tuple[str, ...]
    help: str
    metavar: str | None = None
    repeated: bool = False
    choices: tuple[str, ...] = ()

    @property
    def is_flag(self) -> bool:
        return self.metavar is None and not self.choices

    @property
    def unset(self) -> Any:
        """Its value where it is not given."""
        return () if self.repeated else False if self.is_flag else None


class Command(NamedTuple):
    """``run``: called with each option and the operand by its key, returns the exit code; its docstring is the help, ``notes`` comes below.

    ``operand``: key and metavar of the one argument. Values are bytes, except for choices, which are str, and flags, which are bool.
    """

    run: Callable[..., int]
    options: tuple[Option, ...]
    operand: tuple[str, str]
    notes: Callable[[], str]

    def read(self, arguments: Sequence[str]) -> dict[str, Any] | None:
        """What ``run`` is to be called with; None where click has to look."""
        named = {name: option for option in self.options for name in option.names}
        values = {option.key: option.unset for option in self.options}
        operands = []
        rest = iter(arguments)
        for argument in rest:
            name, equals, text = argument.partition("=") if argument.startswith("--") else (argument, "", "")
            option = named.get(name)
            if option is not None and option.is_flag and not equals:
                values[option.key] = True
            elif option is not None and not option.is_flag:
                text = text if equals else next(rest, "")
                if not text or text.startswith("-") or (option.choices and text not in option.choices):
                    return None
                value = text if option.choices else os.fsencode(text)
                values[option.key] = (*values[option.key], value) if option.repeated else value
            elif argument and not argument.startswith("-"):
                operands.append(os.fsencode(argument))
            else:
                return None
        return {**values, self.operand[0]: operands[0]} if len(operands) == 1 else None
