"""`make install` and `make uninstall`: links for mount(8) and, where the name is free, for the shell."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout that was set up, as far as the script looks."""
    checkout = tmp_path / "checkout"
    (checkout / "scripts").mkdir(parents=True)
    for name in ("install", "common.sh"):
        shutil.copy(SCRIPTS / name, checkout / "scripts" / name)
    return checkout


def run(checkout: Path, verb: str, root: Path, prefix: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "DESTDIR": str(root)}
    if prefix is not None:
        environment["PREFIX"] = prefix
    command = [str(checkout / "scripts" / "install"), verb]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=30)


def links(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): os.readlink(path) for path in root.rglob("*") if path.is_symlink()}


@pytest.mark.parametrize(
    ("prefix", "place"), [(None, "usr/local"), ("/opt/here", "opt/here")]
)
def test_install_links_the_mount_helper_the_command_and_their_manual_pages(
    checkout: Path, tmp_path: Path, prefix: str | None, place: str
) -> None:
    done = run(checkout, "install", tmp_path / "root", prefix)
    assert done.returncode == 0
    programs = checkout / ".venv" / "bin"
    assert links(tmp_path / "root") == {
        "sbin/mount.fuse.unionfs": str(programs / "mount.fuse.unionfs"),
        f"{place}/bin/unionfs": str(programs / "unionfs"),
        f"{place}/share/man/man8/mount.fuse.unionfs.8": str(checkout / "docs" / "mount.fuse.unionfs.8"),
        f"{place}/share/man/man1/unionfs.1": str(checkout / "docs" / "unionfs.1"),
    }


def test_install_twice_is_install_once_and_uninstall_takes_all_back(checkout: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    run(checkout, "install", root)
    once = links(root)
    assert run(checkout, "install", root).returncode == 0
    assert links(root) == once
    assert run(checkout, "uninstall", root).returncode == 0
    assert links(root) == {}


@pytest.mark.parametrize("owned", ["usr/bin/unionfs", "usr/local/bin/unionfs"])
def test_a_program_of_the_same_name_keeps_it(checkout: Path, tmp_path: Path, owned: str) -> None:
    root = tmp_path / "root"
    (root / owned).parent.mkdir(parents=True)
    (root / owned).write_text("another program")
    done = run(checkout, "install", root)
    assert done.returncode == 0
    assert f"{owned} belongs to something else" in done.stderr
    assert set(links(root)) == {"sbin/mount.fuse.unionfs", "usr/local/share/man/man8/mount.fuse.unionfs.8"}
    run(checkout, "uninstall", root)
    assert (root / owned).read_text() == "another program"


def test_a_manual_page_of_another_project_is_not_replaced(checkout: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    page = root / "usr/local/share/man/man1/unionfs.1"
    page.parent.mkdir(parents=True)
    page.write_text("another page")
    done = run(checkout, "install", root)
    assert done.returncode == 0
    assert "unionfs.1 belongs to something else" in done.stderr + done.stdout
    run(checkout, "uninstall", root)
    assert page.read_text() == "another page"
    assert links(root) == {}


def test_a_mount_helper_of_another_project_is_not_replaced(checkout: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    helper = root / "sbin" / "mount.fuse.unionfs"
    helper.parent.mkdir(parents=True)
    helper.write_text("another program")
    done = run(checkout, "install", root)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    run(checkout, "uninstall", root)
    assert helper.read_text() == "another program"
    assert links(root) == {}
