"""The lock in requirements/: complete, pinned, hashed, and free of any registry's address."""

from __future__ import annotations

import configparser
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("build", "run", "test")


def pins(lock: str) -> dict[str, tuple[str, int]]:
    """Each package's version and how many hashes it has."""
    text = (ROOT / "requirements" / f"{lock}.txt").read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            pinned = re.match(r"([a-z0-9-]+)==(\S+)", line)
            assert pinned, line
            found[pinned[1]] = (pinned[2], line.count("--hash=sha256:"))
    return found


def declared(section: str, key: str) -> set[str]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return set(config[section][key].split())


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_is_pinned_with_hashes(lock: str) -> None:
    assert pins(lock)
    assert [name for name, (_, hashes) in pins(lock).items() if not hashes] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_names_no_host(lock: str) -> None:
    text = (ROOT / "requirements" / f"{lock}.txt").read_text()
    assert not re.search(r"https?:|--(extra-)?index-url|--find-links|--trusted-host", text)


def test_what_setup_cfg_asks_for_is_locked() -> None:
    run, test = declared("options", "install_requires"), declared("options.extras_require", "test")
    assert run == {"pyfuse3", "trio", "xattr", "click"}
    assert run <= set(pins("run"))
    assert run | test <= set(pins("test"))


def test_the_locks_agree_on_every_version_they_share() -> None:
    versions: dict[str, set[str]] = {}
    for lock in LOCKS:
        for name, (version, _) in pins(lock).items():
            versions.setdefault(name, set()).add(version)
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


@pytest.mark.parametrize(
    ("arguments", "environment"), [(["--tests"], {}), ([], {"PYTHON": "/nonexistent/python"})]
)
def test_setup_refuses_what_it_cannot_do_in_one_line(arguments: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "setup", *arguments], env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **environment},
        capture_output=True, text=True, check=False, timeout=120,
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
