"""Many clients at once: directories of lowers move while the files in them are copied up, filled, cut, unlinked and listed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import tree
from tests.support.mounts import REPOSITORY, Layers, Mount, Mounts, our_program
from unionfs.linux import files

SEED = int(os.environ.get("UNIONFS_SEED", "1"))
SECONDS = float(os.environ.get("UNIONFS_SECONDS", "5"))
OPTIONS = "redirect_dir=on,metacopy=on,index=on,xino=off"
BIG = 1_500_000
DIRECTORIES = [f"d{number}" for number in range(6)]
ROUNDS = 40


def body(name: str, size: int) -> bytes:
    text = name.encode() + b". "
    return (text * (size // len(text) + 1))[:size]


class Clients:
    """Threads that go on until the time is over; the first failure of one ends all."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.failures: list[BaseException] = []
        self._threads: list[threading.Thread] = []

    def start(self, work: Callable[[random.Random], None]) -> None:
        rng = random.Random(f"{SEED} {len(self._threads)}")

        def run() -> None:
            try:
                while not self.over.is_set():
                    work(rng)
            except BaseException as exc:
                self.failures.append(exc)
                self.over.set()

        self._threads.append(threading.Thread(target=run))

    def run(self, seconds: float) -> None:
        for thread in self._threads:
            thread.start()
        self.over.wait(seconds)
        self.over.set()
        for thread in self._threads:
            thread.join()
        if self.failures:
            raise self.failures[0]


