"""A server killed at random moments while directories of lowers are renamed, metacopies made and filled, and links made and removed.

A plain directory is told of every change that was answered. After a kill the union has to be that directory, without or with the one
change that was under way: not half of one, and none missing. The kernel's overlayfs has to see the same in the same upper, and the check
nothing but leftovers. ``UNIONFS_KILLS`` says how often to kill, ``UNIONFS_SEED`` where the random choices begin.
"""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.support import tree
from tests.support.mounts import Layers, Mount, Mounts
from unionfs.linux import files
from unionfs.overlay.check import check
from unionfs.overlay.features import Features

KILLS = int(os.environ.get("UNIONFS_KILLS", "30"))
SEED = int(os.environ.get("UNIONFS_SEED", "1"))
SECONDS_EACH = 4

OPTIONS = "redirect_dir=on,metacopy=on,index=on,xino=off"


@dataclass(frozen=True)
class Way:
    """How the layers are mounted by us and by the kernel, and checked. Only with an index are hard links of lowers what a directory has."""

    ours: str
    kernel: str
    features: Features


WAYS = {
    "all": Way(OPTIONS, OPTIONS, Features(index=True, metacopy=True)),
    "userxattr": Way("userxattr,rename_copy_limit=1g", "userxattr,xino=off", Features(userxattr=True, copy_limit=1 << 30)),
}
OLD = 1_000_000_000 * 10**9
#: Some take long enough to copy for a kill to hit.
SIZES = (0, 100, 5_000, 200_000, 3_000_000)


