"""inotify by descriptor."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from unionfs.linux import inotify
from unionfs.linux.inotify import Event, Inotify

EVERYTHING = inotify.CREATE | inotify.DELETE | inotify.MODIFY | inotify.DELETE_SELF


@pytest.fixture
def queue() -> Iterator[Inotify]:
    made = Inotify()
    yield made
    made.close()


def opened(path: Path) -> int:
    return os.open(path, os.O_PATH | os.O_DIRECTORY)


def test_events_come_with_names_of_any_bytes(queue: Inotify, scratch: Path) -> None:
    fd = opened(scratch)
    watch = queue.add(fd, EVERYTHING)
    os.close(fd)
    assert list(queue.read()) == []
    (scratch / "caf\udce9\n").write_text("x")
    assert select.select([queue.fd], [], [], 0)[0]
    assert list(queue.read()) == [Event(watch, inotify.CREATE, b"caf\xe9\n"), Event(watch, inotify.MODIFY, b"caf\xe9\n")]


def test_the_same_directory_has_one_watch_that_ends_with_it(queue: Inotify, scratch: Path) -> None:
    (scratch / "d").mkdir()
    first, second = opened(scratch / "d"), opened(scratch / "d")
    watch = queue.add(first, EVERYTHING)
    assert queue.add(second, EVERYTHING) == watch
    os.close(first)
    os.close(second)
    (scratch / "d").rmdir()
    assert [event.mask for event in queue.read()] == [inotify.DELETE_SELF, inotify.IGNORED]
    with pytest.raises(OSError, match="Invalid argument"):
        queue.remove(watch)


def test_what_is_no_directory_cannot_be_watched(queue: Inotify, scratch: Path) -> None:
    (scratch / "file").touch()
    fd = os.open(scratch / "file", os.O_PATH)
    with pytest.raises(NotADirectoryError):
        queue.add(fd, EVERYTHING)
    os.close(fd)
