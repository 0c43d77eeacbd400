"""No hang outlives its test.

A process stuck in a FUSE request cannot be killed, and a page fault on a mapped FUSE file stops every thread of the
interpreter with it, so the watch is kept by *another process*. It is told of each test's start and limit over a pipe.
When a limit passes it

1. aborts the FUSE connections of this session (all requests fail at once, clients wake up) and kills what the
   session started: servers, forked children;
2. when the test still goes on, raises TestOverran in pytest's main thread through SIGUSR1.

When pytest itself dies the pipe ends, and the watchdog cleans up what was left.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from tests.support import system

_GRACE = 3.0  # seconds from the abort to SIGUSR1


class TestOverran(BaseException):
    """Raised in the test that ran over its time; not an Exception, so that no `except` in a test swallows it."""

    __test__ = False


class Watchdog:
    """pytest's end of the pipe: arm before a test, disarm after it."""

    def __init__(self, token: str, scratch: Path) -> None:
        system.mount_fusectl()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.watchdog", str(os.getpid()), token, str(scratch)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2], bufsize=0,
            start_new_session=True)
        self.pid = self._process.pid
        self._armed = False
        signal.signal(signal.SIGUSR1, self._alarm)

    def arm(self, seconds: float) -> None:
        self._armed = True
        self._say(f"arm {seconds}\n")

    def disarm(self) -> None:
        """Stop the clock."""
        self._armed = False
        self._say("disarm\n")

    def fired(self) -> bool:
        """Whether it had to step in since it was armed. The clock stops while it answers."""
        armed, self._armed = self._armed, False
        self._say("fired?\n")
        assert self._process.stdout is not None
        answer = self._process.stdout.read(1)
        self._armed = armed
        return answer == b"!"

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode())

    def _alarm(self, _signal: int, _frame: FrameType | None) -> None:
        if self._armed:
            raise TestOverran("the test ran over its time; its FUSE connections were aborted")


# ---- the watching process ----

class _Watch:
    def __init__(self, pytest_pid: int, token: str, scratch: str) -> None:
        self.pytest_pid = pytest_pid
        self.token = token
        self.scratch = scratch

    def abort_connections(self) -> None:
        numbers = {point.connection for point in system.mounts_below(self.scratch)}
        for found in self._others():
            numbers |= system.held_connections(found.pid)
        for number in sorted(number for number in numbers if number is not None):
            print(f"watchdog: aborting FUSE connection {number}", file=sys.stderr)
            system.abort_connection(number)

    def kill_processes(self) -> None:
        for found in self._others():
            print(f"watchdog: killing {found.pid} {found.command[:200]}", file=sys.stderr)
            _kill(found.pid, signal.SIGKILL)

    def step_in(self) -> None:
        self.abort_connections()
        self.kill_processes()

    def interrupt(self) -> None:
        _kill(self.pytest_pid, signal.SIGUSR1)

    def clean_up(self) -> None:
        """After pytest is gone: leave no mount and no process behind."""
        self.abort_connections()
        self.kill_processes()
        for point in system.mounts_below(self.scratch):
            system.unmount(point.target, system.MNT_DETACH)

    def _others(self) -> list[system.Process]:
        return [found for found in system.session_processes(self.token, self.pytest_pid)
                if __spec__.name not in found.command]


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _watch(watch: _Watch) -> None:
    """Serve `arm SECONDS`, `disarm` and `fired?` until end-of-file; the last is answered by `!` (yes) or `.`."""
    deadline: float | None = None
    fired = False
    pending = b""
    while True:
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        readable, _, _ = select.select([0], [], [], timeout)
        if not readable:
            if fired:
                watch.interrupt()
            watch.step_in()
            fired = True
            deadline = time.monotonic() + _GRACE  # again, should this not have been enough
            continue
        data = os.read(0, 4096)
        if not data:
            return
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            verb, _, argument = line.partition(b" ")
            if verb == b"arm":
                deadline, fired = time.monotonic() + float(argument), False
            elif verb == b"disarm":
                deadline = None
            else:
                os.write(1, b"!" if fired else b".")


def main() -> None:
    pytest_pid, token, scratch = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    watch = _Watch(int(pytest_pid), token, scratch)
    _watch(watch)
    watch.clean_up()


if __name__ == "__main__":
    main()
