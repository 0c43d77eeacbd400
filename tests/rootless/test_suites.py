"""Other suites, run again by who has no privileges: as the root of his own user namespace, and as he is.

What needs more than that is deselected there by its marker ``root``, or skipped by the fixture of that name. The kernel's overlayfs, to
which the posix suite compares, is mounted with ``userxattr`` in the same namespace.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.commands.namespace import USER, Namespace, namespace
from tests.commands.program import environment
from tests.support import requirements
from tests.support.mounts import REPOSITORY

pytestmark = [
    *(pytest.mark.root, pytest.mark.fuse, pytest.mark.slow, pytest.mark.timeout(280)),
    pytest.mark.skipif(requirements.missing_for_fuse() is not None, reason=str(requirements.missing_for_fuse())),
]


@dataclass
class User:
    """Who runs a suite, and where that may write."""

    ns: Namespace
    home: Path

    def passes(self, entering: Sequence[str], suite: str) -> int:
        """Run *suite*, which must pass; how many tests of it ran."""
        paths = {"TMPDIR": "tmp", "UNIONFS_TEST_SCRATCH": "scratch", "HYPOTHESIS_STORAGE_DIRECTORY": "hypothesis"}
        for name in paths.values():
            (self.home / name).mkdir()
            os.chown(self.home / name, USER, USER)
        env = environment(HOME=str(self.home), PYTHONDONTWRITEBYTECODE="1", **{name: str(self.home / path) for name, path in paths.items()})
        # nsenter has left the directory we are in
        command = [*entering, "env", "-C", str(REPOSITORY), "timeout", "-k", "5", "240", sys.executable, "-m", "pytest"]
        command += ["-q", "-rfE", "-p", "no:cacheprovider", "-m", "not root and not network", suite]
        done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
        passed = re.search(r"(\d+) passed", done.stdout)
        assert passed is not None
        return int(passed.group(1))


@pytest.fixture
def user(scratch: Path) -> Iterator[User]:
    home = scratch / "home"
    home.mkdir()
    os.chown(home, USER, USER)
    with namespace() as ns:
        ns.let_users_run_the_program(scratch)
        ns.let_users_use_fuse(scratch)
        ns.let_the_user_have_ids(scratch)
        yield User(ns, home)


@pytest.mark.overlayfs
def test_the_posix_suite_passes_in_a_user_namespace(user: User) -> None:
    with user.ns.user_namespace(ranges=True) as own:
        assert user.passes(own.entering(), "tests/posix") > 1000


def test_the_union_passes_its_tests_in_a_user_namespace(user: User) -> None:
    with user.ns.user_namespace(ranges=True) as own:
        assert user.passes(own.entering(), "tests/unit/overlay") > 300


def test_the_union_passes_its_tests_as_an_ordinary_user(user: User) -> None:
    assert user.passes(user.ns.entering(USER), "tests/unit/overlay") > 300
