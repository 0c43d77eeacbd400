"""Looking at servers again and again, without servers."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner

from unionfs import state
from unionfs.cli import stats, top, watch
from unionfs.errors import MountError


def answer(uptime: float, *, pid: int = 7, microseconds: bool = True, **requests: int) -> dict[str, Any]:
    """A server's: every request took 5 us."""
    took = {kind: count * 5 for kind, count in requests.items()} if microseconds else {}
    return {
        "requests": requests, "microseconds": took, "nodes": 3, "open_fds": 4, "rss": 40_000_000, "pss": 30_000_000,
        "cpu": uptime / 4, "uptime": uptime, "pid": pid,
    }  # fmt: skip


def test_activity_is_what_happened_between_two_answers() -> None:
    did = watch.activity(answer(10, lookup=100, read=5), answer(12, lookup=300, read=5, write=50))
    assert did is not None
    assert (did.seconds, did.requests, did.microseconds) == (2, {"lookup": 200, "write": 50}, {"lookup": 1000, "write": 250})
    assert (did.rate, did.each, did.cpu, did.busiest()) == (125, 5, 0.25, ["lookup", "write"])


def test_without_requests_or_measuring_nobody_knows_what_one_takes() -> None:
    quiet = watch.activity(answer(1, lookup=5), answer(2, lookup=5))
    counted = watch.activity(answer(1, microseconds=False), answer(2, microseconds=False, read=2, lookup=5))
    assert quiet is not None and (quiet.rate, quiet.each, quiet.busiest()) == (0, None, [])
    assert counted is not None and (counted.rate, counted.each, counted.busiest()) == (7, None, ["lookup", "read"])


@pytest.mark.parametrize("after", [answer(20, pid=8), answer(9), answer(10)])
def test_answers_of_two_servers_say_nothing(after: dict[str, Any]) -> None:
    assert watch.activity(answer(10), after) is None


def test_a_server_that_knows_no_share_of_memory_is_taken_at_what_is_resident() -> None:
    after = answer(2)
    del after["pss"]
    did = watch.activity(answer(1), after)
    assert did is not None and did.pss == did.rss == 40_000_000


@pytest.mark.parametrize("word", ["0", "-1", "0.01", "nan", "inf", "3601", "x", ""])
def test_an_interval_is_a_sensible_number_of_seconds(word: str) -> None:
    with pytest.raises(click.BadParameter):
        watch.as_seconds(word)
    assert watch.as_seconds("0.5") == 0.5


def test_what_the_caller_takes_does_not_lengthen_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    at = []
    for turn in watch.turns(2, 4):
        at.append(clock[0])
        clock[0] += 5 if turn == 1 else 0.5
    assert at == [102, 104, 109, 111]


class _Output(io.BytesIO):
    """A standard output that may be a terminal."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal
        self.buffer = self

    def isatty(self) -> bool:
        return self._terminal

    def fileno(self) -> int:
        return 1


def shown(monkeypatch: pytest.MonkeyPatch, *states: list[str], terminal: bool, size: tuple[int, int] = (5, 3)) -> bytes:
    output = _Output(terminal)
    monkeypatch.setenv("TERM", "linux")
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size(size))
    screen = watch.Screen()
    for lines in states:
        screen.show(lines)
    return output.getvalue()


def test_what_is_no_terminal_gets_one_block_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, ["one", "two"], ["three"], terminal=False) == b"one\ntwo\n\nthree\n"


def test_a_terminal_is_redrawn_as_far_as_it_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = shown(monkeypatch, ["too long", "two", "three"], ["x"], terminal=True)
    assert drawn == b"\x1b[2J\x1b[Htoo l\x1b[K\ntwo\x1b[K\n\x1b[J\n\x1b[Hx\x1b[K\n\x1b[J\n"


def test_a_terminal_of_no_size_has_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert b"too long" in shown(monkeypatch, ["too long"], terminal=True, size=(0, 0))


def test_a_terminal_that_cannot_be_redrawn_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    output = _Output(True)
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setenv("TERM", "dumb")
    watch.Screen().show(["x"])
    assert output.getvalue() == b"x\n"


# ---- the commands, whose servers answer from a list ----

@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, Any] | MountError]]:
    """What each device's server answers, in turn; the mount is there as long as it has something to say."""
    found: dict[str, list[dict[str, Any] | MountError]] = {}

    def ask(device: str, question: dict[str, Any], *, seconds: float = 5.0) -> dict[str, Any]:
        assert question["timed"] > 0
        if not found[device]:
            raise MountError("the server of this mount has no control socket here")
        said = found[device].pop(0)
        if isinstance(said, MountError):
            raise said
        return said

    def mounts() -> list[state.Mount]:
        record = state.Record("0:1", 7, b"/mnt", (b"/l",), None, None, "rw", 0.0)
        return [state.Mount(device, b"/mnt" + device[2:].encode(), "live", record) for device in found if found[device]]

    monkeypatch.setattr(state, "ask", ask)
    monkeypatch.setattr(state, "all_mounts", mounts)
    monkeypatch.setattr(state, "served_mount", lambda path: (SimpleNamespace(device="0:1"), path))
    monkeypatch.setattr(watch, "turns", lambda interval, count: iter(range(99 if count is None else count)))
    return found


