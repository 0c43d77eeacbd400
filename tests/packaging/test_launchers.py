"""The launchers `unionfs` and `mount.fuse.unionfs`: which Python they start, how, and what they tell it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

LAUNCHERS = Path(__file__).resolve().parents[2] / "scripts" / "bin"

# Stands in for Python: shows what it was started with.
STAND_IN = """#!/bin/sh
printf '%s\\0' "$0" "${UNIONFS_ARGV0-unset}" "$@"
"""


@dataclass(frozen=True)
class Start:
    """How the Python beside the launcher was started."""

    python: str
    called_as: str
    arguments: list[bytes]


@pytest.fixture
def bin_directory(tmp_path: Path) -> Path:
    """A directory with spaces in its name, as an installation would fill it."""
    directory = tmp_path / "a venv" / "bin"
    directory.mkdir(parents=True)
    for name in ("unionfs", "mount.fuse.unionfs"):
        shutil.copy(LAUNCHERS / name, directory / name)
    write_program(directory / "python", STAND_IN)
    return directory


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def start(*command: str | bytes | Path, environment: dict[str, str] | None = None, cwd: Path | None = None) -> Start:
    done = subprocess.run(command, env=environment or {}, cwd=cwd, capture_output=True, check=True, timeout=30)
    python, called_as, *arguments = done.stdout.split(b"\0")[:-1]
    return Start(os.fsdecode(python), os.fsdecode(called_as), arguments)


@pytest.mark.parametrize("name", ["unionfs", "mount.fuse.unionfs"])
def test_the_python_beside_the_launcher_runs_the_package_isolated(bin_directory: Path, name: str) -> None:
    assert start(bin_directory / name) == Start(str(bin_directory / "python"), name, [b"-I", b"-m", b"unionfs"])


@pytest.mark.parametrize("name", ["mount.fuse.unionfs", "mount.fuse.other", "fuse-overlayfs", "-n"])
def test_a_link_elsewhere_passes_the_name_it_was_called_by(bin_directory: Path, tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    (elsewhere / "between").symlink_to(bin_directory / "mount.fuse.unionfs")
    (elsewhere / name).symlink_to("between")
    assert start(elsewhere / name) == Start(str(bin_directory / "python"), name, [b"-I", b"-m", b"unionfs"])


def test_it_is_found_through_path_and_by_a_relative_name(bin_directory: Path) -> None:
    by_path = start("unionfs", environment={"PATH": f"{bin_directory}:/usr/bin:/bin"})
    relative = start("./unionfs", cwd=bin_directory)
    assert (by_path.python, by_path.called_as) == (str(bin_directory / "python"), "unionfs")
    assert (relative.python, relative.called_as) == ("./python", "unionfs")


def test_arguments_arrive_byte_for_byte(bin_directory: Path) -> None:
    odd = [b"", b"two words", b"-o", b"lowerdir=a:b,upperdir=\xff", b"*", b"$HOME", b"line\nline"]
    assert start(bin_directory / "unionfs", *odd).arguments == [b"-I", b"-m", b"unionfs", *odd]


def test_the_exit_status_is_the_program_s(bin_directory: Path) -> None:
    write_program(bin_directory / "python", "#!/bin/sh\nexit 32\n")
    assert subprocess.run([bin_directory / "unionfs"], check=False, timeout=30).returncode == 32


def test_a_module_planted_in_the_current_directory_or_pythonpath_is_not_run(
    bin_directory: Path, tmp_path: Path
) -> None:
    write_program(bin_directory / "python", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    planted = tmp_path / "planted"
    (planted / "unionfs").mkdir(parents=True)
    for module in ("unionfs/__main__.py", "click.py", "sitecustomize.py"):
        (planted / module).write_text("import os\nos.write(1, b'planted')\nos._exit(0)\n")
    environment = {"PYTHONPATH": str(planted), "PYTHONSTARTUP": str(planted / "click.py")}
    done = subprocess.run(
        [bin_directory / "unionfs", "--version"], env=environment, cwd=planted, capture_output=True, check=False,
        timeout=30,
    )
    assert b"planted" not in done.stdout
