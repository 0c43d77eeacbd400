"""Mounts of who has no privileges, through fusermount3 or in his own user namespace: the commands, and what he then may do."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.commands.namespace import USER, Namespace, namespace
from tests.commands.program import Argument, Done, environment, make_layers, named
from tests.support import requirements, system
from tests.support.mounts import USER_OPTIONS, Layers, our_program

pytestmark = [
    *(pytest.mark.root, pytest.mark.fuse),
    pytest.mark.skipif(requirements.missing_for_fuse() is not None, reason=str(requirements.missing_for_fuse())),
]

#: Run by the owner of everything in the directory argv[1]. Prints what came of each step, and what is there in the end.
OWNER = """
import errno, os, stat, sys
os.chdir(sys.argv[1])

def step(name, call):
    try:
        result = call()
        print(name, "" if result is None else result)
    except OSError as error:
        print(name, errno.errorcode[error.errno])

def write(path, text="x"):
    with open(path, "a") as file:
        file.write(text)

def bare(path):
    fd = os.open(path, os.O_RDWR)
    os.chmod(path, 0)
    os.pwrite(fd, b"BARE", 0)
    os.ftruncate(fd, 6)
    found = os.pread(fd, 10, 0), oct(os.fstat(fd).st_mode)
    os.close(fd)
    return found

def bare_directory(path):
    fd = os.open(path + "/deep/file", os.O_RDWR)
    os.chmod(path + "/deep", 0)
    os.chmod(path, 0)
    os.pwrite(fd, b"!", 0)
    found = os.pread(fd, 10, 0), oct(os.fstat(fd).st_mode), oct(os.stat(path).st_mode)
    os.chmod(path, 0o755)
    os.chmod(path + "/deep", 0o755)
    return found

step("write below shut directories", lambda: write("shut/open/file"))
step("write in a shut directory", lambda: write("shut/file"))
step("make in a shut directory", lambda: write("shut/new"))
step("remove a shut directory", lambda: os.rmdir("empty"))
step("make it again", lambda: os.mkdir("empty", 0o555))
step("move it", lambda: os.rename("empty", "dir/moved"))
step("open, then shut", lambda: bare("file"))
step("open, then shut in shut directories", lambda: bare_directory("dir"))
step("read what is shut", lambda: open("secret").read())
step("open up and read what is shut", lambda: [os.chmod("mine", 0o600), open("mine").read()][1])
step("list what is shut", lambda: os.listdir("closed"))
step("open up and list", lambda: [os.chmod("closed", 0o700), os.listdir("closed")][1])
step("give away", lambda: os.chown("file", 4000, -1))
step("make a device", lambda: os.mknod("device", stat.S_IFCHR | 0o600, os.makedev(1, 3)))
step("make a whiteout", lambda: os.mknod("whiteout", stat.S_IFCHR | 0o600, 0))
step("link", lambda: os.link("shut/open/file", "linked"))
for name in ("file", "shut", "shut/open", "shut/open/file", "dir", "dir/moved"):
    step(name, lambda: oct(os.stat(name).st_mode))
