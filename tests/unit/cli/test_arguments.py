"""A plain command line of ``unionfs mount`` means the same without click as with it; any other is left to click."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import click
import pytest

from unionfs.cli.group import unionfs
from unionfs.cli.mount import mount

PIECES = (
    ["--lower", "a"], ["--lower=b=c"], ["--upper", "u"], ["--work=w"], ["-o", "ro,volatile"], ["-f"], ["--debug"], ["--log", "l"],
    ["--engine", "auto"], ["--engine=kernel"], ["--upper", "again"], ["-o", "x=\udcff"], ["mnt"],
)  # fmt: skip


def with_click(arguments: list[str]) -> dict[str, Any]:
    """What click calls the function with."""
    command = unionfs.get_command(click.Context(unionfs), "mount")
    assert command is not None
    return command.make_context("mount", list(arguments)).params


@pytest.mark.parametrize("start", range(len(PIECES)))
@pytest.mark.parametrize("length", range(1, len(PIECES) + 1))
def test_a_plain_line_is_read_as_click_reads_it(start: int, length: int) -> None:
    pieces = (PIECES * 2)[start : start + length]
    arguments = [word for piece in pieces for word in piece]
    found = mount.read(arguments)
    assert (found is None) == (["mnt"] not in pieces)
    if found is not None:
        assert found == with_click(arguments)


def test_the_order_of_options_and_operand_is_free() -> None:
    for pieces in permutations((["--lower", "a"], ["--lower", "b"], ["-d"], ["mnt"])):
        arguments = [word for piece in pieces for word in piece]
        assert mount.read(arguments) == with_click(arguments)


@pytest.mark.parametrize(
    "line",
    [
        "", "--help", "-h mnt", "mnt --nonsense", "a b", "--lower", "mnt --lower", "--lower= mnt", "--lower -x mnt", "-oro mnt",
        "-o=ro mnt", "-fd mnt", "--debug=1 mnt", "--engine none mnt", "--engine=none mnt", "--low a mnt", "-- mnt", "- mnt", "mnt -",
    ],
)  # fmt: skip
def test_what_is_not_plain_is_left_to_click(line: str) -> None:
    assert mount.read(line.split()) is None


@pytest.mark.parametrize("arguments", [[""], ["--lower", "", "mnt"], ["--log=", "mnt"]])
def test_so_is_an_empty_word(arguments: list[str]) -> None:
    assert mount.read(arguments) is None
    with pytest.raises(click.BadParameter, match="must not be empty"):
        with_click(arguments)