def body(number: int, size: int) -> bytes:
    return (b"%d. " % number * (size // 3 + 1))[:size]


def fill(lowers: tuple[Path, ...], rng: random.Random, *, links: bool = True) -> None:
    """Random directories and files in each, with hard links if asked; what is in both merges or hides."""
    number = 0
    for lower in lowers:
        made: list[Path] = []
        for top in "abcd":
            for middle in rng.sample("abcd", 3):
                (lower / top / middle).mkdir(parents=True)
                for name in rng.sample(["f", "g", "h", "i"], 3):
                    number += 1
                    path = lower / top / middle / name
                    if links and made and rng.randrange(4) == 0:
                        os.link(rng.choice(made), path)
                    else:
                        path.write_bytes(body(number, rng.choice(SIZES)))
                        made.append(path)
            os.symlink("nowhere", lower / top / "l")
        for directory, _, names in os.walk(lower, topdown=False):
            for name in (*names, "."):
                os.utime(os.path.join(directory, name), ns=(OLD, OLD), follow_symlinks=False)


Step = Callable[[Path], None]


class Steps:
    """Random changes; each is a function of the tree it is to be done to, and there one system call."""

    def __init__(self, rng: random.Random, like: Path) -> None:
        self._rng = rng
        self._like = like
        self._number = 0

    def _paths(self) -> tuple[list[str], list[str]]:
        """All directories but the root, all others."""
        directories, others = [], []
        for above, below, names in os.walk(self._like):
            here = os.path.relpath(above, self._like)
            directories += [os.path.join(here, name) for name in below]
            others += [os.path.join(here, name) for name in names]
        return sorted(directories), sorted(others)

    def __iter__(self) -> Iterator[tuple[str, Step]]:
        while True:
            yield self._next()

    def _next(self) -> tuple[str, Step]:
        rng = self._rng
        directories, others = self._paths()
        regular = [path for path in others if stat.S_ISREG(os.lstat(self._like / path).st_mode)]
        self._number += 1
        place = os.path.join(rng.choice([".", *directories]), rng.choice(["a", "b", "c", "d", "f", "g", f"n{self._number % 7}"]))
        a_directory, a_file, anything = rng.choice(directories), rng.choice(regular), rng.choice([*directories, *others])
        number = self._number

        def rename(old: str, new: str, flags: int = 0) -> tuple[str, Step]:
            return f"rename {old} {new} {flags}", lambda top: files.renameat2(
                -100, os.fsencode(top / old), -100, os.fsencode(top / new), flags)

        def write(top: Path) -> None:
            fd = os.open(top / a_file, os.O_WRONLY)
            try:
                os.pwrite(fd, b"<%6d>" % number, 0)
            finally:
                os.close(fd)

        def make(top: Path) -> None:
            os.close(os.open(top / place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))

        choice = rng.randrange(20)
        if choice < 5:
            return rename(a_directory, place)
        if choice < 6:
            return rename(a_directory, rng.choice(directories))
        if choice < 8:
            return rename(a_directory, rng.choice([*directories, *others]), files.RENAME_EXCHANGE)
        if choice < 10:
            return rename(a_file, rng.choice([place, rng.choice(regular)]))
        if choice < 12:
            mode = rng.choice((0o600, 0o640, 0o644, 0o755))
            return f"chmod {a_file} {mode:o}", lambda top: os.chmod(top / a_file, mode)
        if choice < 14:
            return f"write {a_file}", write
        if choice < 15:
            size = rng.choice((0, 50, 10_000))
            return f"truncate {a_file} {size}", lambda top: os.truncate(top / a_file, size)
        if choice < 16:
            return f"link {a_file} {place}", lambda top: os.link(top / a_file, top / place)
        if choice < 17:
            return f"make {place}", make
        if choice < 18:
            return f"mkdir {place}", lambda top: os.mkdir(top / place)
        if choice < 19:
            anything = rng.choice([self._last_below(a_directory), anything])
        if stat.S_ISDIR(os.lstat(self._like / anything).st_mode):
            return f"rmdir {anything}", lambda top: os.rmdir(top / anything)
        return f"unlink {anything}", lambda top: os.unlink(top / anything)

    def _last_below(self, path: str) -> str:
        """Something in or below *path* that can go, or itself: again and again, this is rm -r."""
        inside = sorted(os.listdir(self._like / path))
        if not inside:
            return path
        path = os.path.join(path, inside[0])
        return self._last_below(path) if stat.S_ISDIR(os.lstat(self._like / path).st_mode) else path


def outcome(step: Step, top: Path) -> int:
    """0, or the error number."""
    try:
        step(top)
    except OSError as error:
        return error.errno or -1
    return 0


def is_dead(mount: Mount) -> bool:
    try:
        os.statvfs(mount.target)
    except OSError:
        return True
    return False


def seen(top: Path) -> tree.Snapshot:
    """All but what may be torn in the one change that a kill interrupts: when a directory was changed."""
    return {
        path: replace(entry, mtime="") if entry.kind == "directory" else entry for path, entry in tree.snapshot(top).items()
    }


def uncounted(found: tree.Snapshot) -> tree.Snapshot:
    """Without link counts: a union's count of a lower file includes names of it that something hides."""
    return {path: replace(entry, nlink=None) for path, entry in found.items()}


def work_until_killed(mount: Mount, mirror: Path, steps: Iterator[tuple[str, Step]], after: float) -> tuple[str, Step] | None:
    """Change the union and the mirror in step until the server is dead; the change that was not answered, None if none was asked."""
    def kill() -> None:
        for pid in mount.servers:
            os.kill(pid, signal.SIGKILL)

    mount.kill_expected()
    timer = threading.Timer(after, kill)
    timer.start()
    try:
        for name, step in steps:
            ours = outcome(step, mount.target)
            if ours and is_dead(mount):
                return name, step
            assert ours == outcome(step, mirror), f"{name}: error {ours} is not the plain directory's"
    finally:
        timer.join()
    return None


def complaints(layers: Layers, features: Features) -> list[str]:
    """What the check finds and no next mount would make right by itself."""
    assert layers.upper is not None and layers.work is not None
    lowers = [os.fsencode(lower) for lower in layers.lowers]
    found = check(os.fsencode(layers.upper), lowers, os.fsencode(layers.work), features)
    return [f"{finding.path!r}: {finding.text}" for finding in found
            if not (finding.harmless or finding.repairable)]


@pytest.mark.timeout(60 + KILLS * SECONDS_EACH)
@pytest.mark.parametrize(("way", "kills"), [("all", KILLS), ("userxattr", KILLS // 3)])
def test_a_killed_server_leaves_every_change_done_or_not_begun(mounts: Mounts, scratch: Path, way: str, kills: int) -> None:
    how = WAYS[way]
    rng = random.Random(SEED)
    lowers = (scratch / "top", scratch / "bottom")
    for name in ("top", "bottom", "upper", "work"):
        (scratch / name).mkdir(mode=0o755)
    fill(lowers, rng, links=how.features.index)
    layers = Layers(lowers, scratch / "upper", scratch / "work")
    before = [tree.fingerprint(lower) for lower in lowers]
    first = mounts.kernel(layers, options=how.kernel)
    mirror = scratch / "mirror"
    subprocess.run(["cp", "-a", str(first.target), str(mirror)], check=True, timeout=60)
    assert first.unmount() == []
    steps = iter(Steps(rng, mirror))
    history: list[str] = []

    def recorded() -> Iterator[tuple[str, Step]]:
        for name, step in steps:
            history.append(name)
            yield name, step

    mount = mounts.ours(layers, "-o", how.ours)
    for kill in range(kills):
        pending = work_until_killed(mount, mirror, recorded(), rng.uniform(0, 0.25))
        mount.unmount()
        told = f"seed {SEED}, kill {kill}, after {history[-4:]}"
        assert complaints(layers, how.features) == [], told
        theirs = mounts.kernel(layers, options=how.kernel)
        by_kernel = seen(theirs.target)
        assert theirs.unmount() == []
        mount = mounts.ours(layers, "-o", how.ours)
        ours = seen(mount.target)
        assert tree.difference(ours, by_kernel, ("ours", "the kernel's")) == "", told
        ours = uncounted(ours)
        without = tree.difference(ours, uncounted(seen(mirror)), ("ours", "the mirror"))
        if without and pending is not None:
            outcome(pending[1], mirror)
            with_it = tree.difference(ours, uncounted(seen(mirror)), ("ours", "the mirror"))
            assert with_it == "", f"{told}:\n{with_it}\nand before the last change:\n{without}"
        else:
            assert without == "", told
    assert mount.unmount() == []
    assert [tree.fingerprint(lower) for lower in lowers] == before
