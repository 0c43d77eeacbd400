"""The real podman, with its storage in a directory of the test, in a private mount namespace.

Nothing of the host's configuration is used. Containers run without cgroups (``--cgroups=disabled``), as a test machine's cgroups may be
anything, and without network.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.commands.namespace import USER, Namespace, namespace
from tests.commands.program import Done
from tests.support import system
from tests.support.mounts import our_program

#: Where the storage is in the namespace: conmon's sockets need short paths, and without them podman waits 20 s for each container's end.
HOME = Path("/mnt")
#: What every container is started with.
CONTAINER = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", "--cgroups=disabled", "--network=none")
_PROGRAMS = ("sh", "ls", "cat", "touch", "rm", "mv", "mkdir", "id", "stat", "echo", "true", "cp", "ln", "chmod", "chown", "find", "sort",
             "rmdir", "md5sum", "test", "du", "tar")


def missing() -> str | None:
    """Why podman cannot be tried here."""
    for program in ("podman", "crun", "busybox"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    return None if os.geteuid() == 0 else "needs root for a private mount namespace"


def make_image(directory: Path) -> Path:
    """A root file system as a tar archive: busybox, users, and something to change."""
    root = directory / "image"
    for name in ("bin", "etc", "tmp", "proc", "sys", "dev", "usr/share/data/deep", "home"):
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, root / "bin/busybox")
    for program in _PROGRAMS:
        (root / "bin" / program).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    (root / "usr/share/data/file").write_text("data\n")
    (root / "usr/share/data/deep/file").write_text("deep\n")
    os.link(root / "usr/share/data/file", root / "usr/share/link")
    (root / "usr/share/suid").write_text("x")
    (root / "usr/share/suid").chmod(0o4755)
    archive = directory / "image.tar"
    subprocess.run(["tar", "-C", root, "--numeric-owner", "--owner=0", "--group=0", "-cf", archive, "."], check=True)
    return archive


@dataclass
class Engine:
    """podman with one storage directory, ``home`` as the test sees it. ``program``: its mount program, None for the kernel's overlayfs."""

    ns: Namespace
    home: Path
    program: str | None
    user: int | None = None

    def configure(self) -> None:
        """Write the storage configuration; the mount program may change between two calls, which is the point of some tests."""
        lines = ["[storage]", 'driver = "overlay"', f'graphroot = "{HOME}/graph"', f'runroot = "{HOME}/run/storage"']
        lines.append("[storage.options.overlay]")
        if self.program is not None:
            lines.append(f'mount_program = "{self.program}"')
        (self.home / "storage.conf").write_text("\n".join(lines) + "\n")
        (self.home / "containers.conf").write_text(
            f'[engine]\ntmp_dir = "{HOME}/tmp"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n')
        (self.home / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')

    def call(self, *arguments: str) -> Done:
        """podman ARGUMENTS."""
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(HOME), "XDG_RUNTIME_DIR": str(HOME / "run"),
            "CONTAINERS_STORAGE_CONF": str(HOME / "storage.conf"), "CONTAINERS_CONF": str(HOME / "containers.conf"),
            "TMPDIR": str(HOME / "tmp"), "LC_ALL": "C.UTF-8",
        }  # fmt: skip
        environment |= {name: value for name, value in os.environ.items() if name.startswith("UNIONFS_TEST")}
        return self.ns.run("timeout", "30", "podman", "--cgroup-manager=cgroupfs", *arguments, env=environment, user=self.user)

    def must(self, *arguments: str) -> str:
        """podman ARGUMENTS, which has to succeed; its output."""
        done = self.call(*arguments)
        assert done.status == 0, f"podman {arguments}: {done.status}\n{done.out}{done.err}"
        return done.out

    def move_to(self, program: str | None, target: str) -> None:
        """Hand the whole storage over to another mount program (None: the kernel): every layer is converted for it, the lowest first."""
        overlay = self.home / "graph" / "overlay"
        found: list[tuple[list[Path], Path]] = []
        for layer in overlay.iterdir():
            chain = (layer / "lower").read_text().split(":") if (layer / "lower").exists() else []
            if chain:
                found.append(([(overlay / lower).resolve() for lower in chain], layer))
        for lowers, layer in sorted(found, key=lambda one: len(one[0])):
            words: list[str | Path] = [word for lower in lowers for word in ("--lower", lower)]
            work: list[str | Path] = ["--work", layer / "work"] if (layer / "work").exists() else []
            self.ns.must(*our_program(), "convert", "-o", "whfiles", *words, *work, "--to", target, layer / "diff")
        (overlay / ".has-mount-program").unlink(missing_ok=True)
        self.program = program
        self.configure()

    def run(self, image: str, script: str, *options: str) -> str:
        """The output of a shell script in a new container that is removed afterwards."""
        return self.must("run", "--rm", *CONTAINER, *options, image, "/bin/sh", "-ec", script)


def _prepare(ns: Namespace, scratch: Path) -> None:
    ns.run("umount", "/sys/fs/cgroup/unified")  # crun wants one kind of cgroups
    null = scratch / "null"  # crun gives a container's user what it has as standard input
    os.mknod(null, stat.S_IFCHR, os.makedev(1, 3))
    null.chmod(0o666)
    ns.bind(null, "/dev/null")


@contextmanager
def engine(scratch: Path, disk: Path | None = None) -> Iterator[Engine]:
    """podman as root, ours as its mount program; its storage is on *disk*, a directory of the test unless another is given."""
    with namespace() as ns:
        _prepare(ns, scratch)
        home = (disk or scratch) / "home"
        for name in ("", "graph", "run", "tmp"):
            (home / name).mkdir()
        ns.bind(home, HOME)
        made = Engine(ns, home, our_program()[0])
        made.configure()
        yield made


@contextmanager
def rootless_engine(scratch: Path) -> Iterator[Engine]:
    """podman as an ordinary user with subordinate ids, ours as its mount program."""
    with namespace() as ns:
        _prepare(ns, scratch)
        ns.let_users_run_the_program(scratch)
        ns.let_users_use_fuse(scratch)
        for name in ("subuid", "subgid"):
            (scratch / name).write_text(f"{USER}:100000:65536\n")
            ns.bind(scratch / name, f"/etc/{name}")
        home = scratch / "user"
        for name in ("", "graph", "run", "tmp"):
            (home / name).mkdir()
            os.chown(home / name, USER, USER)
        (home / "run").chmod(0o700)
        ns.bind(home, HOME)
        made = Engine(ns, home, our_program()[0], USER)
        made.configure()
        try:
            yield made
        finally:
            _end_pause(home)


def _end_pause(home: Path) -> None:
    """The process that keeps a user's namespaces between two calls of podman stays for ever otherwise."""
    for found in home.glob("**/pause.pid"):
        pid = int(found.read_text())
        os.kill(pid, signal.SIGKILL)
        system.wait_until_gone(pid, 10)
