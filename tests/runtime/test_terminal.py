"""`unionfs run` on a terminal."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.runtime.sandbox import SECONDS, Sandbox

pytestmark = [pytest.mark.root, pytest.mark.fuse]


class Screen:
    """A terminal with a program on it: what the program shows, and the keys it gets."""

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        self.resize(30, 100)
        self.shown = ""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def settings(self) -> list[Any]:
        return termios.tcgetattr(self.slave)

    def start(self, sandbox: Sandbox, *command: str, **popen: Any) -> subprocess.Popen[str]:
        """Start `unionfs run` with this terminal as its controlling one."""
        process = subprocess.Popen(
            ["setsid", "--ctty", *sandbox.command_line(command)],
            env={**sandbox.environment(), "PYTHONPATH": os.getcwd()},
            text=True,
            **{"stdin": self.slave, "stdout": self.slave, "stderr": self.slave, **popen},
        )
        sandbox.started.append(process)
        return process

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Read until what was shown since the last match matches."""
        deadline = time.monotonic() + SECONDS
        while not (found := re.search(pattern, self.shown)):
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self.master], [], [], left)[0], f"{pattern!r} not in {self.shown!r}"
            self.shown += os.read(self.master, 65536).decode(errors="replace")
        self.shown = self.shown[found.end():]
        return found

    def close(self) -> None:
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def screen() -> Iterator[Screen]:
    made = Screen()
    yield made
    made.close()


def prompt(screen: Screen) -> None:
    screen.wait_for(r"/ # (\x1b\[6n)?$")  # this shell asks where the cursor is and can do without an answer


def test_the_command_has_a_terminal_of_the_containers_own(sandbox: Sandbox, screen: Screen) -> None:
    process = screen.start(sandbox, "sh", "-c", "tty; stat -c '%n %t:%T' $(tty); exec 3<>/dev/tty && echo controlled")
    screen.wait_for(r"/dev/pts/0\r\n/dev/pts/0 88:0\r\ncontrolled\r\n")
    assert process.wait(SECONDS) == 0


def test_the_terminals_state_is_restored_whatever_the_command_did_to_it(sandbox: Sandbox, screen: Screen) -> None:
    before = screen.settings()
    process = screen.start(sandbox, "sh", "-c", "stty raw -echo; exit 3")
    assert process.wait(SECONDS) == 3
    assert screen.settings() == before


def test_the_terminals_state_is_restored_when_the_command_cannot_start(sandbox: Sandbox, screen: Screen) -> None:
    before = screen.settings()
    process = screen.start(sandbox, "no-such-command")
    assert process.wait(SECONDS) == 127
    screen.wait_for("no-such-command: command not found\r\n")
    assert screen.settings() == before


def test_keys_are_echoed_once(sandbox: Sandbox, screen: Screen) -> None:
    process = screen.start(sandbox, "sh", "-c", "echo ready; read line; echo \"<$line>\"")
    screen.wait_for("ready\r\n")
    screen.type("typed\r")
    screen.wait_for("typed\r\n<typed>\r\n")
    assert process.wait(SECONDS) == 0


def test_an_interrupt_reaches_the_job_in_the_foreground_alone(sandbox: Sandbox, screen: Screen) -> None:
    process = screen.start(sandbox, "sh", "-i")
    prompt(screen)
    screen.type("sleep 1000\r")
    screen.wait_for("sleep 1000\r\n")
    time.sleep(0.2)
    screen.type("\x03")
    prompt(screen)
    screen.type("echo code $?\r")
    screen.wait_for("code 130\r\n")
    screen.type("exit 4\r")
    assert process.wait(SECONDS) == 4


def test_an_interrupt_ends_a_command_that_does_not_catch_it(sandbox: Sandbox, screen: Screen) -> None:
    process = screen.start(sandbox, "sh", "-c", "echo ready; exec sleep 1000")
    screen.wait_for("ready\r\n")
    screen.type("\x03")
    assert process.wait(SECONDS) == 128 + signal.SIGINT


