"""The cache of the root filesystem: whole or absent."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tests.realwork.rootfs import kept


def fill(directory: Path) -> None:
    (directory / "root").mkdir()


def test_it_is_made_once(scratch: Path) -> None:
    made = []

    def make(directory: Path) -> None:
        made.append(directory)
        fill(directory)

    assert kept(scratch, "tree", make) == kept(scratch, "tree", make) == scratch / "tree"
    assert len(made) == 1


def test_a_failure_leaves_nothing_that_looks_finished_and_the_next_try_works(scratch: Path) -> None:
    def fail(directory: Path) -> None:
        fill(directory)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept(scratch, "tree", fail)
    assert [path.name for path in scratch.iterdir()] == ["tree.lock"]
    assert (kept(scratch, "tree", fill) / "root").is_dir()


def test_what_a_killed_maker_left_is_removed(scratch: Path) -> None:
    left = scratch / "tree.making-killed"
    (left / "root" / "bin").mkdir(parents=True)
    kept(scratch, "tree", fill)
    assert not left.exists()


def test_two_at_once_make_it_once(scratch: Path) -> None:
    made = []

    def slowly(directory: Path) -> None:
        made.append(directory)
        time.sleep(0.2)
        fill(directory)

    threads = [threading.Thread(target=kept, args=(scratch, "tree", slowly)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(made) == 1
    assert (scratch / "tree" / "root").is_dir()
