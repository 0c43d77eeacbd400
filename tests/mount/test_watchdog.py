"""The watchdog itself: a mount that does not answer must not stop the suite."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

import pytest

from tests.support import system
from tests.support.mounts import Layers, Mounts
from tests.support.watchdog import TestOverran, Watchdog


def test_a_request_that_hangs_is_failed_and_its_server_killed(mounts: Mounts, scratch: Path) -> None:
    for name in ("lower", "upper", "work"):
        (scratch / name).mkdir()
    mount = mounts.ours(Layers((scratch / "lower",), scratch / "upper", scratch / "work"))
    mount.kill_expected()
    outer = signal.getsignal(signal.SIGUSR1)
    watchdog = Watchdog("a session of its own", scratch)
    try:
        for pid in mount.servers:
            os.kill(pid, signal.SIGSTOP)
        watchdog.arm(0.5)
        with pytest.raises(OSError) as caught:
            os.listdir(mount.target)
        assert caught.value.errno in (errno.ECONNABORTED, errno.ENOTCONN)
        assert watchdog.fired()
        watchdog.disarm()
    finally:
        for pid in mount.servers:
            os.kill(pid, signal.SIGKILL)
            system.wait_until_gone(pid, 5)
        watchdog.close()
        signal.signal(signal.SIGUSR1, outer)


def test_a_loop_without_end_is_interrupted(scratch: Path) -> None:
    outer = signal.getsignal(signal.SIGUSR1)
    watchdog = Watchdog("a session of its own", scratch)
    try:
        watchdog.arm(0.2)
        with pytest.raises(TestOverran):
            time.sleep(30)
        watchdog.disarm()
    finally:
        watchdog.close()
        signal.signal(signal.SIGUSR1, outer)