"""


@dataclass
class Home:
    """Who mounts, and what he has."""

    ns: Namespace
    user: int | None  # as which he runs in ns; None: as its root
    scratch: Path
    layers: Layers
    mnt: Path

    def run(self, *arguments: Argument) -> Done:
        """Run our program as he does."""
        return self.do(*our_program(), *arguments)

    def do(self, *command: Argument) -> Done:
        """Run a command as he does."""
        return self.ns.run(*command, user=self.user, env=environment(XDG_RUNTIME_DIR=str(self.scratch / "runtime")))

    @property
    def records(self) -> list[str]:
        """What there is in his directory of live mounts."""
        return [str(path) for path in (self.scratch / "runtime").rglob("*") if path.is_file()]

    def words(self) -> list[str]:
        """The layers, as arguments of mount."""
        lowers = [word for lower in self.layers.lowers for word in ("--lower", str(lower))]
        return [*lowers, "--upper", str(self.layers.upper), "--work", str(self.layers.work)]

    def servers(self) -> list[int]:
        """The processes that serve his mount."""
        connections = {p.connection for p in system.mount_points(self.ns.pid) if p.target == str(self.mnt) and p.connection is not None}
        return [found.pid for found in system.processes() if system.held_connections(found.pid) & connections]


def furnish(layers: Layers) -> None:
    """What OWNER expects, in the first lower, owned by the user; some of it in upper."""
    lower, upper = layers.lowers[0], layers.upper
    assert upper is not None
    for path, mode in (("shut/open/file", 0o644), ("shut/file", 0o644), ("dir/deep/file", 0o644), ("secret", 0), ("closed/in", 0o644)):
        (lower / path).parent.mkdir(parents=True, exist_ok=True)
        (lower / path).write_text("lower text\n")
        (lower / path).chmod(mode)
    (lower / "empty").mkdir()
    (upper / "mine").write_text("mine\n")
    for path, mode in (("shut", 0o555), ("empty", 0o555), ("closed", 0o300)):
        (lower / path).chmod(mode)
    (upper / "mine").chmod(0)
    for top in (lower, upper):
        for found in top.rglob("*"):
            os.chown(found, USER, USER)


@pytest.fixture(params=["user", "namespace", "ranges"])
def home(scratch: Path, request: pytest.FixtureRequest) -> Iterator[Home]:
    layers = make_layers(scratch)
    for name in ("mnt", "runtime"):
        (scratch / name).mkdir()
    (scratch / "runtime").chmod(0o700)
    for path in (scratch / "mnt", scratch / "runtime", layers.upper, layers.work, *layers.lowers):
        assert path is not None
        os.chown(path, USER, USER)
    furnish(layers)
    with namespace() as ns:
        ns.let_users_run_the_program(scratch)
        ns.let_users_use_fuse(scratch, conf="user_allow_other\n")
        ns.let_the_user_have_ids(scratch)
        if request.param == "user":
            yield Home(ns, USER, scratch, layers, scratch / "mnt")
            return
        with ns.user_namespace(ranges=request.param == "ranges") as own:
            found = Home(own, None, scratch, layers, scratch / "mnt")
            yield found
            for pid in found.servers():
                os.kill(pid, 9)


def test_every_command_works_without_a_word_on_privileges(home: Home) -> None:
    assert home.run("mount", *home.words(), home.mnt) == Done(0, "", "")
    script = 'cd "$1"; cat file; echo x >new; rm only-lower0; mkdir a; rmdir a'
    assert home.do("sh", "-c", script, "sh", home.mnt) == Done(0, "in lower0\n", "")
    listed = home.run("list").out
    assert f"{home.mnt} (live, " in listed and "userxattr" in listed
    assert "lookup" in home.run("stats", home.mnt).out
    assert home.run("diff", home.mnt) == Done(0, "A /mine\nA /new\nD /only-lower0\n", "")
    servers = home.servers()
    assert len(servers) == 1
    assert home.run("umount", home.mnt) == Done(0, "", "")
    assert all(system.wait_until_gone(pid, 10) for pid in servers)
    assert home.ns.mounted_at(home.mnt) == []
    assert str(home.mnt) not in home.run("list").out
    assert home.records == []


def test_upper_is_checked_converted_and_compared_as_it_was_mounted(home: Home) -> None:
    lower, upper, work = home.layers.lowers[0], home.layers.upper, home.layers.work
    assert upper is not None and work is not None
    assert home.do("chmod", "-R", "u+rwX", lower, upper).status == 0
    home.run("mount", *home.words(), home.mnt)
    assert home.do("sh", "-c", 'cd "$1"; mv dir moved', "sh", home.mnt).status == 0
    told = home.run("diff", home.mnt)
    home.run("umount", home.mnt)
    assert "A /moved" in told.out and "D /dir" in told.out
    assert home.run("fsck", *home.words()) == Done(0, "", "")
    assert home.run("diff", upper, "--lower", lower) == told
    assert home.run("convert", upper, "--lower", lower, "--work", work, "--to", "userxattr") == Done(0, "", "")
    assert home.run("diff", upper, "--lower", lower) == told


def test_what_cannot_be_without_privileges_is_refused_by_name(home: Home) -> None:
    done = home.run("mount", *home.words(), "-o", "redirect_dir=on", home.mnt)
    assert done.status == 2 and "redirect_dir=on" in done.err and "CAP_SYS_ADMIN" in done.err and len(done.lines) == 1


def test_the_mount_program_works_as_an_engine_calls_it(home: Home) -> None:
    program = named(home.scratch, "mount.fuse.unionfs")
    options = f"lowerdir={home.layers.lowers[0]},upperdir={home.layers.upper},workdir={home.layers.work}"
    assert home.do(*program, "-o", options, home.mnt) == Done(0, "", "")
    assert home.do("cat", home.mnt / "file").out == "in lower0\n"
    assert home.do("umount" if home.user is None else "fusermount3", *([] if home.user is None else ["-u"]), home.mnt).status == 0
    assert home.ns.mounted_at(home.mnt) == []


def test_a_killed_server_leaves_nothing_that_hinders(home: Home) -> None:
    home.run("mount", *home.words(), home.mnt)
    home.do("sh", "-c", 'echo x >"$1/new"', "sh", home.mnt)
    (server,) = home.servers()
    home.do("kill", "-KILL", str(server))
    assert system.wait_until_gone(server, 10)
    deadline = time.monotonic() + 10
    while "(dead" not in home.run("list").out:
        assert time.monotonic() < deadline
    assert home.run("umount", home.mnt).status == 0
    assert home.ns.mounted_at(home.mnt) == []
    assert home.run("mount", *home.words(), home.mnt) == Done(0, "", "")
    assert home.do("cat", home.mnt / "new").out == "x\n"
    assert home.run("umount", home.mnt) == Done(0, "", "")
    home.run("list")  # takes what the dead one left along
    assert home.records == []
    assert home.layers.work is not None and os.listdir(home.layers.work / "work") == []


@pytest.mark.overlayfs
def test_the_kernel_s_engine_is_taken_where_it_may_be(home: Home) -> None:
    done = home.run("mount", "--engine=auto", *home.words(), home.mnt)
    assert done.status == 0 and len(done.lines) == 1
    assert done.err.startswith("unionfs: engine kernel\n" if home.user is None else "unionfs: engine channel: ")
    assert home.ns.mounted_at(home.mnt) == ["overlay" if home.user is None else "fuse.unionfs"]
    home.do("sh", "-c", 'echo x >"$1/new"; rm "$1/only-lower0"', "sh", home.mnt)
    assert home.run("umount", home.mnt) == Done(0, "", "")
    assert home.run("mount", *home.words(), home.mnt) == Done(0, "", "")
    assert home.do("sh", "-c", 'cat "$1/new"; ls "$1/only-lower0"', "sh", home.mnt).out == "x\n"
    assert home.run("umount", home.mnt) == Done(0, "", "")


@pytest.mark.overlayfs
def test_an_owner_may_do_what_the_kernels_overlayfs_lets_him(home: Home) -> None:
    """The kernel's is mounted in the same namespace; for a user without one by root."""
    theirs, upper, work = (home.scratch / name for name in ("theirs", "their-upper", "their-work"))
    subprocess.run(["cp", "-a", home.scratch / "upper", upper], check=True)
    for path in (theirs, work):
        path.mkdir()
        os.chown(path, USER, USER)
    options = f"lowerdir={home.layers.lowers[0]},upperdir={upper},workdir={work},{USER_OPTIONS}"
    home.ns.must("mount", "-t", "overlay", "-o", options, "none", theirs)
    wanted = home.do(sys.executable, "-c", OWNER, theirs)
    assert wanted.err == ""
    home.ns.must("umount", theirs)
    assert home.run("mount", *home.words(), home.mnt) == Done(0, "", "")
    done = home.do(sys.executable, "-c", OWNER, home.mnt)
    assert done.err == ""
    expected = wanted.out.splitlines()
    if home.user is not None:  # what he could not list in the lower before he still cannot (see README.md): the server is he
        expected[expected.index("open up and list ['in']")] = "open up and list EACCES"
    assert done.out.splitlines() == expected
