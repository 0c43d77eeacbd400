"""The control socket: what is asked over it, and what is answered."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from unionfs.fuse import control as served

UNION = SimpleNamespace(tree=SimpleNamespace(nodes=[1, 2, 3], open_descriptors=4))
ENGINE = SimpleNamespace(requests=lambda: {"lookup": 12, "read": 3}, microseconds=lambda: {"lookup": 60})


class _Refresher:
    """Remembers what it was asked to refresh."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    async def refresh(self, path: bytes) -> None:
        self.asked.append(path)


REFRESHER = _Refresher()


@pytest.fixture
def facts() -> served.Facts:
    return served.Facts(cast(Any, ENGINE), cast(Any, UNION))


def test_stats_are_what_the_union_and_the_handlers_count(facts: served.Facts) -> None:
    answer = facts.answer({"cmd": "stats"})
    assert (answer["requests"], answer["nodes"], answer["open_fds"]) == ({"lookup": 12, "read": 3}, 3, 4)
    assert answer["microseconds"] == {"lookup": 60}
    assert answer["rss"] > 1 << 20
    assert answer["uptime"] >= 0
    json.dumps(answer)


def test_the_memory_that_is_its_own_share_is_part_of_what_is_resident(facts: served.Facts) -> None:
    answer = facts.answer({"cmd": "stats"})
    assert 1 << 20 < answer["pss"] <= answer["rss"]


class _Measured:
    """An engine of which it is known whether it measures."""

    def __init__(self) -> None:
        self.said: list[bool] = []

    def requests(self) -> dict[str, int]:
        return {}

    microseconds = requests

    def measure(self, on: bool) -> None:
        self.said.append(on)


@pytest.mark.parametrize("timed", [0, -1.0, float("nan"), float("inf"), 1e9, "5", None, [1]])
async def test_nothing_is_measured_for_who_does_not_say_for_how_long(timed: object) -> None:
    engine = _Measured()
    served.Facts(cast(Any, engine), cast(Any, UNION)).answer({"cmd": "stats", "timed": timed})
    assert engine.said == []


async def test_measuring_ends_when_nobody_asked_any_more(autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "time", SimpleNamespace(monotonic=trio.current_time, process_time=lambda: 0.0))
    engine = _Measured()
    facts = served.Facts(cast(Any, engine), cast(Any, UNION))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(facts.stop_measuring)
        for _ in range(2):
            facts.answer({"cmd": "stats", "timed": 6})
            await trio.sleep(5)  # while one has not ended the next comes
            facts.answer({"cmd": "stats", "timed": 6})
            facts.answer({"cmd": "stats", "timed": 1})
            await trio.sleep(5)
            assert set(engine.said) == {True}
            await trio.sleep(2)
            assert engine.said[-1] is False
            engine.said.clear()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("request_", [{}, {"cmd": "explode"}, [], "stats", None, 5])
def test_what_is_no_request_is_said_to_be_none(facts: served.Facts, request_: object) -> None:
    assert facts.answer(request_) == {"error": "unknown request"}


@contextlib.asynccontextmanager
async def answering(facts: served.Facts, scratch: Path) -> AsyncIterator[str]:
    """The path of a control socket at which *facts* are told."""
    path = str(scratch / "control")
    with socket.socket(socket.AF_UNIX) as control:
        control.bind(path)
        control.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.answer_control, control, facts, cast(Any, REFRESHER))
            yield path
            nursery.cancel_scope.cancel()


async def test_the_control_socket_answers_a_line_for_a_line(facts: served.Facts, scratch: Path) -> None:
    async with answering(facts, scratch) as path:
        async with await trio.open_unix_socket(path) as gone:
            await gone.send_all(b'{"cmd": "st')  # half a request, then away
        async with await trio.open_unix_socket(path) as stream:
            await stream.send_all(b'{"cmd": "stats"}\nnot json\n{"cmd":')
            await stream.send_all(b' "other"}\n')
            answers = b""
            with trio.fail_after(5):
                while answers.count(b"\n") < 3:
                    answers += await stream.receive_some()
    first, second, third = map(json.loads, answers.splitlines())
    assert first["nodes"] == 3
    assert second == {"error": "not JSON"}
    assert third == {"error": "unknown request"}


async def test_an_endless_line_is_cut_off(facts: served.Facts, scratch: Path) -> None:
    async with answering(facts, scratch) as path, await trio.open_unix_socket(path) as stream:
        with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
            while True:
                await stream.send_all(b"x" * 65536)


@pytest.mark.parametrize(
    ("request_", "asked"),
    [({"cmd": "refresh"}, [b""]), ({"cmd": "refresh", "path": "a/b"}, [b"a/b"]),
     ({"cmd": "refresh", "path": "caf\udce9"}, [b"caf\xe9"]), ({"cmd": "refresh", "path": 5}, []), ({"cmd": "stats"}, [])],
)
async def test_a_refresh_is_answered_when_it_is_done(facts: served.Facts, request_: dict[str, Any], asked: list[bytes]) -> None:
    refresher = _Refresher()
    answer = await served._answer(request_, facts, cast(Any, refresher))
    assert refresher.asked == asked and ("refreshed" in answer) == bool(asked)


async def test_a_refresh_that_fails_is_said_and_ends_nothing(facts: served.Facts, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(_: bytes) -> None:
        raise KeyError("a defect")

    answer = await served._answer({"cmd": "refresh"}, facts, cast(Any, SimpleNamespace(refresh=fail)))
    assert answer == {"error": "the refresh failed: 'a defect'"} and caplog.records[0].exc_info is not None
