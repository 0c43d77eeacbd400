"""`unionfs umount`, `list` and `stats`, and what becomes of mounts whose server died."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.commands.program import Done, Place, environment, flags, listed, place, run
from tests.support import requirements, system
from tests.support.mounts import REPOSITORY, Layers, our_program

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(requirements.missing_for_fuse() is not None, reason=str(requirements.missing_for_fuse())),
]


@pytest.fixture
def mnt(mnt: Place, layers: Layers) -> Place:
    """A directory with a union mounted on it."""
    assert run("mount", *flags(layers), mnt.path).status == 0
    return mnt


def kill_server(mnt: Place) -> None:
    server = mnt.server
    os.kill(server, signal.SIGKILL)
    assert system.wait_until_gone(server, 10)


def test_umount_returns_when_the_server_is_gone(mnt: Place) -> None:
    server = mnt.server
    assert run("umount", mnt.path) == Done(0, "", "")
    found = system.process(server)
    assert found is None or not found.alive
    assert not mnt.is_mounted()


def test_the_upper_is_free_at_once(layers: Layers, mnt: Place) -> None:
    for _ in range(5):
        assert run("umount", mnt.path).status == 0
        assert run("mount", *flags(layers), mnt.path).status == 0


def test_umount_takes_a_relative_path_and_a_symlink(scratch: Path, mnt: Place) -> None:
    (scratch / "link").symlink_to("mnt")
    assert run("umount", "link/", cwd=scratch).status == 0
    assert not mnt.is_mounted()


def test_a_mount_in_use_stays_unless_umount_is_lazy(mnt: Place) -> None:
    with (mnt.path / "file").open() as held:
        done = run("umount", mnt.path)
        assert done.status == 1 and len(done.lines) == 1 and "in use" in done.err
        assert mnt.is_mounted()
        server = mnt.server
        assert run("umount", "-l", mnt.path).status == 0
        assert not mnt.is_mounted()
        assert listed(mnt.path)["state"] == "elsewhere"
        assert held.read() == "in lower0\n"
    assert system.wait_until_gone(server, 10)


@pytest.mark.parametrize("where", ["nowhere", "directory", "foreign"])
def test_umount_of_what_is_no_union_says_so_and_touches_nothing(scratch: Path, where: str) -> None:
    target = scratch / where
    if where != "nowhere":
        target.mkdir()
    if where == "foreign":
        system.mount("none", target, "tmpfs")
    try:
        done = run("umount", target)
        assert done.status == 1 and len(done.lines) == 1 and done.err.startswith(f"unionfs: {target}: ")
        assert (system.mounted_at(target) is not None) == (where == "foreign")
    finally:
        if where == "foreign":
            system.unmount(target)


def test_a_stopped_server_stops_neither_list_nor_umount(mnt: Place) -> None:
    server = mnt.server
    os.kill(server, signal.SIGSTOP)
    try:
        started = time.monotonic()
        assert listed(mnt.path)["state"] == "live"
        assert "lower" in run("list").out
        done = run("stats", mnt.path)
        assert done.status == 1 and len(done.lines) == 1 and "does not answer" in done.err
        assert run("umount", "-l", mnt.path).status == 0
        assert time.monotonic() - started < 20
    finally:
        os.kill(server, signal.SIGCONT)
    assert system.wait_until_gone(server, 10)


def test_list_shows_mounts_and_their_layers(layers: Layers, mnt: Place) -> None:
    found = listed(mnt.path)
    assert found["lowers"] == [str(lower) for lower in layers.lowers]
    assert (found["upper"], found["work"], found["state"], found["options"]) == (str(layers.upper), str(layers.work), "live", "rw")
    assert (found["pid"], found["device"]) == (mnt.server, mnt.device)
    text = run("list").out
    block = text[text.index(f"{mnt.path} (live, engine channel, rw, process {mnt.server})\n") :].splitlines()[:4]
    assert block[1:] == [f"    upper {layers.upper}", f"    work  {layers.work}", f"    lower {layers.lowers[0]}"]


def test_list_s_reader_may_leave(mnt: Place) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run([*our_program(), "list"], stdout=writer, stderr=subprocess.PIPE, env=environment(), timeout=40, check=False)
    finally:
        os.close(writer)
    assert done.stderr == b""


def test_a_dead_mount_is_marked_and_umount_takes_it_away(layers: Layers, mnt: Place) -> None:
    kill_server(mnt)
    assert listed(mnt.path)["state"] == "dead"
    assert f"{mnt.path} (dead, engine channel, rw)" in run("list").out
    with pytest.raises(OSError, match="not connected"):
        os.listdir(mnt.path)
    assert run("umount", mnt.path).status == 0
    assert not mnt.is_mounted()
    assert listed(mnt.path) == {}


@pytest.mark.parametrize("remembered", [False, True], ids=["unknown", "attributes known to the kernel"])
def test_mounting_over_our_own_dead_mount_replaces_it_with_one_warning(layers: Layers, mnt: Place, remembered: bool) -> None:
    if remembered:
        os.stat(mnt.path)
    kill_server(mnt)
    done = run("mount", *flags(layers), mnt.path)
    assert done.status == 0
    assert done.lines == [f"unionfs: warning: {mnt.path}: replacing a mount whose server has died"]
    assert (mnt.path / "file").read_text() == "in lower0\n"
    assert [point.target for point in system.mount_points()].count(str(mnt.path)) == 1


def test_a_live_mount_is_mounted_over_not_replaced(scratch: Path, mnt: Place) -> None:
    done = run("mount", "--lower", scratch / "lower0", mnt.path)
    assert (done.status, done.err) == (0, "")
    assert [point.target for point in system.mount_points()].count(str(mnt.path)) == 2
    assert run("umount", mnt.path).status == 0
    assert listed(mnt.path)["upper"] is not None


def test_stats_count_requests_nodes_descriptors_and_memory(mnt: Place) -> None:
    (mnt.path / "file").read_text()
    found = json.loads(run("stats", mnt.path, "--json").out)
    assert found["requests"]["lookup"] >= 1
    assert found["nodes"] >= 2
    assert found["open_fds"] >= 0 and found["rss"] > 1 << 20 and found["uptime"] > 0
    text = run("stats", mnt.path).out
    for word in ("requests", "lookup", "nodes", "open descriptors", "resident bytes", "its own share"):
        assert word in text


@contextmanager
def watching(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """`unionfs ARGUMENTS`, for as long as the test wants."""
    with subprocess.Popen(
        [*our_program(), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment(), text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def next_object(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


def test_stats_are_watched_live_until_the_watcher_is_interrupted(mnt: Place) -> None:
    with watching("stats", mnt.path, "--watch", "0.2", "--json") as watcher:
        next_object(watcher)
        for number in range(20):
            assert not (mnt.path / f"absent{number}").exists()
        seen = [next_object(watcher) for _ in range(5)]
        assert sum(one["requests"].get("lookup", 0) for one in seen) == 20
        assert 20 <= sum(one["microseconds"].get("lookup", 0) for one in seen) < 20 * 100_000
        assert all(one["requests"] == {} for one in seen[-2:]) and seen[-1]["rss"] >= seen[-1]["pss"] > 1 << 20
        watcher.send_signal(signal.SIGINT)
        assert (watcher.wait(20), watcher.stderr.read() if watcher.stderr else "") == (0, "")


@pytest.mark.parametrize("how", ["unmounted", "killed", "replaced"])
def test_a_mount_that_goes_away_ends_the_watch_with_one_line(layers: Layers, mnt: Place, how: str) -> None:
    with watching("stats", mnt.path, "--watch", "0.2", "--json") as watcher:
        next_object(watcher)
        if how == "killed":
            kill_server(mnt)
        else:
            assert run("umount", mnt.path).status == 0
        if how == "replaced":
            assert run("mount", *flags(layers), mnt.path).status == 0
        assert watcher.wait(20) == 1 and watcher.stderr is not None
        told = watcher.stderr.read().splitlines()
    assert len(told) == 1 and ("the server of this mount is dead" if how == "killed" else f"{mnt.path}: the mount has gone") in told[0]


def test_a_watch_may_be_bounded_and_stays_out_of_the_mount(mnt: Place) -> None:
    done = run("stats", "--watch", "0.1", "-n", "3", mnt.path)
    blocks = [block.splitlines() for block in done.out.split("\n\n")]
    assert (done.status, done.err, len(blocks)) == (0, "", 3)
    assert [block[0] for block in blocks] == [f"{mnt.path}: 0 requests a second; {block[0].rpartition('; ')[2]}" for block in blocks]
    refused = run("stats", "-n", "3", mnt.path)
    assert (refused.status, len(refused.lines)) == (2, 1)


def test_the_engine_pyfuse3_is_watched_by_its_counts_alone(layers: Layers, scratch: Path) -> None:
    with place(scratch, "plain") as plain:
        assert run("mount", "--engine=pyfuse3", *flags(layers), plain.path).status == 0
        with watching("stats", "--watch", "0.2", "--json", plain.path) as watcher:
            next_object(watcher)
            assert not (plain.path / "absent").exists()
            seen = [next_object(watcher) for _ in range(4)]
    assert sum(one["requests"].get("lookup", 0) for one in seen) >= 1
    assert all(one["microseconds"] == {} for one in seen)


def test_top_shows_every_mount_and_those_that_stopped_without_waiting_for_them(layers: Layers, scratch: Path, mnt: Place) -> None:
    with place(scratch, "second") as second:
        assert run("mount", "--lower", layers.lowers[0], second.path).status == 0
        server = second.server
        os.kill(server, signal.SIGSTOP)
        try:
            done = run("top", "-n", "2", "--json", "0.2")
        finally:
            os.kill(server, signal.SIGCONT)
    assert (done.status, done.err) == (0, "")
    states = [{mount["target"]: mount["state"] for mount in json.loads(line)["mounts"]} for line in done.out.splitlines()]
    assert [(found[str(mnt.path)], found[str(second.path)]) for found in states] == [("live", "does not answer")] * 2
    lines = run("top", "-n", "1", "0.2").out.splitlines()
    assert any(line.split()[0] == "0" and str(mnt.path) in line for line in lines[2:])


# What `unionfs mount` does, two hundred times in one process that has already imported what each server needs.
ROUNDS = """
import os, sys
from unionfs.cli import attach, server
from unionfs.fuse import session
from unionfs.linux import mounts
from unionfs.options import MountOptions
session.prepare()
lower, upper, work, target = (os.fsencode(path) for path in sys.argv[1:])
request = attach.Request(MountOptions((lower,), (), upper, work), target)
for _ in range(200):
    assert attach.mount(request) == 0
    assert sorted(os.listdir(target)) == [b"file", b"only-lower0"]
    mounts.umount2(target)
    os.waitpid(-1, os.WNOHANG)
