"""Telling the kernel what to forget, and following the watches, on a union without a mount."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from tests.unit.overlay.test_refresh import again, fill
from tests.unit.overlay.world import View, World, put
from unionfs.fuse.refresh import POLLED_TIMEOUT, Refresher
from unionfs.overlay import watch
from unionfs.overlay.watch import Watcher


class Kernel:
    """An engine that hears what it is to tell the kernel, from which thread; ``gate`` holds it up."""

    keeps_sizes = False

    def __init__(self) -> None:
        self.names: set[tuple[int, bytes]] = set()
        self.numbers: set[int] = set()
        self.threads: set[threading.Thread] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.asked = threading.Event()
        self.forgot = 0
        self.limits: list[float] = []

    def forget_name(self, parent: int, name: bytes) -> None:
        self._hear()
        self.names.add((parent, name))

    def forget_object(self, number: int) -> None:
        self._hear()
        self.numbers.add(number)

    def _hear(self) -> None:
        self.asked.set()
        assert self.gate.wait(10)
        self.threads.add(threading.current_thread())

    def forget_known(self) -> None:
        self.forgot += 1

    def limit_trust(self, seconds: float) -> None:
        self.limits.append(seconds)


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def world(scratch: Path) -> Any:
    made = World(scratch)
    fill(*made.lowers)
    yield made
    made.close_all()


def refresher_of(view: View, kernel: Kernel) -> Refresher:
    return Refresher(cast(Any, kernel), view.union)


async def until(told: Any) -> None:
    with trio.fail_after(5):
        while not told():
            await trio.sleep(0.01)


async def test_a_refresh_has_told_the_kernel_when_it_returns(world: World, kernel: Kernel) -> None:
    view = world.open(writable=False)
    view.snapshot()
    refresher = refresher_of(view, kernel)
    big = view.ino(b"big")
    (world.lowers[1] / "file").unlink()
    put(world.lowers[1] / "new")
    await refresher.refresh()
    assert kernel.names == {(1, b"file"), (1, b"new")} and {1, big} <= kernel.numbers and kernel.forgot
    assert threading.main_thread() not in kernel.threads


async def test_a_kernel_that_keeps_sizes_forgets_the_names_of_files_too(world: World, kernel: Kernel) -> None:
    view = world.open(writable=False)
    view.snapshot()
    big, parent = view.ino(b"big"), 1
    await refresher_of(view, kernel).refresh()
    assert big in kernel.numbers and (parent, b"big") not in kernel.names
    kernel.keeps_sizes = True
    await refresher_of(view, kernel).refresh()
    assert (parent, b"big") in kernel.names


async def test_serving_does_not_end_while_the_kernel_is_being_told(world: World, kernel: Kernel) -> None:
    view = world.open(writable=False)
    view.snapshot()
    refresher = refresher_of(view, kernel)
    ended: list[str] = []

    async def end() -> None:
        async with refresher.nothing_under_way():
            ended.append("end")

    kernel.gate.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refresher.refresh)
        await until(kernel.asked.is_set)
        nursery.start_soon(end)
        await trio.sleep(0.05)
        assert ended == []
        kernel.gate.set()
    assert ended == ["end"]


async def test_what_a_verb_found_outdated_is_told(world: World, kernel: Kernel) -> None:
    view = world.open(writable=False)
    view.snapshot()
    refresher = refresher_of(view, kernel)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refresher.tell_what_was_met)
        again(world.lowers[1] / "file", Path.mkdir)
        assert view.names(b"file") == []
        await until(lambda: (1, b"file") in kernel.names)
        assert kernel.forgot
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("lost", [False, True], ids=["by event", "events were lost"])
async def test_events_are_followed(world: World, kernel: Kernel, monkeypatch: pytest.MonkeyPatch, lost: bool) -> None:
    view = world.open(writable=False)
    watcher = view.union.tree.watcher = Watcher(view.union.stack.lowers)
    if lost:
        collect = watcher.collect
        monkeypatch.setattr(watcher, "collect", lambda: collect() and None)
    view.snapshot()
    refresher = refresher_of(view, kernel)
    ino = view.ino(b"directory/base")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refresher.watch)
        put(world.lowers[1] / "directory" / "new")
        await until(lambda: (view.ino(b"directory"), b"new") in kernel.names)
        with (world.lowers[1] / "directory" / "base").open("r+b") as file:
            file.write(b"x")
        kernel.numbers.clear()
        await until(lambda: ino in kernel.numbers)
        nursery.cancel_scope.cancel()


async def test_a_change_that_cannot_be_followed_does_not_end_it(
    world: World, kernel: Kernel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    view = world.open(writable=False)
    watcher = view.union.tree.watcher = Watcher(view.union.stack.lowers)
    view.snapshot()
    refresher = refresher_of(view, kernel)

    def fail() -> None:
        collect()
        monkeypatch.setattr(watcher, "collect", collect)
        raise KeyError("a defect")

    collect = watcher.collect
    monkeypatch.setattr(watcher, "collect", fail)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refresher.watch)
        put(world.lowers[1] / "one")
        await until(lambda: "could not be followed" in caplog.text)
        put(world.lowers[1] / "two")
        await until(lambda: (1, b"two") in kernel.names)
        nursery.cancel_scope.cancel()


async def test_without_watches_there_is_one_warning_and_a_short_trust(
    world: World, kernel: Kernel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watch, "_share_of_watches", lambda: 1)
    view = world.open(writable=False)
    view.union.tree.watcher = Watcher(view.union.stack.lowers)
    refresher_of(view, kernel)
    view.snapshot()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert kernel.limits == [POLLED_TIMEOUT]


async def test_a_static_mount_has_nothing_to_watch(world: World, kernel: Kernel) -> None:
    refresher = refresher_of(world.open(), kernel)
    with trio.fail_after(1):
        await refresher.watch()
