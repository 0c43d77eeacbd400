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

import unionfs
from tests.commands.program import Argument, Done, environment, run
from tests.support import system

USER = 1000


class Namespace:
    """The mount namespace of the process *pid*, which only keeps it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def entering(self, user: int | None = None) -> list[str]:
        """What to put before a command that is to run in it, in its root directory, as root or *user*."""
        enter = ["nsenter", "-t", str(self.pid), "-m", "--"]
        if user is not None:
            enter += ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--inh-caps=-all", "--"]
        return enter

    def run(self, *arguments: Argument, user: int | None = None, env: dict[str, str] | None = None) -> Done:
        """Run a command in it, in its root directory, as root or *user*."""
        return run(*arguments, command=list(self.entering(user)), env=environment() if env is None else env)

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
        """Python and the program may live where only root gets, as below /root: there a directory that leads to them alone is put.

        And the user and his group get names, without which fusermount3, or podman, does nothing.
        """
        needed = [Path(sys.base_prefix).resolve(), Path(unionfs.__file__).resolve().parents[1]]
        shut = [where for where in needed if any(not stat.S_IMODE(p.stat().st_mode) & stat.S_IXOTH for p in where.parents)]
        for number, where in enumerate(shut):
            (scratch / f"open{number}").mkdir()
            self.bind(where, scratch / f"open{number}")
        for top in {_outermost_closed(where) for where in shut}:
            self.must("mount", "-t", "tmpfs", "-o", "mode=755", "none", top)
        for number, where in enumerate(shut):
            self.must("mkdir", "-p", where)
            self.bind(scratch / f"open{number}", where)
        passwd = scratch / "passwd"
        passwd.write_text(Path("/etc/passwd").read_text() + f"unionfs-test:x:{USER}:{USER}::/:/bin/sh\n")
        self.bind(passwd, "/etc/passwd")
        group = scratch / "group"
        group.write_text(Path("/etc/group").read_text() + f"unionfs-test:x:{USER}:\n")
        self.bind(group, "/etc/group")

    def let_the_user_have_ids(self, scratch: Path) -> None:
        """Ranges of ids for the user's namespaces, which newuidmap and newgidmap give out."""
        for name in ("subuid", "subgid"):
            (scratch / name).write_text(f"{USER}:100000:65536\n")
            if not Path("/etc", name).exists():
                self.add_file(scratch, "/etc", scratch / name)
            else:
                self.bind(scratch / name, f"/etc/{name}")

    @contextmanager
    def user_namespace(self, *, ranges: bool) -> Iterator[UserNamespace]:
        """The user's own namespaces of users and mounts, as of ``unshare -Ur``; *ranges*: with the ids of /etc/subuid as well."""
        make = ["unshare", "-Urm", "--propagation", "private", *(["--map-auto"] if ranges else []), "sleep", "1000"]
        with subprocess.Popen([*self.entering(USER), *make], env=environment()) as keeper:
            try:
                deadline = time.monotonic() + 10
                while Path(f"/proc/{keeper.pid}/comm").read_text() != "sleep\n":
                    assert keeper.poll() is None and time.monotonic() < deadline, "no user namespace"
                    time.sleep(0.002)
                yield UserNamespace(self, keeper.pid)
            finally:
                keeper.kill()
                keeper.wait()

    def let_users_use_fuse(self, scratch: Path, *, mode: int = 0o666, conf: str = "") -> None:
        """A fuse device of our own with this mode, and an /etc/fuse.conf."""
        node = scratch / "fuse"
        os.mknod(node, stat.S_IFCHR, os.makedev(10, 229))
        node.chmod(mode)
        self.bind(node, "/dev/fuse")
        (scratch / "fuse.conf").write_text(conf)
        self.bind(scratch / "fuse.conf", "/etc/fuse.conf")


class UserNamespace(Namespace):
    """The same of a user namespace within *outer*: commands run as the root of that, who outside is the user."""

    def __init__(self, outer: Namespace, pid: int) -> None:
        super().__init__(pid)
        self.outer = outer

    def entering(self, user: int | None = None) -> list[str]:
        inside = ["nsenter", "-t", str(self.pid), "-U", "-m", "--preserve-credentials", "--"]
        if user is not None:
            inside += ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--"]
        return self.outer.entering(USER) + inside


def _connections(pid: int) -> set[int]:
    """The FUSE connections of the unions that the process *pid* sees."""
    points = system.mount_points(pid)
    return {point.connection for point in points if point.fstype == "fuse.unionfs" and point.connection is not None}


def _outermost_closed(where: Path) -> Path:
    return [parent for parent in where.parents if not stat.S_IMODE(parent.stat().st_mode) & stat.S_IXOTH][-1]


@contextmanager
def namespace() -> Iterator[Namespace]:
    """A new one; at the end every union in it is taken away."""
    with subprocess.Popen(["unshare", "-m", "--propagation", "private", "sleep", "1000"], env=environment()) as keeper:
        try:
            own = os.readlink("/proc/self/ns/mnt")
            while os.readlink(f"/proc/{keeper.pid}/ns/mnt") == own:
                time.sleep(0.002)
            copied = _connections(keeper.pid)  # the mounts of the host show here too, and are none of our business
            yield Namespace(keeper.pid)
        finally:
            left = _connections(keeper.pid) - copied
            keeper.kill()
            keeper.wait()
            for process in system.processes():  # the namespace lives as long as a server in it
                if system.held_connections(process.pid) & left:
                    os.kill(process.pid, signal.SIGKILL)
                    system.wait_until_gone(process.pid, 10)