Servers = dict[str, list[dict[str, Any] | MountError]]


def call(command: click.Command, *arguments: str) -> str:
    done = CliRunner().invoke(command, arguments, standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return done.stdout


@pytest.mark.parametrize("words", [["--watch", "/mnt"], ["/mnt", "--watch"], ["--watch", "1", "/mnt"], ["--watch=0.5", "/mnt"]])
def test_the_interval_may_be_left_out_wherever_watch_stands(servers: Servers, words: list[str]) -> None:
    servers["0:1"] = [answer(1, lookup=2), answer(3, lookup=10, read=2)]
    lines = call(stats.stats, "-n", "1", *words).splitlines()
    assert lines[0] == "/mnt: 5 requests a second, 5.0 us each; 25% of a CPU"
    assert [line.split() for line in lines[3:]] == [["lookup", "4", "5.0", "80%", "10"], ["read", "1", "5.0", "20%", "2"]]


def test_an_engine_that_does_not_measure_is_shown_by_its_counts(servers: Servers) -> None:
    servers["0:1"] = [answer(1, microseconds=False), answer(2, microseconds=False, lookup=10)]
    lines = call(stats.stats, "-n", "1", "--watch", "/mnt").splitlines()
    assert lines[0] == "/mnt: 10 requests a second; 25% of a CPU" and lines[3].split() == ["lookup", "10", "-", "-", "10"]


def test_watching_for_programs_is_an_object_a_line(servers: Servers) -> None:
    servers["0:1"] = [answer(1), answer(2, read=3), answer(4, read=4)]
    first, second = map(json.loads, call(stats.stats, "-n", "2", "--watch", "--json", "/mnt").splitlines())
    assert (first["target"], first["seconds"], first["requests"], first["microseconds"]) == ("/mnt", 1, {"read": 3}, {"read": 15})
    assert (second["seconds"], second["requests"], second["pss"]) == (2, {"read": 1}, 30_000_000)


@pytest.mark.parametrize(
    ("then", "message"),
    [([], "/mnt: the mount has gone"), ([MountError("the server is dead"), answer(9)], "the server is dead"),
     ([answer(9, pid=8)], "/mnt: the mount has gone, and another has come")],
)
def test_a_mount_that_goes_away_ends_the_watch(servers: Servers, then: list[dict[str, Any] | MountError], message: str) -> None:
    servers["0:1"] = [answer(1), answer(2), *then]
    with pytest.raises(MountError) as raised:
        call(stats.stats, "--watch", "/mnt")
    assert str(raised.value) == message


def test_the_busiest_mount_is_on_top_and_one_that_is_silent_or_new_is_named(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    servers.update({
        "0:1": [answer(1), answer(2, lookup=10), answer(3)],
        "0:2": [answer(1), answer(2, read=60, getattr=20, lookup=30, write=10), answer(3)],
        "0:3": [answer(1), MountError("the server does not answer"), answer(3)],
        "0:4": [MountError("the server does not answer"), answer(2), answer(3)],
    })  # fmt: skip
    lines = call(top.top, "-n", "1").splitlines()
    assert lines[0] == "4 mounts, 130 requests a second, 50% of a CPU, 60.0 MB"
    assert lines[2].split() == ["120", "5.0", "25%", "30.0", "MB", "3", "/mnt2", "read,", "lookup,", "getattr"]
    assert lines[3].split() == ["10", "5.0", "25%", "30.0", "MB", "3", "/mnt1", "lookup"]
    assert {line.strip() for line in lines[4:]} == {f"{'does not answer':<44}  /mnt3", f"{'has just come':<44}  /mnt4"}


def test_top_for_programs_is_an_object_a_line(servers: Servers) -> None:
    servers["0:1"] = [answer(1), answer(2, read=5), answer(3, read=5), answer(4)]
    first, second = map(json.loads, call(top.top, "-n", "2", "--json", "1").splitlines())
    assert [mount["requests"] for mount in first["mounts"]] == [{"read": 5}] and second["mounts"][0]["requests"] == {}
    assert first["mounts"][0]["target"] == "/mnt1" and first["mounts"][0]["state"] == "live"


def test_without_a_mount_top_goes_on(servers: Servers) -> None:
    assert call(top.top, "-n", "2").count("0 mounts, 0 requests a second") == 2


def test_servers_are_asked_at_once(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    servers.update({f"0:{number}": [answer(1)] for number in range(8)})

    def ask(*_: object, **__: object) -> dict[str, Any]:
        time.sleep(0.2)
        return answer(1)

    monkeypatch.setattr(state, "ask", ask)
    started = time.monotonic()
    assert len(top._ask_all(top._served(), watch.question(1))) == 8
    assert time.monotonic() - started < 1.0
