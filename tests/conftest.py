"""Fixtures and checks for every test.

- `scratch`: an empty directory on a disk filesystem that ordinary users can reach.
- `mounts`: makes mounts (ours, the kernel's) and undoes them; a leaked mount, a server that stays or an unannounced
  WARNING in its log fails the test.
- Each test has a time limit (`@pytest.mark.timeout(seconds)`, else DEFAULT_SECONDS), kept by the watchdog.
- At the end nothing may be left of the session: no mount, no process.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.support import requirements, system
from tests.support.mounts import Mounts
from tests.support.watchdog import Watchdog

DEFAULT_SECONDS = 60.0
_MEMORY_FILESYSTEMS = {"tmpfs", "ramfs", "overlay"}
_session_key = pytest.StashKey["_Session"]()


def _scratch_base() -> Path:
    """A directory on a disk: an upper must hold trusted.* and whiteouts, and what holds on tmpfs may not on disk."""
    chosen = os.environ.get("UNIONFS_TEST_SCRATCH")
    if chosen:
        return Path(chosen)
    for candidate in (Path("/var/tmp"), Path(tempfile.gettempdir()), Path.home()):
        if candidate.is_dir() and os.access(candidate, os.W_OK) and _fstype(candidate) not in _MEMORY_FILESYSTEMS:
            return candidate
    return Path(tempfile.gettempdir())


def _fstype(path: Path) -> str:
    inside = f"{path.resolve()}/"
    found = [point for point in system.mount_points() if inside.startswith(f"{point.target.rstrip('/')}/")]
    return max(found, key=lambda point: len(point.target)).fstype


class _Session:
    """What a run of the suite owns: its mark, its scratch directory, its watchdog."""

    def __init__(self) -> None:
        self.token = secrets.token_hex(8)
        os.environ[system.SESSION_VARIABLE] = self.token
        self.scratch = _scratch_base() / f"unionfs-test-{self.token}"
        self.scratch.mkdir(mode=0o755)
        self.watchdog = Watchdog(self.token, self.scratch)

    def leftovers(self) -> list[str]:
        """Mounts and living processes of this session, now that all its tests are over."""
        mounts = [f"mount left behind: {point.target} ({point.fstype})" for point in system.mounts_below(self.scratch)]
        return mounts + [f"process left behind: {found.pid} {found.command[:200]}" for found in self._processes()]

    def _processes(self) -> list[system.Process]:
        return [found for found in system.session_processes(self.token, os.getpid()) if found.pid != self.watchdog.pid]

    def close(self) -> list[str]:
        for found in self._processes():
            system.wait_until_gone(found.pid, 5)
        left = self.leftovers()
        self.watchdog.close()  # unmounts and kills what is left
        shutil.rmtree(self.scratch, ignore_errors=True)
        if self.scratch.exists():
            left.append(f"cannot remove {self.scratch}")
        return left


# ---- the session and the watchdog ----

def pytest_sessionstart(session: pytest.Session) -> None:
    if not session.config.option.collectonly:
        session.config.stash[_session_key] = _Session()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if (own := session.config.stash.get(_session_key, None)) is None:
        return
    left = own.close()
    if left:
        session.config.stash[_leftovers_key] = left
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


_leftovers_key = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(_leftovers_key, []):
        terminalreporter.write_line(f"ERROR {line}", red=True)


def _seconds(item: pytest.Item) -> float:
    marker = item.get_closest_marker("timeout")
    return float(marker.args[0]) - 1 if marker else DEFAULT_SECONDS


_overran_key = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    own = item.config.stash[_session_key]
    own.watchdog.arm(_seconds(item))
    try:
        return (yield)
    finally:
        own.watchdog.disarm()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that the watchdog had to wake up has failed, even if it went on happily with the error it got."""
    report = yield
    own = item.config.stash[_session_key]
    if report.when == "call" and report.outcome == "passed" and own.watchdog.fired():
        report.outcome = "failed"
        report.longrepr = "the test ran over its time; the watchdog aborted its FUSE connections"
    return report


# ---- fixtures ----

@pytest.fixture(scope="session")
def session_scratch(pytestconfig: pytest.Config) -> Path:
    """The directory that all scratch directories of this run are made in."""
    return pytestconfig.stash[_session_key].scratch


@contextlib.contextmanager
def _directory_in(parent: Path, prefix: str) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def scratch(session_scratch: Path) -> Iterator[Path]:
    """An empty directory on a disk filesystem, mode 0755, removed after the test."""
    with _directory_in(session_scratch, "test-") as path:
        yield path


@contextlib.contextmanager
def _mounts_in(scratch: Path) -> Iterator[Mounts]:
    reason = requirements.missing_for_fuse() or requirements.missing_for_overlayfs()
    if reason:
        pytest.skip(reason)
    made = Mounts(scratch)
    try:
        yield made
    finally:
        complaints = made.close()
    if complaints:
        pytest.fail("\n".join(complaints), pytrace=False)


@pytest.fixture
def mounts(scratch: Path) -> Iterator[Mounts]:
    """Makes mounts below `scratch` and undoes them."""
    with _mounts_in(scratch) as made:
        yield made


@pytest.fixture(scope="module")
def module_mounts(session_scratch: Path) -> Iterator[Mounts]:
    """As `mounts`, kept for all tests of a module: a mount costs more than most tests."""
    with _directory_in(session_scratch, "module-") as path, _mounts_in(path) as made:
        yield made
