"""The demo, as a newcomer starts it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support import requirements, system

DEMO = Path(__file__).resolve().parents[2] / "scripts" / "demo"

pytestmark = [
    pytest.mark.root,
    pytest.mark.fuse,
    pytest.mark.skipif(requirements.missing_for_fuse() is not None, reason=str(requirements.missing_for_fuse())),
]


def test_the_demo_shows_what_changed_and_leaves_the_layers_and_the_machine_as_they_were(scratch: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(scratch)}
    done = subprocess.run(
        [DEMO], cwd="/", env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    shown = done.stdout.splitlines()
    assert {"Welcome to the app layer, which covers the one below", "colour = blue"} <= set(shown)
    assert [line for line in shown if line[:2] in ("A ", "C ", "D ")] == [
        "C /etc", "D /etc/obsolete.conf", "C /etc/theme.conf", "A /srv", "A /srv/data", "A /srv/data/answer",
    ]
    digests = [line.split()[1] for line in shown if line.startswith(("before ", "after "))]
    assert len(digests) == 2 and digests[0] == digests[1]
    assert list(scratch.iterdir()) == []
    assert system.mounts_below(scratch) == []


def test_the_demo_takes_no_arguments_and_says_so_in_one_line() -> None:
    done = subprocess.run([DEMO, "--help"], capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "demo: usage: scripts/demo\n")
