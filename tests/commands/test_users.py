"""Mounts of ordinary users, through fusermount3."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.commands.namespace import USER, Namespace, namespace
from tests.commands.program import Argument, Done, environment, make_layers
from tests.support import requirements
from tests.support.mounts import Layers, our_program

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(requirements.missing_for_fuse() is not None, reason=str(requirements.missing_for_fuse())),
]

ONLY_YOU = "unionfs: warning: only you can enter the mount: user_allow_other is not set in /etc/fuse.conf"


@dataclass
class Home:
    """What a user has."""

    ns: Namespace
    scratch: Path
    layers: Layers
    mnt: Path

    def run(self, *arguments: Argument) -> Done:
        """Run our program as the user."""
        return self.ns.run(*our_program(), *arguments, user=USER, env=environment(XDG_RUNTIME_DIR=str(self.scratch / "runtime")))

    def mount(self, *more: Argument) -> Done:
        """Mount the layers."""
        lowers = [word for lower in self.layers.lowers for word in ("--lower", lower)]
        upper = ["--upper", str(self.layers.upper), "--work", str(self.layers.work)]
        return self.run("mount", *lowers, *upper, *more, self.mnt)

    def flags(self) -> str:
        return self.ns.must("findmnt", "-n", "-o", "OPTIONS", self.mnt)


@pytest.fixture
def home(scratch: Path) -> Iterator[Home]:
    layers = make_layers(scratch)
    for name in ("mnt", "runtime"):
        (scratch / name).mkdir()
    (scratch / "runtime").chmod(0o700)
    for path in (scratch / "mnt", scratch / "runtime", layers.upper, layers.work):
        assert path is not None
        os.chown(path, USER, USER)
    with namespace() as ns:
        ns.let_users_run_the_program(scratch)
        ns.let_users_use_fuse(scratch)
        yield Home(ns, scratch, layers, scratch / "mnt")


def test_a_user_mounts_changes_looks_and_unmounts(home: Home) -> None:
    assert home.mount() == Done(0, "", ONLY_YOU + "\n")
    home.ns.must("sh", "-c", 'cd "$1"; cat file; echo x >new; rm only-lower0', "sh", home.mnt, user=USER)
    assert f"{home.mnt} (live, engine channel, rw,userxattr, process " in home.run("list").out
    assert "lookup" in home.run("stats", home.mnt).out
    assert home.run("diff", home.mnt) == Done(0, "A /new\nD /only-lower0\n", "")
    assert home.run("umount", home.mnt) == Done(0, "", "")
    assert home.ns.mounted_at(home.mnt) == []
    assert str(home.mnt) not in home.run("list").out


def test_others_stay_out_unless_fuse_conf_lets_users_decide(home: Home) -> None:
    home.mount()
    assert home.ns.run("cat", home.mnt / "file", user=USER + 1).status != 0
    home.run("umount", home.mnt)
    (home.scratch / "fuse.conf").write_text("# comment\n user_allow_other \n")
    assert home.mount() == Done(0, "", "")
    assert "allow_other" in home.flags()
    assert home.ns.must("cat", home.mnt / "file", user=USER + 1) == "in lower0\n"


def test_suid_and_devices_are_off_for_users(home: Home) -> None:
    home.mount("-o", "noatime")
    assert {"nosuid", "nodev", "noatime"} <= set(home.flags().strip().split(","))


def test_a_directory_that_cannot_be_read_is_named(home: Home) -> None:
    lower, upper, work = home.layers.lowers[0], home.layers.upper, home.layers.work
    assert upper is not None and work is not None
    shut = upper / "dir" / "shut"
    shut.mkdir(parents=True)
    for path in (shut, shut.parent):
        os.chown(path, USER, USER)
    shut.chmod(0o300)
    named = f"unionfs: {shut}: Permission denied\n"
    assert home.run("diff", upper, "--lower", lower) == Done(1, "", named)
    assert home.run("fsck", "--upper", upper, "--lower", lower, "--work", work) == Done(8, "", named)
    to_oci = ("convert", upper, "--lower", lower, "--work", work, "--to", "oci")
    assert home.run(*to_oci) == Done(0, "", "")  # it may have its owner's bits while it is converted
    assert stat.S_IMODE(shut.stat().st_mode) == 0o300
    os.chown(shut, 0, 0)
    assert home.run(*to_oci) == Done(1, "", named)


def test_a_busy_mount_is_told_so_and_goes_lazily(home: Home) -> None:
    home.mount()
    with home.ns.holding(home.mnt):
        done = home.run("umount", home.mnt)
        assert done.status == 1 and len(done.lines) == 1 and "busy" in done.err
        assert home.run("umount", "-l", home.mnt).status == 0
    assert home.ns.mounted_at(home.mnt) == []


def test_a_dead_mount_of_a_user_is_replaced(home: Home) -> None:
    home.mount()
    pid = home.run("list").out.split("process ")[1].split(")")[0]
    home.ns.must("kill", "-KILL", pid)
    assert "(dead" in home.run("list").out
    done = home.mount()
    assert done.status == 0 and sum("replacing a mount whose server has died" in line for line in done.lines) == 1
    assert home.ns.must("cat", home.mnt / "file", user=USER) == "in lower0\n"


def test_a_user_cannot_mount_on_what_is_not_theirs(home: Home) -> None:
    os.chown(home.mnt, 0, 0)
    done = home.mount()
    assert done.status == 1 and str(home.mnt) in done.lines[-1]
    assert home.ns.mounted_at(home.mnt) == []


def test_root_sees_a_user_s_mount_without_touching_it(home: Home) -> None:
    home.mount()
    assert f"{home.mnt} (unknown)\n" in home.ns.must(*our_program(), "list")
    home.ns.must(*our_program(), "umount", home.mnt)
    assert home.ns.mounted_at(home.mnt) == []