"""


def test_two_hundred_mounts_of_one_upper_follow_each_other_without_a_pause(scratch: Path, layers: Layers) -> None:
    """The servers are unmounted behind our back, where nobody waits for them to end: each next mount has to."""
    with place(scratch, "again") as mnt:
        done = run(layers.lowers[0], str(layers.upper), str(layers.work), mnt.path, command=[sys.executable, "-c", ROUNDS], cwd=REPOSITORY)
        assert (done.status, done.err) == (0, "")


def test_the_command_itself_may_follow_an_unmount_of_others_at_once(scratch: Path, layers: Layers) -> None:
    with place(scratch, "again") as mnt:
        for _ in range(10):
            done = run("mount", *flags(layers), mnt.path)
            assert (done.status, done.err) == (0, "")
            system.unmount(mnt.path)


def test_an_upper_of_a_live_mount_is_refused_at_once(scratch: Path, layers: Layers, mnt: Place) -> None:
    with place(scratch, "second") as second:
        started = time.monotonic()
        done = run("mount", *flags(layers), second.path)
        assert time.monotonic() - started < 4
        assert done.status == 1 and done.lines == [f"unionfs: upper directory {layers.upper} is in use by another mount"]
        assert not second.is_mounted()
    assert (mnt.path / "file").read_text() == "in lower0\n"


def test_an_upper_held_without_a_mount_is_waited_for(scratch: Path, layers: Layers, mnt: Place) -> None:
    with (mnt.path / "file").open():
        assert run("umount", "-l", mnt.path).status == 0
        started = time.monotonic()
        done = run("mount", *flags(layers), mnt.path)
        assert done.status == 1 and "in use" in done.err
        assert 4.5 < time.monotonic() - started < 15
    assert run("mount", *flags(layers), mnt.path).status == 0
