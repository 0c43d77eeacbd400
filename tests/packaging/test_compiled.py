"""`scripts/compile`: the compiled server passes the POSIX suite, and the interpreted one comes back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ASK = "import sys; from unionfs.fuse import channel; print(channel.__file__)"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this checkout with a virtual environment that has what ours has, but for unionfs itself."""
    made = tmp_path_factory.mktemp("compiled") / "checkout"
    made.mkdir()
    for name in ("unionfs", "tests", "scripts", "bench", "docs", "requirements"):
        shutil.copytree(ROOT / name, made / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.cfg"):
        shutil.copy(ROOT / name, made / name)
    venv.create(made / ".venv", symlinks=True)
    site = made / ".venv" / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    (site / "__editable__.unionfs.pth").write_text(f"{made}\n")
    (site / "other.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    for name in ("unionfs", "mount.fuse.unionfs"):
        shutil.copy(ROOT / "scripts" / "bin" / name, made / ".venv" / "bin" / name)
    return made


def python(checkout: Path, *arguments: str, seconds: int = 60) -> subprocess.CompletedProcess[str]:
    command = [str(checkout / ".venv" / "bin" / "python"), *arguments]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=seconds, check=False)


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.fuse
@pytest.mark.overlayfs
@pytest.mark.timeout(900)
def test_the_compiled_server_does_what_the_interpreted_one_does(checkout: Path) -> None:
    done = subprocess.run([str(checkout / "scripts" / "compile")], capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    assert python(checkout, "-I", "-c", ASK).stdout.strip().endswith(".so")
    suite = python(checkout, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "ours or plain", "tests/posix", seconds=350)
    assert suite.returncode == 0, suite.stdout[-3000:]
    clean = subprocess.run([str(checkout / "scripts" / "compile"), "--clean"], capture_output=True, timeout=30, check=False)
    assert clean.returncode == 0
    assert python(checkout, "-I", "-c", ASK).stdout.strip() == os.fspath(checkout / "unionfs" / "fuse" / "channel.py")
