"""What a session does besides serving: a mount refused in one line, and the control socket."""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from unionfs.errors import MountError
from unionfs.fuse import session
from unionfs.fuse.session import Settings
from unionfs.linux import mounts

UNION = SimpleNamespace(tree=SimpleNamespace(nodes=[1, 2, 3], open_descriptors=4))
OPERATIONS = SimpleNamespace(requests=Counter({"lookup": 12, "read": 3}))


class _Refresher:
    """Remembers what it was asked to refresh."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    async def refresh(self, path: bytes) -> None:
        self.asked.append(path)


REFRESHER = _Refresher()


@pytest.fixture
def facts() -> session._Facts:
    return session._Facts(cast(Any, OPERATIONS), cast(Any, UNION))


def test_without_dev_fuse_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> int:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(os, "open", missing)
    with pytest.raises(MountError, match=r"^cannot open /dev/fuse: No such file or directory$"):
        session.create_mount(Settings())


def test_a_mount_the_kernel_refuses_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.path.exists("/dev/fuse") or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no usable /dev/fuse")

    def refuse(*_: object) -> int:
        raise OSError(1, "Operation not permitted", "fuse")

    monkeypatch.setattr(mounts, "fs_mount", refuse)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(MountError, match=r"^cannot mount: Operation not permitted \(fuse\)$"):
        session.create_mount(Settings())
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_fusermount_there_is_one_line(monkeypatch: pytest.MonkeyPatch, scratch: Path) -> None:
    monkeypatch.setenv("PATH", str(scratch))
    with pytest.raises(MountError, match="^cannot run fusermount3: No such file"):
        session.mount_with_fusermount(Settings(), os.fsencode(scratch))


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    ("script", "message"),
    [("echo first >&2; echo 'fusermount3: mount failed: no' >&2; exit 1", "fusermount3: mount failed: no"),
     ("exit 1", "fusermount3 failed on "), ("exit 0", "fusermount3 passed no descriptor")],
    ids=["with a reason", "without one", "without a descriptor"],
)
def test_what_fusermount_says_is_what_the_user_reads(
    monkeypatch: pytest.MonkeyPatch, scratch: Path, script: str, message: str
) -> None:
    program = scratch / "fusermount3"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scratch}:{os.environ['PATH']}")
    with pytest.raises(MountError) as caught:
        session.mount_with_fusermount(Settings(), os.fsencode(scratch))
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_fusermount_is_told_the_options_with_commas_escaped(monkeypatch: pytest.MonkeyPatch, scratch: Path) -> None:
    program = scratch / "fusermount3"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {scratch}/said\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scratch}:{os.environ['PATH']}")
    settings = Settings(fsname="a,b\\c", allow_other=False, read_only=True, mount_attrs=frozenset({"ro", "nosuid"}))
    with pytest.raises(MountError):
        session.mount_with_fusermount(settings, b"/the/target")
    flag, options, dashes, target = (scratch / "said").read_text().splitlines()
    assert (flag, dashes, target) == ("-o", "--", "/the/target")
    assert options == "default_permissions,subtype=unionfs,fsname=a\\,b\\\\c,ro,nosuid"


def test_stats_are_what_the_union_and_the_handlers_count(facts: session._Facts) -> None:
    answer = facts.answer({"cmd": "stats"})
    assert (answer["requests"], answer["nodes"], answer["open_fds"]) == ({"lookup": 12, "read": 3}, 3, 4)
    assert answer["rss"] > 1 << 20
    assert answer["uptime"] >= 0
    json.dumps(answer)


@pytest.mark.parametrize("request_", [{}, {"cmd": "explode"}, [], "stats", None, 5])
def test_what_is_no_request_is_said_to_be_none(facts: session._Facts, request_: object) -> None:
    assert facts.answer(request_) == {"error": "unknown request"}


async def test_the_control_socket_answers_a_line_for_a_line(facts: session._Facts, scratch: Path) -> None:
    path = str(scratch / "control")
    with socket.socket(socket.AF_UNIX) as control:
        control.bind(path)
        control.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session._answer_control, control, facts, cast(Any, REFRESHER))
            async with await trio.open_unix_socket(path) as gone:
                await gone.send_all(b'{"cmd": "st')  # half a request, then away
            async with await trio.open_unix_socket(path) as stream:
                await stream.send_all(b'{"cmd": "stats"}\nnot json\n{"cmd":')
                await stream.send_all(b' "other"}\n')
                answers = b""
                with trio.fail_after(5):
                    while answers.count(b"\n") < 3:
                        answers += await stream.receive_some()
            nursery.cancel_scope.cancel()
    first, second, third = map(json.loads, answers.splitlines())
    assert first["nodes"] == 3
    assert second == {"error": "not JSON"}
    assert third == {"error": "unknown request"}


async def test_an_endless_line_is_cut_off(facts: session._Facts, scratch: Path) -> None:
    path = str(scratch / "control")
    with socket.socket(socket.AF_UNIX) as control:
        control.bind(path)
        control.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session._answer_control, control, facts, cast(Any, REFRESHER))
            async with await trio.open_unix_socket(path) as stream:
                with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
                    while True:
                        await stream.send_all(b"x" * 65536)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("request_", "asked"),
    [({"cmd": "refresh"}, [b""]), ({"cmd": "refresh", "path": "a/b"}, [b"a/b"]),
     ({"cmd": "refresh", "path": "caf\udce9"}, [b"caf\xe9"]), ({"cmd": "refresh", "path": 5}, []), ({"cmd": "stats"}, [])],
)
async def test_a_refresh_is_answered_when_it_is_done(facts: session._Facts, request_: dict[str, Any], asked: list[bytes]) -> None:
    refresher = _Refresher()
    answer = await session._answer(request_, facts, cast(Any, refresher))
    assert refresher.asked == asked and ("refreshed" in answer) == bool(asked)


async def test_a_refresh_that_fails_is_said_and_ends_nothing(facts: session._Facts, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(_: bytes) -> None:
        raise KeyError("a defect")

    answer = await session._answer({"cmd": "refresh"}, facts, cast(Any, SimpleNamespace(refresh=fail)))
    assert answer == {"error": "the refresh failed: 'a defect'"} and caplog.records[0].exc_info is not None
