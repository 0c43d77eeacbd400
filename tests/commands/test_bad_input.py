"""What is wrong is said in one line, with a non-zero exit code, and leaves nothing behind."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.commands.namespace import namespace
from tests.commands.program import Done, Place, flags, listed, make_layers, place, run, texts
from tests.support import requirements, system
from tests.support.mounts import REPOSITORY, Layers, our_program
from tests.support.tree import snapshot

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(requirements.missing_for_fuse() is not None, reason=str(requirements.missing_for_fuse())),
]


@dataclass
class World:
    """A stack that could be mounted, for a test to spoil."""

    scratch: Path
    layers: Layers
    mnt: Place

    def path(self, name: str) -> Path:
        return self.scratch / name


@pytest.fixture
def world(scratch: Path) -> Iterator[World]:
    with place(scratch) as mnt:
        yield World(scratch, make_layers(scratch), mnt)


def refused(done: Done, *parts: str, status: int = 1) -> None:
    """*done* failed with one line on stderr that has these *parts*."""
    assert done.status == status
    assert done.out == "" and len(done.lines) == 1 and done.err.startswith("unionfs: ")
    for part in parts:
        assert part in done.err




CASES: dict[str, tuple[Callable[[World], list[str | Path]], tuple[str, ...], int]] = {
    "a lower that is not there": (lambda w: ["--lower", w.path("absent"), w.mnt.path], ("absent", "No such file"), 1),
    "a lower that is a file": (lambda w: ["--lower", w.path("lower0/file"), w.mnt.path], ("lower0/file", "Not a directory"), 1),
    "one bad lower of several": (lambda w: ["--lower", w.path("lower0"), "--lower", w.path("no"), w.mnt.path], ("no", "No such file"), 1),
    "an upper that is not there": (
        lambda w: ["--lower", w.path("lower0"), "--upper", w.path("no"), "--work", w.path("work"), w.mnt.path],
        ("upper", "no", "No such file"),
        1,
    ),
    "a work that is not there": (
        lambda w: ["--lower", w.path("lower0"), "--upper", w.path("upper"), "--work", w.path("no"), w.mnt.path],
        ("work", "no", "No such file"),
        1,
    ),
    "an upper without a work": (lambda w: ["--lower", w.path("lower0"), "--upper", w.path("upper"), w.mnt.path], ("work",), 2),
    "a work without an upper": (lambda w: ["--lower", w.path("lower0"), "--work", w.path("work"), w.mnt.path], ("upper",), 2),
    "no lower": (lambda w: [w.mnt.path], ("lower",), 2),
    "a target that is not there": (lambda w: [*flags(w.layers), w.path("nowhere")], ("nowhere", "No such file"), 1),
    "a target that is a file": (lambda w: [*flags(w.layers), w.path("lower0/file")], ("lower0/file", "not a directory"), 1),
    "a target in /proc": (lambda w: [*flags(w.layers), "/proc/sys"], ("/proc",), 1),
    "the root directory": (lambda w: [*flags(w.layers), "/"], ("/: ",), 1),
    "no target": (lambda w: [*flags(w.layers)], ("MNT", "unionfs mount --help"), 2),
    "an unknown mount option": (lambda w: [*flags(w.layers), "-o", "ro,frobnicate=1", w.mnt.path], ("frobnicate=1",), 2),
    "an unknown flag": (lambda w: [*flags(w.layers), "--frobnicate", w.mnt.path], ("--frobnicate",), 2),
    "an unknown engine": (lambda w: [*flags(w.layers), "--engine=none", w.mnt.path], ("none", "pyfuse3"), 2),
    "verity": (lambda w: [*flags(w.layers), "-o", "verity=on", w.mnt.path], ("verity=on", "not supported"), 2),
    "verity with an engine": (lambda w: [*flags(w.layers), "-o", "verity=on,engine=pyfuse3", w.mnt.path], ("verity=on", "engine"), 2),
    "options that exclude each other": (
        lambda w: [*flags(w.layers), "-o", "userxattr,metacopy=on", w.mnt.path],
        ("userxattr", "metacopy=on", "exclude each other"),
        2,
    ),
    "a size that is none": (
        lambda w: [*flags(w.layers), "-o", "userxattr,rename_copy_limit=many", w.mnt.path],
        ("rename_copy_limit=many", "number of bytes"),
        2,
    ),
    "data-only layers alone": (lambda w: ["-o", f"datadir+={w.path('lower0')}", w.mnt.path], ("no lower directory",), 2),
    "a data-only layer that is not there": (
        lambda w: ["-o", f"lowerdir={w.path('lower0')}::{w.path('no')}", w.mnt.path],
        ("no", "No such file"),
        1,
    ),
    "a layer behind a data-only one": (
        lambda w: ["-o", f"lowerdir={w.path('lower0')}::{w.path('lower0')},lowerdir+={w.path('lower0')}", w.mnt.path],
        ("cannot follow",),
        2,
    ),
    "an engine that is none": (lambda w: [*flags(w.layers), "-o", "engine=fast", w.mnt.path], ("engine=fast", "pyfuse3, kernel, auto"), 2),
    "what the kernel has not": (
        lambda w: [*flags(w.layers), "--engine=kernel", "-o", "timeout=1,squash_to_root", w.mnt.path],
        ("kernel", "timeout", "squash_to_root"),
        2,
    ),
    "plugins": (lambda w: [*flags(w.layers), "-o", "plugins=a:b", w.mnt.path], ("plugins=a:b", "not supported"), 2),
    "nfs_export": (lambda w: [*flags(w.layers), "-o", "nfs_export=on", w.mnt.path], ("nfs_export=on", "not supported"), 2),
    "a value that means nothing": (lambda w: [*flags(w.layers), "-o", "fsync=perhaps", w.mnt.path], ("fsync=perhaps",), 2),
    "layers given twice over": (lambda w: [*flags(w.layers), "-o", "lowerdir=/", w.mnt.path], ("--lower", "lowerdir="), 2),
    "an empty path": (lambda w: ["--lower", "", w.mnt.path], ("--lower", "empty"), 2),
    "remount": (lambda w: [*flags(w.layers), "-o", "remount,ro", w.mnt.path], ("remount",), 2),
    "work inside upper": (
        lambda w: [*"--lower lower0 --upper upper --work upper/in".split(), *make_directory(w, "upper/in"), w.mnt.path], ("inside",), 1,
    ),
    "upper inside work": (
        lambda w: [*"--lower lower0 --upper work/in --work work".split(), *make_directory(w, "work/in"), w.mnt.path], ("inside",), 1,
    ),
    "upper and work are one": (lambda w: [*"--lower lower0 --upper upper --work upper".split(), w.mnt.path], ("inside",), 1),
    "a log that cannot be written": (lambda w: [*flags(w.layers), "--log", w.path("no/log"), w.mnt.path], ("no/log", "No such file"), 1),
}  # fmt: skip


def make_directory(world: World, name: str) -> list[str | Path]:
    world.path(name).mkdir()
    return []


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_nothing_left(world: World, case: str) -> None:
    arguments, parts, status = CASES[case]
    given = arguments(world)
    before = snapshot(os.fsencode(world.scratch))
    refused(run("mount", *given, cwd=world.scratch), *parts, status=status)
    assert not world.mnt.is_mounted()
    assert listed(world.mnt.path) == {}
    assert snapshot(os.fsencode(world.scratch)) == before


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["frobnicate"], "frobnicate"),
        (["--frobnicate"], "--frobnicate"),
        (["umount"], "MNT"),
        (["stats"], "MNT"),
        (["stats", "--watch", "0", "/"], "--watch"),
        (["top", "nan"], "nan"),
        (["top", "-n", "0"], "-n"),
        (["diff"], "UPPER"),
        (["list", "more"], "more"),
        (["umount", "--frobnicate", "/"], "--frobnicate"),
    ],
)
def test_a_command_line_that_means_nothing_is_a_usage_error(arguments: list[str], part: str) -> None:
    refused(run(*arguments), part, status=2)


@pytest.mark.parametrize(
    "arguments",
    [
        ["mount", "--lower", "/", "mnt"],
        ["-o", "lowerdir=/", "mnt"],
        ["umount", "mnt"],
        ["diff", "upper", "--lower", "/"],
        ["fsck", "--lower", "/", "--upper", "upper"],
        ["convert", "upper", "--lower", "/", "--to", "oci"],
        ["run", "--lower", "lower", "true"],
        ["run", "--lower", "/", "--upper", "upper", "true"],
    ],
)
def test_a_working_directory_that_is_gone_is_what_is_told(scratch: Path, arguments: list[str]) -> None:
    """Of the shells on the way, which start in it as well, only the last line is ours."""
    gone = scratch / "gone"
    gone.mkdir()
    done = run("-c", 'cd "$0" && rmdir "$0" && exec "$@"', gone, *our_program(), *arguments, command=["sh"])
    assert (done.status == 125 if arguments[0] == "run" else done.status > 0) and done.out == ""
    assert "the working directory has been deleted" in done.lines[-1]


def test_paths_from_the_root_need_no_working_directory(scratch: Path, world: World) -> None:
    gone = scratch / "gone"
    gone.mkdir()
    words = [*our_program(), "mount", *flags(world.layers)]
    done = run("-c", 'cd "$0" && rmdir "$0" && exec "$@"', gone, *words, world.mnt.path, command=["sh"])
    assert done.status == 0 and world.mnt.is_mounted()


@pytest.mark.parametrize("command", ["umount", "stats"])
def test_a_place_without_a_union_is_named(scratch: Path, command: str) -> None:
    refused(run(command, scratch / "a\nb"), "a\\nb", "nothing is mounted")


def test_what_a_crash_of_the_machine_left_is_named_so_that_it_can_be_deleted(world: World) -> None:
    for directory in ("work/work", "work/work/incompat", "work/work/incompat/volatile"):
        world.path(directory).mkdir()
    world.path("work/work/incompat/volatile/dirty").touch()
    refused(run("mount", *flags(world.layers), world.mnt.path), str(world.path("work/work/incompat")), "delete")
    assert world.path("work/work/incompat/volatile/dirty").exists()
    assert not world.mnt.is_mounted()


def test_what_other_programs_left_in_a_work_directory_is_normal(world: World) -> None:
    for directory in ("work/work", "work/work/#1", "work/index", "work/other"):
        world.path(directory).mkdir()
    world.path("work/index/00ff").touch()
    assert run("mount", *flags(world.layers), world.mnt.path).status == 0
    assert run("umount", world.mnt.path).status == 0
    assert sorted(os.listdir(world.path("work"))) == ["index", "other", "work"]
    assert os.listdir(world.path("work/index")) == ["00ff"]
    assert os.listdir(world.path("work/work")) == []


def test_upper_and_work_on_different_mounts_are_refused(world: World) -> None:
    system.mount("none", world.path("work"), "tmpfs")
    try:
        refused(run("mount", *flags(world.layers), world.mnt.path), "same mount")
    finally:
        system.unmount(world.path("work"))


def test_upper_and_work_under_two_mounts_of_one_filesystem_are_refused(world: World) -> None:
    system.mount(str(world.path("work")), world.path("work"), "none", 0x1000)  # MS_BIND
    try:
        refused(run("mount", *flags(world.layers), world.mnt.path), "same mount")
    finally:
        system.unmount(world.path("work"))


def test_a_machine_without_a_fuse_device_is_told_so(world: World) -> None:
    with namespace() as ns:
        ns.must("mount", "-t", "tmpfs", "none", "/dev")
        ns.must("mknod", "/dev/null", "c", "1", "3")
        refused(ns.run(*our_program(), "mount", *flags(world.layers), world.mnt.path), "/dev/fuse", "No such file")
        assert ns.mounted_at(world.mnt.path) == []


def test_a_user_who_may_not_use_fuse_is_told_so(world: World) -> None:
    for path in (world.mnt.path, world.path("upper"), world.path("work")):
        os.chown(path, 1000, 1000)
    with namespace() as ns:
        ns.let_users_run_the_program(world.scratch)
        ns.let_users_use_fuse(world.scratch, mode=0o600)
        done = ns.run(*our_program(), "mount", "--lower", world.path("lower0"), world.mnt.path, user=1000)
        assert done.status == 1 and "/dev/fuse" in done.lines[-1] and "ermission" in done.lines[-1]
        assert ns.mounted_at(world.mnt.path) == []


VANISHED = """
import os, sys
from unionfs.cli import attach, entry
from unionfs.options import MountOptions
lower, upper, work, target = (os.fsencode(path) for path in sys.argv[1:])
try:
    attach.mount(attach.Request(MountOptions((lower,), (), upper, work), target))
except Exception as exc:
    sys.exit(entry.tell(exc))
"""


def test_a_target_that_vanishes_while_the_server_starts_leaves_no_server(world: World) -> None:
    paths = [world.path(name) for name in ("lower0", "upper", "work", "gone")]
    refused(run(*paths, command=[sys.executable, "-c", VANISHED], cwd=REPOSITORY), "gone", "No such file")
    assert run("mount", *flags(world.layers), world.mnt.path).status == 0  # nobody holds the upper


def test_the_traceback_is_shown_with_debug_only(world: World) -> None:
    done = run("mount", "-d", "--lower", world.path("absent"), world.mnt.path)
    assert done.status == 1 and "Traceback" in done.err and done.lines[-1].startswith("unionfs: lower directory")
    done = run("umount", "--debug", world.mnt.path)
    assert "Traceback" in done.err and done.lines[-1].startswith("unionfs: ")


def test_the_mount_program_speaks_in_one_line_too(world: World) -> None:
    done = run("-o", texts(world.layers).replace("lower0", "absent"), world.mnt.path)
    refused(done, "absent")
