"""The manual pages and the table of options: well-formed, and as complete as the program."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from unionfs import options
from unionfs.cli.entry import COMMANDS
from unionfs.cli.group import unionfs

DOCS = Path(__file__).resolve().parents[3] / "docs"
PAGES = ["unionfs.1", "mount.fuse.unionfs.8"]


def names_of(heads: list[str]) -> list[str]:
    """The options in lists like "fsync=0|1, volatile"."""
    return [name.partition("=")[0] for head in heads for name in head.replace("+=", "+ =").replace(" =", "=").split(", ")]


def manual() -> list[str]:
    """The options the manual page has paragraphs for."""
    lines = (DOCS / "mount.fuse.unionfs.8").read_text().splitlines()
    return names_of([line.removeprefix(".B ") for before, line in zip(lines, lines[1:], strict=False) if before in (".TP", ".TQ")])


def table() -> list[str]:
    """The options of the table's first column."""
    text = (DOCS / "options.md").read_text().partition("\n## ")[0]
    rows = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `")]
    return names_of([head for row in rows for head in re.findall(r"`([^`]+)`", row)])


@pytest.mark.parametrize("listed", [manual, table])
def test_every_option_is_described_and_nothing_else(listed: object) -> None:
    assert callable(listed)
    assert set(listed()) == options.vocabulary()


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_set_without_a_warning(page: str) -> None:
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("groff (Debian's groff-base) is not installed")
    command = [groff, "-ww", "-man", "-Tutf8", "-rLL=80n", str(DOCS / page)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    assert "SEE ALSO" in re.sub(r".\x08|\x1b\[[0-9;]*m", "", done.stdout)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_itself_as_its_file_does(page: str) -> None:
    name, _, section = page.rpartition(".")
    lines = (DOCS / page).read_text().splitlines()
    assert lines[0].startswith(f".TH {name.upper()} {section} ")
    assert lines[2].startswith(f"{name} \\- ")


def test_every_command_has_its_place_in_the_manual() -> None:
    text = (DOCS / "unionfs.1").read_text()
    assert set(re.findall(r"^\.SS (\w+)$", text, re.MULTILINE)) == COMMANDS.keys()
    assert set(re.findall(r"^\.B unionfs (\w+)", text.partition(".SH DESCRIPTION")[0], re.MULTILINE)) == COMMANDS.keys()


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_of_a_command_is_in_its_part_of_the_manual(name: str) -> None:
    command = unionfs.get_command(click.Context(unionfs), name)
    assert command is not None
    text = (DOCS / "unionfs.1").read_text().replace("\\-", "-")
    part = re.split(r"^\.S[SH] ", text.partition(f"\n.SS {name}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    options = [param.opts for param in command.params if isinstance(param, click.Option) and not param.hidden]
    assert [opts for opts in options if not set(opts) <= set(re.findall(r"(?<!\w)--?[a-z]+(?:-[a-z]+)*", part))] == []


def test_every_engine_has_its_place_in_the_manual() -> None:
    engines = (DOCS / "unionfs.1").read_text().partition(".SH ENGINES\n")[2].partition(".SH ")[0]
    assert tuple(re.findall(r"^\.TP\n\.B (\w+)$", engines, re.MULTILINE)) == options.ENGINES


def test_every_module_of_the_overlay_has_its_place_in_the_design() -> None:
    text = (DOCS / "design.md").read_text().partition("\nThe modules of `overlay/`")[2].partition("\n## ")[0]
    modules = {path.stem for path in (DOCS.parent / "unionfs" / "overlay").glob("*.py")} - {"__init__"}
    assert modules - set(re.findall(r"`(\w+)`", text)) == set()