def furnish(scratch: Path) -> Layers:
    lowers = (scratch / "top", scratch / "bottom")
    for place, lower in enumerate(lowers):
        for directory in DIRECTORIES:
            (lower / directory / "sub").mkdir(parents=True)
            for number in range(ROUNDS):
                (lower / directory / "sub" / f"stays{number}").write_bytes(b"")
                for prefix in ("append", "meta", "gone", "cut"):
                    name = f"{prefix}{number}"
                    if number % 3 != place:
                        (lower / directory / name).write_bytes(body(f"{directory}/{name}", BIG // (1 + number % 4)))
    for name in ("upper", "work"):
        (scratch / name).mkdir()
    return Layers(lowers, scratch / "upper", scratch / "work")


class Client:
    """What one does to the files of its own; each by a descriptor of the directory, which may be anywhere by now."""

    def __init__(self, mount: Path, directory: str) -> None:
        self.fd = os.open(mount / directory, os.O_RDONLY | os.O_DIRECTORY)
        self.directory = directory
        self.left = {prefix: list(range(ROUNDS)) for prefix in ("append", "meta", "gone", "cut")}

    def content(self, name: str, number: int) -> bytes:
        return body(f"{self.directory}/{name}", BIG // (1 + number % 4))

    def opened(self, name: str, flags: int) -> int:
        return os.open(name, flags, dir_fd=self.fd)

    def _next(self, prefix: str) -> tuple[str, int] | None:
        left = self.left[prefix]
        if not left:
            return None
        number = left.pop()
        return f"{prefix}{number}", number

    def append(self, rng: random.Random) -> None:
        if (found := self._next("append")) is None:
            return time.sleep(0.05)
        name, number = found
        fd = self.opened(name, os.O_WRONLY | os.O_APPEND)
        os.write(fd, b"end")
        os.close(fd)
        check(self, name, self.content(name, number) + b"end")

    def meta(self, rng: random.Random) -> None:
        """A metacopy that gets another name, a second one, and its data, in any order."""
        if (found := self._next("meta")) is None:
            return time.sleep(0.05)
        name, number = found
        os.chmod(name, 0o600, dir_fd=self.fd)
        reader = self.opened(name, os.O_RDONLY)
        others: list[BaseException] = []

        def move() -> None:
            try:
                os.rename(name, name + "-moved", src_dir_fd=self.fd, dst_dir_fd=self.fd)
                os.link(name + "-moved", name + "-too", src_dir_fd=self.fd, dst_dir_fd=self.fd)
                os.unlink(name + "-moved", dir_fd=self.fd)
            except BaseException as exc:
                others.append(exc)

        mover = threading.Thread(target=move)
        fd = self.opened(name, os.O_RDWR)
        mover.start()
        os.pwrite(fd, b"NEW", 5)
        mover.join()
        os.close(fd)
        assert others == []
        expected = bytearray(self.content(name, number))
        expected[5:8] = b"NEW"
        check(self, name + "-too", bytes(expected))
        assert os.pread(reader, len(expected), 0) == expected
        os.close(reader)

    def gone(self, rng: random.Random) -> None:
        """Unlinked, while its data come up for one who has it open."""
        if (found := self._next("gone")) is None:
            return time.sleep(0.05)
        name, number = found
        if rng.randrange(2):
            os.chmod(name, 0o640, dir_fd=self.fd)
        reader = self.opened(name, os.O_RDONLY)
        os.stat(reader)
        path = f"/proc/self/fd/{reader}"
        remover = threading.Thread(target=os.unlink, args=(name,), kwargs={"dir_fd": self.fd})
        remover.start()
        expected = self.content(name, number)
        try:
            fd = os.open(path, os.O_RDWR)
            os.pwrite(fd, b"NEW", 0)
            os.close(fd)
            expected = b"NEW" + expected[3:]
        except FileNotFoundError:
            pass
        remover.join()
        assert os.pread(reader, len(expected) + 1, 0) == expected, name
        assert os.fstat(reader).st_nlink == 0
        os.close(reader)

    def cut(self, rng: random.Random) -> None:
        """Cut by one while another writes at its start."""
        if (found := self._next("cut")) is None:
            return time.sleep(0.05)
        name, number = found
        if rng.randrange(2):
            os.chmod(name, 0o640, dir_fd=self.fd)
        fd = self.opened(name, os.O_RDONLY)
        size = rng.choice((10, 100_000))
        cutter = threading.Thread(target=os.truncate, args=(f"/proc/self/fd/{fd}", size))
        cutter.start()
        writer = self.opened(name, os.O_WRONLY)
        os.pwrite(writer, b"NEW", 0)
        cutter.join()
        os.close(writer)
        os.close(fd)
        check(self, name, b"NEW" + self.content(name, number)[3:size])

    def list(self, rng: random.Random) -> None:
        """What stays is seen once, whatever comes and goes."""
        sub = self.opened("sub", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.close(os.open(f"new{rng.randrange(9)}", os.O_CREAT | os.O_WRONLY, dir_fd=sub))
            names = os.listdir(sub)
            stays = [name for name in names if name.startswith("stays")]
            assert sorted(stays) == sorted(f"stays{number}" for number in range(ROUNDS)), self.directory
            os.unlink(rng.choice([name for name in names if name.startswith("new")] or ["sub"]), dir_fd=sub)
        finally:
            os.close(sub)


def check(client: Client, name: str, content: bytes) -> None:
    fd = client.opened(name, os.O_RDONLY)
    try:
        found = os.pread(fd, len(content) + 1, 0)
        assert len(found) == len(content) and found == content, f"{client.directory}/{name}"
    finally:
        os.close(fd)


def moving(mount: Path) -> Callable[[random.Random], None]:
    """Directories get each other's places, move below each other and back."""
    top = os.fsencode(mount)

    def move(rng: random.Random) -> None:
        one, other = rng.sample(DIRECTORIES, 2)
        if rng.randrange(2):
            files.renameat2(-100, top + b"/" + one.encode(), -100, top + b"/" + other.encode(), files.RENAME_EXCHANGE)
        else:
            os.rename(mount / one, mount / other / "inside")
            os.rename(mount / other / "inside", mount / one)

    return move


def forgetting(_: random.Random) -> None:
    time.sleep(0.1)
    Path("/proc/sys/vm/drop_caches").write_text("2")


def held(mount: Mount) -> tuple[int, int]:
    """How many nodes and descriptors of layers the server holds."""
    done = subprocess.run([*our_program(), "stats", "--json", str(mount.target)], cwd=REPOSITORY, capture_output=True, text=True,
                          timeout=20, check=True)
    answer = json.loads(done.stdout)
    return answer["nodes"], answer["open_fds"]


def wait_until_forgotten(mount: Mount) -> None:
    """All but the root, once the kernel has been told to forget."""
    deadline = time.monotonic() + 10
    while held(mount) != (1, 0):
        assert time.monotonic() < deadline, f"nodes and descriptors that nobody needs: {held(mount)}"
        Path("/proc/sys/vm/drop_caches").write_text("2")
        time.sleep(0.1)


@pytest.mark.timeout(60 + SECONDS * 3)
def test_many_clients_are_served_rightly_and_leave_nothing_behind(mounts: Mounts, scratch: Path) -> None:
    layers = furnish(scratch)
    assert layers.work is not None
    mount = mounts.ours(layers, "-o", OPTIONS)
    clients = Clients()
    each = [Client(mount.target, directory) for directory in DIRECTORIES]
    for client in each:
        for verb in (client.append, client.meta, client.gone, client.cut, client.list):
            clients.start(verb)
    clients.start(moving(mount.target))
    clients.start(forgetting)
    clients.run(SECONDS)
    for client in each:
        os.close(client.fd)
    ours = tree.snapshot(mount.target)
    wait_until_forgotten(mount)
    assert os.listdir(layers.work / "work") == []
    assert mount.unmount() == []
    theirs = mounts.kernel(layers, options=OPTIONS)
    assert tree.difference(ours, tree.snapshot(theirs.target), ("ours", "the kernel's")) == ""
    assert theirs.unmount() == []
    mount = mounts.ours(layers, "-o", OPTIONS)
    assert tree.difference(ours, tree.snapshot(mount.target), ("before", "after a remount")) == ""
    assert mount.unmount() == []
