"""Whoever is killed, and whenever: nothing stays behind, and the next run works.

That nothing stays is asserted by the `sandbox` fixture after each test: no process, no mount, no directory.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.runtime.sandbox import (
    Sandbox,
    init_of,
    kill,
    members,
    pid_namespace,
    server_of,
    wait_for,
)
from tests.support import system
from unionfs.runtime import scratch as scratch_directories

pytestmark = [pytest.mark.root, pytest.mark.fuse]

#: Says nothing on stderr, also when its root is taken away below it.
BUSY = "exec 2>/dev/null; sleep 1000 & setsid sleep 1000 & (while :; do echo x >/file; rm /file; done) & echo ready; wait"
VICTIMS: dict[str, Callable[[int], int | None]] = {"runner": lambda pid: pid, "server": server_of, "pid 1": init_of}


@pytest.fixture
def moments(record_property: Callable[[str, object], None]) -> Iterator[random.Random]:
    """Random moments; the seed is printed when the test fails, and UNIONFS_TEST_SEED repeats them."""
    seed = int(os.environ.get("UNIONFS_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 31)
    print(f"UNIONFS_TEST_SEED={seed}")
    record_property("seed", seed)
    yield random.Random(seed)


def assert_the_next_run_works(sandbox: Sandbox) -> None:
    assert sandbox.shell("cat /etc/motd; echo x >/x").out == "from the lower\n"


@pytest.mark.parametrize("name", VICTIMS)
def test_a_running_container_ends_with_any_of_its_three_processes(sandbox: Sandbox, name: str) -> None:
    process = sandbox.start_and_wait(BUSY)
    namespace = pid_namespace(wait_for(lambda: init_of(process.pid)))
    victim = VICTIMS[name](process.pid)
    assert victim is not None
    kill(victim)
    code = process.wait(30)
    assert code == {"runner": -9, "server": 125, "pid 1": 137}[name]
    if name != "runner":
        assert members(namespace) == []  # gone before the runner is
        assert os.listdir(sandbox.runs) == []
    wait_for(lambda: not members(namespace))
    assert_the_next_run_works(sandbox)


def test_a_lost_server_is_told_in_one_line(sandbox: Sandbox) -> None:
    process = sandbox.start_and_wait(BUSY)
    kill(server_of(process.pid))
    _, err = process.communicate(timeout=30)
    assert err == "unionfs: the filesystem server ended unexpectedly\n"


def test_a_server_told_to_stop_takes_the_container_with_it(sandbox: Sandbox) -> None:
    process = sandbox.start_and_wait(BUSY)
    namespace = pid_namespace(wait_for(lambda: init_of(process.pid)))
    server = server_of(process.pid)
    assert server is not None
    os.kill(server, signal.SIGTERM)
    assert process.wait(30) == 125
    assert members(namespace) == []


@pytest.mark.parametrize("name", VICTIMS)
@pytest.mark.timeout(120)
def test_a_starting_container_may_lose_any_of_its_processes_at_any_moment(
    sandbox: Sandbox, name: str, moments: random.Random
) -> None:
    for _ in range(8):
        process = sandbox.start("sh", "-c", "echo x >/file; sleep 1000")
        time.sleep(moments.uniform(0.0, 0.5))
        while process.poll() is None and (victim := VICTIMS[name](process.pid)) is None:
            time.sleep(0.001)
        kill(victim)
        assert process.wait(30) != 0
    assert_the_next_run_works(sandbox)


@pytest.mark.timeout(120)
def test_a_running_container_may_lose_its_runner_at_any_moment(sandbox: Sandbox, moments: random.Random) -> None:
    for _ in range(6):
        process = sandbox.start_and_wait(BUSY)
        time.sleep(moments.uniform(0.0, 0.2))
        process.kill()
        process.wait(30)
    assert_the_next_run_works(sandbox)


@pytest.mark.timeout(120)
def test_an_ending_container_may_lose_its_runner_at_any_moment(sandbox: Sandbox, moments: random.Random) -> None:
    script = "mkdir -p /many; cd /many; i=0; while [ $i -lt 2000 ]; do : >$i; i=$((i+1)); done; echo ready; read line"
    for _ in range(3):
        process = sandbox.start("sh", "-c", script, stdin=-1)
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        process.stdin.close()
        time.sleep(moments.uniform(0.0, 0.1))
        process.kill()
        process.wait(30)
    assert_the_next_run_works(sandbox)


def test_what_is_left_when_all_three_are_killed_at_once_goes_with_the_next_run(sandbox: Sandbox) -> None:
    process = sandbox.start_and_wait(BUSY)
    server, init = server_of(process.pid), init_of(process.pid)
    assert server is not None and init is not None
    for pid in (server, process.pid, init):
        kill(pid)
    process.wait(30)
    wait_for(lambda: all(system.wait_until_gone(pid, 10) for pid in (server, init)))
    assert len(os.listdir(sandbox.runs)) == 1
    assert_the_next_run_works(sandbox)
    assert os.listdir(sandbox.runs) == []


def test_a_run_leaves_the_directories_of_others_that_live(sandbox: Sandbox) -> None:
    first = sandbox.start_and_wait("echo ready; exec sleep 1000")
    (name,) = os.listdir(sandbox.runs)
    assert_the_next_run_works(sandbox)
    assert os.listdir(sandbox.runs) == [name]
    first.kill()


def test_a_kept_upper_can_be_used_again_after_a_kill(sandbox: Sandbox) -> None:
    upper = sandbox.scratch / "upper"
    upper.mkdir()
    options = ("--upper", str(upper))
    for name in VICTIMS:
        process = sandbox.start_and_wait(f"echo '{name}' >>/names; echo ready; wait; sleep 1000", *options)
        kill(VICTIMS[name](process.pid))
        process.wait(30)
    done = sandbox.shell("cat /names; ls -d /dev /proc", *options)
    assert done.out.splitlines() == [*VICTIMS, "/dev", "/proc"]
    assert sorted(os.listdir(sandbox.scratch)) == ["runs", "server.log", "upper"]
    assert os.listdir(upper) == ["names"]


def test_an_interrupt_while_the_container_is_made_gives_up(sandbox: Sandbox, moments: random.Random) -> None:
    for _ in range(4):
        process = sandbox.start("sleep", "1000")
        time.sleep(0.1)  # Python itself is up
        wait_for(lambda runner=process.pid: server_of(runner))
        time.sleep(moments.uniform(0.0, 0.2))
        process.terminate()
        assert process.wait(30) == 143


# ---- the removal of a directory ----

def test_a_tree_deeper_than_any_stack_is_removed(scratch: Path) -> None:
    top = scratch / "top"
    top.mkdir()
    directory = os.open(top, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d" * 200, dir_fd=directory)
        deeper = os.open("d" * 200, os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = deeper
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=directory))
    os.close(directory)
    scratch_directories.remove_tree(os.fsencode(top))
    assert os.listdir(scratch) == []


def test_removal_follows_no_symlink_and_takes_every_kind_of_file(scratch: Path) -> None:
    outside = scratch / "outside"
    outside.mkdir()
    (outside / "file").write_text("stays")
    top = scratch / "top"
    (top / "full" / "deeper").mkdir(parents=True)
    (top / "empty").mkdir(mode=0)
    (top / "link").symlink_to(outside)
    (top / "full" / "link").symlink_to(outside)
    (top / "full" / "deeper" / "link").symlink_to(outside)
    os.mkfifo(top / "full" / "fifo")
    os.mknod(top / "full" / "whiteout", 0o600 | 0o020000, os.makedev(0, 0))
    (top / os.fsdecode(b"odd\xff\nname")).write_text("x")
    scratch_directories.remove_tree(os.fsencode(top))
    assert os.listdir(scratch) == ["outside"]
    assert (outside / "file").read_text() == "stays"


def test_removing_what_is_missing_does_nothing(scratch: Path) -> None:
    scratch_directories.remove_tree(os.fsencode(scratch / "missing"))
    scratch_directories.remove_unused(os.fsencode(scratch / "missing"))
    scratch_directories.remove_stale(os.fsencode(scratch / "missing"))


def test_a_directory_under_lock_is_not_stale(scratch: Path) -> None:
    lock = scratch_directories.make(os.fsencode(scratch / "runs" / "one"), [b"upper"])
    scratch_directories.remove_stale(os.fsencode(scratch / "runs"))
    assert os.listdir(scratch / "runs" / "one") == ["upper"]
    os.close(lock)
    scratch_directories.remove_stale(os.fsencode(scratch / "runs"))
    assert os.listdir(scratch / "runs") == []


def test_the_directory_of_a_run_is_closed_to_other_users(scratch: Path) -> None:
    lock = scratch_directories.make(os.fsencode(scratch / "runs" / "one"), [b"upper"])
    os.close(lock)
    assert (scratch / "runs" / "one").stat().st_mode & 0o777 == 0o700
    assert (scratch / "runs" / "one" / "upper").stat().st_mode & 0o777 == 0o755
