"""`unionfs run --engine=kernel`: the same container on a mount of the kernel's; the sandbox asserts that nothing is left of it."""

from __future__ import annotations

import os
import time

import pytest

from tests.runtime.sandbox import Sandbox, init_of, kill, members, pid_namespace, server_of, wait_for
from tests.runtime.test_nothing_left import BUSY, VICTIMS

pytestmark = [pytest.mark.root, pytest.mark.fuse]

KERNEL = "--engine=kernel"


def test_the_root_is_an_overlay_of_the_kernel_and_changes_are_thrown_away(sandbox: Sandbox) -> None:
    done = sandbox.shell("cat /etc/motd; echo x >/etc/motd; mount | grep ' on / '; exit 7", KERNEL)
    assert (done.code, done.err) == (7, "")
    motd, root = done.out.splitlines()
    assert motd == "from the lower"
    assert root.startswith("unionfs on / type overlay ")
    assert sandbox.shell("cat /etc/motd", KERNEL).out == "from the lower\n"


def test_auto_says_which_engine_it_took(sandbox: Sandbox) -> None:
    done = sandbox.shell("mount | grep -c 'on / type overlay'", "--engine=auto")
    assert (done.out, done.err) == ("1\n", "unionfs: engine kernel\n")


def test_what_the_kernel_refuses_is_told_and_auto_serves_it(sandbox: Sandbox) -> None:
    """A lower in a lower, as the run's own directory is in the whole system."""
    sandbox.lowers = (sandbox.lowers[0], sandbox.scratch)
    done = sandbox.shell("cat /etc/motd", KERNEL)
    assert (done.code, done.out, done.err.count("\n")) == (125, "", 1)
    assert "the kernel's overlayfs refuses" in done.err
    done = sandbox.shell("cat /etc/motd", "--engine=auto")
    assert (done.code, done.out, done.err.count("\n")) == (0, "from the lower\n", 1)
    assert done.err.startswith("unionfs: engine channel: the kernel's overlayfs refuses")


def test_a_kept_upper_is_the_same_to_both_engines(sandbox: Sandbox) -> None:
    upper = sandbox.scratch / "upper"
    upper.mkdir()
    for number, engine in enumerate(("kernel", "pyfuse3", "kernel")):
        done = sandbox.shell(f"cat /names; echo {engine} >>/names; rm -r /root; mkdir /root; ls /root; echo {number} >/root/x",
                             "--upper", str(upper), f"--engine={engine}")  # fmt: skip
        assert done.out.split() == ["kernel", "pyfuse3", "kernel"][:number]
    assert sorted(os.listdir(upper)) == ["names", "root"]
    assert sorted(set(os.listdir(sandbox.scratch)) - {"server.log"}) == ["runs", "upper"]


def test_an_upper_in_use_is_refused_also_while_the_kernel_has_it(sandbox: Sandbox) -> None:
    (sandbox.scratch / "upper").mkdir()
    options = ("--upper", str(sandbox.scratch / "upper"))
    first = sandbox.start_and_wait("echo ready; exec sleep 1000", KERNEL, *options)
    for engine in ("kernel", "pyfuse3", "auto"):
        done = sandbox.shell("true", f"--engine={engine}", *options)
        assert (done.code, done.err.count("\n")) == (125, 1)
        assert "in use by another mount" in done.err
    first.kill()
    first.wait()


@pytest.mark.parametrize("options", [(), ("--upper",)])
@pytest.mark.parametrize("name", VICTIMS)
def test_a_running_container_ends_with_any_of_its_three_processes(sandbox: Sandbox, name: str, options: tuple[str, ...]) -> None:
    if options:
        (sandbox.scratch / "upper").mkdir()
        options = ("--upper", str(sandbox.scratch / "upper"))
    process = sandbox.start_and_wait(BUSY, KERNEL, *options)
    namespace = pid_namespace(wait_for(lambda: init_of(process.pid)))
    kill(VICTIMS[name](process.pid))
    assert process.wait(30) == {"runner": -9, "server": 125, "pid 1": 137}[name]
    if name != "runner":
        assert members(namespace) == []
        assert os.listdir(sandbox.runs) == []
    wait_for(lambda: not members(namespace) and os.listdir(sandbox.runs) == [])
    assert sandbox.shell("cat /etc/motd", KERNEL, *options).out == "from the lower\n"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", VICTIMS)
def test_a_starting_container_may_lose_any_of_its_processes_at_any_moment(
    sandbox: Sandbox, name: str
) -> None:
    for number in range(8):
        process = sandbox.start("sh", "-c", "echo x >/file; sleep 1000", options=[KERNEL])
        wait_for(lambda started=process: server_of(started.pid) or started.poll() is not None)
        time.sleep(number / 200)
        while process.poll() is None and (victim := VICTIMS[name](process.pid)) is None:
            time.sleep(0.001)
        kill(victim)
        assert process.wait(30) != 0
    assert sandbox.shell("cat /etc/motd", KERNEL).out == "from the lower\n"
