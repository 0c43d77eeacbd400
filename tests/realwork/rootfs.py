"""The root filesystem that real work is done on: Debian, made once by debootstrap and kept outside the repository.

UNIONFS_TEST_CACHE names the directory that keeps it, else /var/cache/unionfs-tests. Debian's release and mirror are
those of this machine's own apt sources.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("python3", "git", "gcc", "libc6-dev", "sqlite3")
#: Installed by a test: with a conffile-free postinst that keeps alternatives, and no dependency that minbase lacks.
DOWNLOADED = "less"
_RECIPE = "1"  # raise it when the recipe changes, so that caches are made anew
_DEBOOTSTRAP_SECONDS = 600
_DOWNLOAD_SECONDS = 180


class CannotMake(Exception):
    """Why there is no root filesystem, in one line."""


@dataclass(frozen=True)
class Debian:
    """The tree, and a package file to install in it."""

    root: Path
    package: Path


@dataclass(frozen=True)
class Source:
    """Where debootstrap gets what."""

    suite: str
    mirror: str


def cache_directory() -> Path:
    return Path(os.environ.get("UNIONFS_TEST_CACHE", "/var/cache/unionfs-tests"))


def debian() -> Debian:
    """The root filesystem, made now if it is not there yet. Raises CannotMake."""
    if shutil.which("debootstrap") is None:
        raise CannotMake("debootstrap is not installed")
    source = _apt_source()
    key = hashlib.sha256(" ".join((_RECIPE, source.suite, DOWNLOADED, *PACKAGES)).encode()).hexdigest()[:12]
    made = kept(cache_directory(), f"debian-{source.suite}-{key}", lambda directory: _make(source, directory))
    (package,) = made.glob("*.deb")
    return Debian(made / "root", package)


def kept(cache: Path, name: str, make: Callable[[Path], None]) -> Path:
    """The directory `name` in the cache; make(directory) fills it when it is missing.

    It is made under another name and then renamed, so one that exists is whole; what an interrupted making left is
    removed. Two processes at once wait for each other.
    """
    cache.mkdir(parents=True, exist_ok=True)
    finished = cache / name
    with _lock(cache / f"{name}.lock"):
        if finished.exists():
            return finished
        for left in cache.glob(f"{name}.making-*"):
            shutil.rmtree(left)
        making = Path(tempfile.mkdtemp(prefix=f"{name}.making-", dir=cache))
        making.chmod(0o755)
        try:
            make(making)
            os.sync()  # the name must not be there before the contents, or a power cut would leave a hollow cache
            making.rename(finished)
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            raise
    return finished


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _apt_source() -> Source:
    """The first archive in apt's sources that has this machine's release."""
    fields = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line
    )
    codename = fields.get("VERSION_CODENAME", "").strip('"')
    wanted = ["--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)", "Created-By: Packages"]
    listed = _run(["apt-get", "indextargets", *wanted], 60)
    for line in listed.splitlines():
        suite, component, mirror = line.split(" ", 2)
        if suite == codename and component == "main":
            return Source(suite, mirror)
    raise CannotMake(f"apt's sources have no main archive of {codename or 'this release'}")


def _make(source: Source, directory: Path) -> None:
    """Raises CannotMake when the mirror is out of reach; when debootstrap fails all the same, that is no reason to skip."""
    try:
        _download(directory)
    except CannotMake:  # perhaps a machine that never asked for the lists of packages
        _run(["apt-get", "update", "-q"], _DOWNLOAD_SECONDS)
        _download(directory)
    include = f"--include={','.join(PACKAGES)}"
    command = ["debootstrap", "--variant=minbase", include, source.suite, str(directory / "root"), source.mirror]
    try:
        _run(command, _DEBOOTSTRAP_SECONDS)
    except CannotMake as failed:
        raise RuntimeError(str(failed)) from failed


def _download(directory: Path) -> None:
    _run(["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", DOWNLOADED], _DOWNLOAD_SECONDS, directory)


def _run(command: list[str], seconds: float, directory: Path | None = None) -> str:
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(command, cwd=directory, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, errors="replace", timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotMake(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["no output"]
        raise CannotMake(f"{' '.join(command[:2])} failed: {lines[-1]}")
    return done.stdout
