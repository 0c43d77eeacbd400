"""What is open with io=passthrough: backing ids, numbers, what may be believed; on a kernel that only takes notes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from unionfs.fuse import protocol
from unionfs.fuse.passthrough import Passthrough
from unionfs.overlay.union import Union

INO = 7
READ, WRITE = os.O_RDONLY, os.O_RDWR


class Kernel:
    """Gives ids from 1 on; *refuses*: the error of registering."""

    def __init__(self) -> None:
        self.registered: dict[int, int] = {}
        self.given = 0
        self.refuses: int | None = None
        self.asked_again: list[int] = []

    def register(self, fd: int) -> int:
        if self.refuses is not None:
            raise OSError(self.refuses, os.strerror(self.refuses))
        self.given += 1
        self.registered[self.given] = os.fstat(fd).st_ino
        return self.given

    def unregister(self, backing: int) -> None:
        del self.registered[backing]


class World:
    """A union with one file, which lies in *lower* until it is *brought_up*."""

    def __init__(self, scratch: Path) -> None:
        self.fds = [os.open(scratch / name, os.O_RDWR | os.O_CREAT) for name in ("lower", "upper")]
        self.brought_up = False
        self.kernel = Kernel()
        self.open = Passthrough(cast(Union, self), self.kernel.register, self.kernel.unregister, self.kernel.asked_again.append)

    def data_fd(self, ino: int) -> int:
        assert ino == INO
        return self.fds[self.brought_up]

    def opened(self, number: int, flags: int, *, direct: bool = False) -> tuple[int, int]:
        """(how, backing id) of the answer."""
        _, how, backing = protocol.OPEN_OUT.unpack(self.open.opened(number, flags, direct=direct))
        return how, backing

    def renumbered(self, number: int, flags: int) -> int:
        """The number that the file has after an open that has failed for want of it."""
        with pytest.raises(OSError) as caught:
            self.opened(number, flags)
        assert caught.value.errno == errno.ESTALE
        return self.open.told.get(INO, INO)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    for fd in made.fds:
        os.close(fd)


def test_all_opens_of_a_file_share_one_id_until_the_last_is_closed(world: World) -> None:
    assert [world.opened(INO, READ) for _ in range(3)] == [(protocol.FOPEN_PASSTHROUGH, 1)] * 3
    world.open.released(INO, READ)
    world.open.released(INO, READ)
    assert list(world.kernel.registered) == [1] and INO in world.open.open
    world.open.released(INO, READ)
    assert not world.kernel.registered and not world.open.open and not len(world.open)
    assert world.opened(INO, READ) == (protocol.FOPEN_PASSTHROUGH, 2)


def test_a_file_that_must_only_grow_is_written_by_the_server(world: World) -> None:
    assert world.opened(INO, WRITE, direct=True) == (protocol.FOPEN_PASSTHROUGH | protocol.FOPEN_DIRECT_IO, 1)


def test_attributes_are_not_believed_while_somebody_may_write(world: World) -> None:
    world.opened(INO, READ)
    assert INO not in world.open.changing and world.kernel.asked_again == []
    world.opened(INO, WRITE)
    world.opened(INO, WRITE)
    assert INO in world.open.changing and world.kernel.asked_again == [INO]
    world.open.released(INO, WRITE)
    assert INO in world.open.changing
    world.open.released(INO, WRITE)
    assert INO not in world.open.changing and INO in world.open.open


def test_a_file_that_was_brought_up_while_open_gets_a_number_and_an_id_more(world: World) -> None:
    world.opened(INO, READ)
    world.brought_up = True
    fresh = world.renumbered(INO, WRITE)
    assert fresh != INO and world.open.meant[fresh] == INO and world.kernel.asked_again == [INO]
    assert world.opened(fresh, WRITE) == (protocol.FOPEN_PASSTHROUGH, 2)
    lower, upper = (os.fstat(fd).st_ino for fd in world.fds)
    assert world.kernel.registered == {1: lower, 2: upper}
    assert world.renumbered(INO, READ) == fresh, "who knows the old number only gets no third"
    world.open.released(INO, READ)
    assert list(world.kernel.registered) == [2]
    assert world.opened(INO, READ) == (protocol.FOPEN_PASSTHROUGH, 3), "the old number too is good for what the file is now"
    assert sorted(world.open.numbers(INO)) == [INO, fresh]


def test_with_two_numbers_attributes_are_believed_never_again(world: World) -> None:
    world.opened(INO, READ)
    world.brought_up = True
    fresh = world.renumbered(INO, READ)
    world.opened(fresh, WRITE)
    world.open.released(fresh, WRITE)
    world.open.released(INO, READ)
    assert INO in world.open.changing
    world.open.forgotten(INO)
    assert not world.open.changing and not world.open.told and not world.open.meant


def test_no_number_is_given_twice(world: World) -> None:
    seen = {INO}
    for _ in range(3):
        world.brought_up = False
        number = world.open.told.get(INO, INO)
        world.opened(number, READ)
        world.brought_up = True
        seen.add(world.renumbered(number, READ))
        world.open.released(number, READ)
        world.open.forgotten(INO)
    assert len(seen) == 4


@pytest.mark.parametrize("code", [errno.ELOOP, errno.EPERM])
def test_files_the_kernel_refuses_are_served_and_the_log_says_it_once(
    world: World, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    world.kernel.refuses = code
    assert world.opened(INO, READ) == (protocol.FOPEN_KEEP_CACHE, 0)
    world.kernel.refuses = None
    world.brought_up = True
    assert world.opened(INO, WRITE) == (protocol.FOPEN_KEEP_CACHE, 0), "the kernel refuses two ways at once"
    world.open.released(INO, READ)
    world.open.released(INO, WRITE)
    assert world.opened(INO, READ) == (protocol.FOPEN_KEEP_CACHE, 0), "a device is not asked about again"
    assert len(caplog.records) == 1


def test_an_error_that_may_pass_is_the_answer_and_leaves_nothing_open(world: World) -> None:
    world.kernel.refuses = errno.ENOMEM
    with pytest.raises(OSError):
        world.opened(INO, READ)
    assert not len(world.open) and not world.open.open
    world.kernel.refuses = None
    assert world.opened(INO, READ) == (protocol.FOPEN_PASSTHROUGH, 1)


@pytest.mark.parametrize("offered", [protocol.PASSTHROUGH, 0])
def test_an_open_truncates_only_where_opens_are_asked_for(offered: int) -> None:
    asked = protocol.ATOMIC_O_TRUNC | protocol.INIT_EXT | offered
    body = protocol.INIT_IN.pack(7, 45, 0, asked & 0xFFFFFFFF) + protocol.INIT_IN_MORE.pack(asked >> 32)
    answer, flags = protocol.init_answer(body, protocol.PASSTHROUGH | protocol.ATOMIC_O_TRUNC, 4096, 2)
    assert bool(flags & protocol.ATOMIC_O_TRUNC) == bool(offered)
    assert protocol.INIT_OUT.unpack(answer)[11] == (2 if offered else 0)
