"""A private mount namespace to run commands in: what they mount or cover is not seen by anybody else."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.commands.program import Argument, Done, environment, run
from tests.support import system

USER = 1000


class Namespace:
    """The mount namespace of the process *pid*, which only keeps it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def run(self, *arguments: Argument, user: int | None = None, env: dict[str, str] | None = None) -> Done:
        """Run a command in it, in its root directory, as root or *user*."""
        enter: list[Argument] = ["nsenter", "-t", str(self.pid), "-m", "--"]
        if user is not None:
            enter += ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--inh-caps=-all", "--"]
        return run(*arguments, command=enter, env=environment() if env is None else env)

    def must(self, *arguments: Argument, user: int | None = None, env: dict[str, str] | None = None) -> str:
        """Run a command that must succeed without a word on stderr; its output."""
        done = self.run(*arguments, user=user, env=env)
        assert (done.status, done.err) == (0, ""), arguments
        return done.out

    def bind(self, source: Path, target: Path | str) -> None:
        """Show *source* at *target*."""
        self.must("mount", "--bind", source, target)

    def add_file(self, scratch: Path, directory: str, file: Path) -> None:
        """Show *file* in the system's *directory*, which need not have such a name yet."""
        where = Path(directory).resolve()
        layers = [scratch / f"{where.name}.{part}" for part in ("upper", "work")]
        for layer in layers:
            layer.mkdir()
        shutil.copy(file, layers[0] / file.name, follow_symlinks=False)
        self.must("mount", "-t", "overlay", "-o", f"lowerdir={where},upperdir={layers[0]},workdir={layers[1]}", "none", where)

    def mounted_at(self, target: Path | str) -> list[str]:
        """The types of the mounts at *target*, the lowest first."""
        return [point.fstype for point in system.mount_points(self.pid) if point.target == str(target)]

    @contextmanager
    def holding(self, directory: Path) -> Iterator[None]:
        """Somebody has *directory* as working directory meanwhile."""
        command = ["nsenter", "-t", str(self.pid), "-m", "--", "setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--"]
        script = 'cd "$1" && echo here && exec sleep 1000'
        with subprocess.Popen([*command, "sh", "-c", script, "sh", directory], stdout=subprocess.PIPE, env=environment()) as holder:
            assert holder.stdout is not None and holder.stdout.readline() == b"here\n"
            yield
            holder.kill()

    def let_users_run_the_program(self, scratch: Path) -> None:
        """Python may live where only root gets, as below /root: such a directory is replaced by one that leads to it alone."""
        prefix = Path(sys.base_prefix).resolve()
        closed = [parent for parent in prefix.parents if not stat.S_IMODE(parent.stat().st_mode) & stat.S_IXOTH]
        if closed:
            kept = scratch / "prefix"
            kept.mkdir()
            self.bind(prefix, kept)
            self.must("mount", "-t", "tmpfs", "-o", "mode=755", "none", closed[-1])
            self.must("mkdir", "-p", prefix)
            self.bind(kept, prefix)

    def let_users_use_fuse(self, scratch: Path, *, mode: int = 0o666, conf: str = "") -> None:
        """A fuse device of our own with this mode, and an /etc/fuse.conf."""
        node = scratch / "fuse"
        os.mknod(node, stat.S_IFCHR, os.makedev(10, 229))
        node.chmod(mode)
        self.bind(node, "/dev/fuse")
        (scratch / "fuse.conf").write_text(conf)
        self.bind(scratch / "fuse.conf", "/etc/fuse.conf")


@contextmanager
def namespace() -> Iterator[Namespace]:
    """A new one; at the end every union in it is taken away."""
    with subprocess.Popen(["unshare", "-m", "--propagation", "private", "sleep", "1000"], env=environment()) as keeper:
        try:
            own = os.readlink("/proc/self/ns/mnt")
            while os.readlink(f"/proc/{keeper.pid}/ns/mnt") == own:
                time.sleep(0.002)
            yield Namespace(keeper.pid)
        finally:
            left = [point.connection for point in system.mount_points(keeper.pid) if point.fstype == "fuse.unionfs"]
            keeper.kill()
            keeper.wait()
            for process in system.processes():  # the namespace lives as long as a server in it
                if system.held_connections(process.pid) & {number for number in left if number is not None}:
                    os.kill(process.pid, signal.SIGKILL)
                    system.wait_until_gone(process.pid, 10)