def test_jobs_can_be_suspended_and_continued(sandbox: Sandbox, screen: Screen) -> None:
    process = screen.start(sandbox, "sh", "-i")
    prompt(screen)
    screen.type("sleep 1000\r")
    screen.wait_for("sleep 1000\r\n")
    time.sleep(0.2)
    screen.type("\x1a")
    screen.wait_for(r"Stopped +sleep 1000")
    prompt(screen)
    screen.type("bg\r")
    prompt(screen)
    screen.type("jobs\r")
    screen.wait_for(r"Running +sleep 1000")
    screen.type("exit\r")
    assert process.wait(SECONDS) == 0


def test_the_size_of_the_terminal_is_passed_on_when_it_changes_too(sandbox: Sandbox, screen: Screen) -> None:
    process = screen.start(sandbox, "sh", "-c", "stty size; trap 'stty size; exit' WINCH; while :; do sleep 0.05; done")
    screen.wait_for("30 100\r\n")
    time.sleep(0.1)
    screen.resize(50, 132)
    screen.wait_for("50 132\r\n")
    assert process.wait(SECONDS) == 0


def test_much_output_arrives_complete(sandbox: Sandbox, screen: Screen) -> None:
    process = screen.start(sandbox, "sh", "-c", "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done")
    screen.wait_for("line 19999\r\n")
    assert process.wait(SECONDS) == 0


def test_much_input_arrives_complete(sandbox: Sandbox, screen: Screen) -> None:
    process = screen.start(sandbox, "sh", "-c", "stty -echo; echo ready; head -n 500 | wc -c")
    screen.wait_for("ready\r\n")
    for _ in range(500):
        screen.type("x" * 99 + "\r")
        time.sleep(0.0005)
    screen.wait_for("50000\r\n")
    assert process.wait(SECONDS) == 0


def test_the_end_of_input_is_a_key(sandbox: Sandbox, screen: Screen) -> None:
    process = screen.start(sandbox, "sh", "-c", "echo ready; exec cat")
    screen.wait_for("ready\r\n")
    screen.type("text\r\x04")
    screen.wait_for("text\r\ntext\r\n")
    assert process.wait(SECONDS) == 0


def test_output_into_a_pipe_is_left_as_it_is_and_an_interrupt_still_arrives(sandbox: Sandbox, screen: Screen) -> None:
    script = "test -t 0 && echo in; test -t 1 && echo out; echo ready; sleep 1000; echo not reached"
    process = screen.start(sandbox, "sh", "-c", script, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert [process.stdout.readline(), process.stdout.readline()] == ["in\n", "ready\n"]
    screen.type("\x03")  # reaches the whole group: sleep as well as the shell
    assert process.stdout.read() == ""
    assert process.wait(SECONDS) == 128 + signal.SIGINT


def test_standard_error_may_go_elsewhere(sandbox: Sandbox, screen: Screen) -> None:
    process = screen.start(sandbox, "sh", "-c", "echo out; echo err >&2", stderr=subprocess.PIPE)
    screen.wait_for("out\r\n")
    _, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (0, "err\n")


def test_a_terminal_that_vanishes_ends_the_container(sandbox: Sandbox) -> None:
    screen = Screen()
    process = screen.start(sandbox, "sh", "-c", "echo ready; exec sleep 1000")
    screen.wait_for("ready\r\n")
    screen.close()
    assert process.wait(SECONDS) == 128 + signal.SIGHUP


def test_no_descriptor_of_the_users_terminal_is_in_the_container(sandbox: Sandbox, screen: Screen) -> None:
    process = screen.start(sandbox, "sh", "-c", "readlink /proc/self/fd/0; readlink /proc/self/fd/2; ls -l /proc/1/fd | grep -c pts; true")
    screen.wait_for("/dev/pts/0\r\n/dev/pts/0\r\n0\r\n")
    assert process.wait(SECONDS) == 0
