"""The same script on the same layers, once in `unionfs run` and once on the kernel's overlayfs, and the trees compared."""

from __future__ import annotations

import fnmatch
import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from tests.support import tree
from tests.support.mounts import REPOSITORY, Layers, Mount, Mounts, our_program
from tests.support.tree import Snapshot

SECONDS = 200.0
#: Of every mount; `unionfs run` has these by itself.
OPTIONS = "redirect_dir=on,index=off,metacopy=off,xino=off"
_BAD_LOG_WORDS = (" WARNING ", " ERROR ", " CRITICAL ")

#: What `unionfs run` gives its command, by the tools everybody has.
_CHROOT = """
cd "$1"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=755 tmpfs dev
mknod -m 666 dev/null c 1 3; mknod -m 666 dev/zero c 1 5; mknod -m 666 dev/full c 1 7
mknod -m 666 dev/random c 1 8; mknod -m 666 dev/urandom c 1 9; mknod -m 666 dev/tty c 5 0
ln -s /proc/self/fd dev/fd; ln -s fd/0 dev/stdin; ln -s fd/1 dev/stdout; ln -s fd/2 dev/stderr
mkdir dev/pts dev/shm
mount -t devpts -o mode=620,gid=5,ptmxmode=666 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
hostname unionfs
exec chroot . /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/root HOSTNAME=unionfs TERM=dumb sh -eu /input/script
"""


@dataclass(frozen=True)
class Unequal:
    """Files whose `fields` (of tree.Entry) differ from run to run on one and the same filesystem, and why."""

    pattern: str
    fields: frozenset[str]
    why: str


@dataclass(frozen=True)
class Outcome:
    """What a side made of the script."""

    code: int
    output: str


class Sides:
    """Two stacks on the same lowers, topmost first; each side has an upper of its own."""

    def __init__(self, scratch: Path, mounts: Mounts, lowers: tuple[Path, ...]) -> None:
        self._scratch = scratch
        self._mounts = mounts
        self.ours = self._layers(lowers, "ours")
        self.kernel = self._layers(lowers, "kernel")

    def _layers(self, lowers: tuple[Path, ...], name: str) -> Layers:
        upper, work = self._scratch / name / "upper", self._scratch / name / "work"
        upper.mkdir(parents=True)
        work.mkdir()
        return Layers(lowers, upper, work)

    def work_in_ours(self) -> Outcome:
        """Run /input/script in `unionfs run`."""
        layers, log = self.ours, self._scratch / "server.log"
        options = ["--network", "none", "--scratch", str(self._scratch / "runs")]
        for lower in layers.lowers:
            options += ["--lower", str(lower)]
        options += ["--upper", str(layers.upper), "--work", str(layers.work)]
        environment = {**os.environ, "UNIONFS_LOG": str(log), "TERM": "dumb"}
        outcome = _finish([*our_program(), "run", *options, "--", "sh", "-eu", "/input/script"], environment)
        logged = log.read_text(errors="replace").splitlines() if log.exists() else []
        bad = [line for line in logged if any(word in line for word in _BAD_LOG_WORDS)]
        assert not bad, "\n".join(bad)
        return outcome

    def work_in_the_kernels(self) -> Outcome:
        """Run /input/script in a chroot on the kernel's overlayfs."""
        mount = self.mount("kernel")
        isolated = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "--net"]
        try:
            return _finish([*isolated, "sh", "-eu", "-c", _CHROOT, "sh", str(mount.target)], dict(os.environ))
        finally:
            mount.unmount()

    def mount(self, kind: str) -> Mount:
        """The side `kind`, ours or kernel, mounted."""
        return self._mounts.by_kind(kind)({"ours": self.ours, "kernel": self.kernel}[kind], options=OPTIONS)

    def differences(self, unequal: tuple[Unequal, ...]) -> str:
        """What differs between our view of our upper, the kernel's of its own, and the kernel's of ours."""
        kernel = _forgiving(self._view("kernel", self.kernel), unequal)
        ours = _forgiving(self._view("ours", self.ours), unequal)
        crossed = _forgiving(self._view("kernel", self.ours), unequal)
        return "\n".join(filter(None, [
            tree.difference(ours, kernel, ("ours", "the kernel's overlayfs")),
            tree.difference(crossed, kernel, ("our upper under the kernel's overlayfs", "the kernel's overlayfs")),
        ]))

    def _view(self, kind: str, layers: Layers) -> Snapshot:
        mount = self._mounts.by_kind(kind)(layers, options=OPTIONS)
        try:
            return tree.snapshot(mount.target, hide_ghosts=True)
        finally:
            complaints = mount.unmount()
            assert not complaints, "\n".join(complaints)

    def discard(self) -> None:
        """Give the disk space back at once: the uppers of a session may add up."""
        for layers in (self.ours, self.kernel):
            for directory in (layers.upper, layers.work):
                assert directory is not None
                shutil.rmtree(directory)


def _finish(command: list[str], environment: dict[str, str]) -> Outcome:
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, errors="replace", timeout=SECONDS, check=False)
    return Outcome(done.returncode, done.stdout)


def _forgiving(snapshot: Snapshot, unequal: tuple[Unequal, ...]) -> Snapshot:
    """The snapshot without the fields that are known to be unequal."""
    known = dict(snapshot)
    for item in unequal:
        matching = fnmatch.filter((os.fsdecode(path) for path in known), item.pattern)
        assert matching, f"nothing is called {item.pattern} (unequal because {item.why})"
        for path in map(os.fsencode, matching):
            blank: dict[str, object] = dict.fromkeys(item.fields)
            known[path] = replace(known[path], **blank)  # type: ignore[arg-type]
    return known
