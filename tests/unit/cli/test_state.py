"""The registry of live mounts, without mounts."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.users import in_child
from unionfs import state
from unionfs.errors import MountError
from unionfs.linux import mounts
from unionfs.linux.mounts import MountInfo
from unionfs.state import Record, Registration

RECORD = Record(
    "0:77", os.getpid(), b"/mnt/\xff\n", (b"/top", b"/base\xfe"), b"/upper", b"/work", "rw", 12.5, ((1, 2), (1, 3)),
    data_lowers=(b"/data\xfd",),
)  # fmt: skip


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only registry there is for the test."""
    path = tmp_path / "registry"
    monkeypatch.setattr(state, "directories", lambda: [os.fsencode(path)])
    return path


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch) -> list[MountInfo]:
    """What mountinfo says during the test."""
    found: list[MountInfo] = []
    monkeypatch.setattr(mounts, "mountinfo", lambda pid="self": list(found))
    return found


def info(device: str = "0:77", target: bytes = b"/mnt/\xff\n", fstype: str = state.FSTYPE) -> MountInfo:
    return MountInfo(1, 0, device, b"/", target, ("rw",), fstype, b"unionfs", ("rw",))


@pytest.fixture
def server(registry: Path) -> Iterator[Registration]:
    """A registration whose server lives."""
    registration = Registration(os.fsencode(registry))
    yield registration
    registration.remove()


def dead_server(registry: Path, record: Record) -> None:
    """Publish *record* from a process that then dies without a word."""

    def publish() -> None:
        registration = Registration(os.fsencode(registry))
        registration.publish(record)

    in_child(publish)


@pytest.mark.parametrize(
    ("uid", "uid_map", "outside"),
    [
        (0, "         0          0 4294967295\n", 0),
        (1000, "         0          0 4294967295\n", 1000),
        (0, "         0       1000          1\n", 1000),
        (5, "         0       1000          1\n         1     100000      65536\n", 100004),
        (65534, "", 65534),
    ],
)
def test_users_of_namespaces_are_told_apart_by_who_they_are_outside(uid: int, uid_map: str, outside: int) -> None:
    assert state.uid_outside(uid, uid_map) == outside


def test_the_registry_of_an_ordinary_user_bears_his_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    assert state.directories() == [b"/run/user/1234/unionfs", b"/tmp/unionfs-1234"]


def test_what_a_server_publishes_is_found_whatever_bytes_its_paths_hold(server: Registration) -> None:
    server.publish(RECORD)
    found = state.find(info())
    assert found is not None and found.record == RECORD and found.alive
    found.close()


def test_a_record_is_readable_json_for_others(registry: Path, server: Registration) -> None:
    server.publish(RECORD)
    text = (registry / "0:77.json").read_text("ascii")
    assert json.loads(text)["upper"] == "/upper"
    assert json.loads(text)["lowers"][1].encode("utf-8", "surrogateescape") == b"/base\xfe"


def test_a_mount_from_before_data_only_layers_were_recorded_is_known(registry: Path, server: Registration) -> None:
    server.publish(RECORD)
    path = registry / "0:77.json"
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != "data_lowers"}))
    ((record, alive),) = state.records()
    assert alive and record.lowers == RECORD.lowers and record.data_lowers == ()


def test_only_its_owner_can_enter_the_registry(registry: Path, server: Registration) -> None:
    server.publish(RECORD)
    assert registry.stat().st_mode & 0o777 == 0o700
    assert (registry / "0:77.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="giving a directory away needs root")
def test_a_registry_of_somebody_else_or_open_to_others_is_not_used(registry: Path) -> None:
    registry.mkdir(mode=0o700)
    registry.chmod(0o777)
    with pytest.raises(PermissionError):
        Registration(os.fsencode(registry))
    registry.chmod(0o700)
    os.chown(registry, 1000, 1000)
    with pytest.raises(PermissionError):
        Registration(os.fsencode(registry))
    assert Registration.somewhere() is None


def test_nothing_is_left_when_a_server_ends(registry: Path) -> None:
    registration = Registration(os.fsencode(registry))
    registration.publish(RECORD)
    registration.remove()
    assert list(registry.iterdir()) == []
    assert state.find(info()) is None


def test_nothing_is_left_when_a_server_fails_before_it_publishes(registry: Path) -> None:
    Registration(os.fsencode(registry)).remove()
    assert list(registry.iterdir()) == []


def test_a_killed_server_is_dead_and_its_record_goes_with_its_mount(registry: Path, mounted: list[MountInfo]) -> None:
    dead_server(registry, RECORD)
    mounted.append(info())
    assert state.records() == [(RECORD, False)]
    assert [mount.state for mount in state.all_mounts()] == ["dead"]
    mounted.clear()
    assert state.records() == []
    assert list(registry.iterdir()) == []


def test_a_new_mount_with_a_number_used_before_replaces_the_old_record(registry: Path, server: Registration) -> None:
    dead_server(registry, RECORD)
    server.publish(Record("0:77", 1, b"/other", (b"/l",), None, None, "ro", 13.0))
    found = state.find(info(target=b"/other"))
    assert found is not None and found.alive and found.record.target == b"/other"
    found.close()


def test_a_server_that_ends_late_leaves_its_successor_s_record_alone(registry: Path, server: Registration) -> None:
    late = Registration(os.fsencode(registry))
    late.publish(RECORD)
    successor = Record("0:77", 1, b"/other", (b"/l",), None, None, "ro", 13.0)
    server.publish(successor)
    late.remove()
    found = state.find(info())
    assert found is not None and found.record == successor
    found.close()


def test_a_number_given_to_another_mount_does_not_bring_a_dead_one_back(registry: Path, mounted: list[MountInfo]) -> None:
    dead_server(registry, RECORD)
    mounted += [info(target=RECORD.target, fstype="tmpfs"), info(target=b"/another")]
    assert state.find(mounted[0]) is None and state.find(mounted[1]) is None
    assert [(mount.target, mount.state) for mount in state.all_mounts()] == [(b"/another", "unknown")]
    assert list(registry.iterdir()) == []


def test_half_a_record_left_by_a_kill_is_swept_away(registry: Path, mounted: list[MountInfo]) -> None:
    registry.mkdir(mode=0o700)
    (registry / "0:5.json").write_text('{"pid": 1, "tar')
    assert state.records() == []
    assert list(registry.iterdir()) == []


def test_the_socket_of_a_server_killed_before_it_published_is_swept_away(registry: Path, server: Registration) -> None:
    in_child(lambda: Registration(os.fsencode(registry)) and None)
    assert len(list(registry.iterdir())) == 2
    state.records()
    assert len(list(registry.iterdir())) == 1  # that of the living one stays


def test_waiting_for_a_server_ends_with_it_or_in_time(server: Registration) -> None:
    server.publish(RECORD)
    found = state.find(info())
    assert found is not None
    assert not found.wait_until_gone(0.05)
    timer = threading.Timer(0.05, server.remove)
    timer.start()
    assert found.wait_until_gone(5)
    timer.join()
    found.close()


def test_mounts_of_others_are_shown_as_unknown_and_foreign_ones_not_at_all(registry: Path, mounted: list[MountInfo]) -> None:
    mounted += [info("0:1", b"/b"), info("0:2", b"/c", "ext4"), info("0:3", b"/a")]
    assert [(mount.target, mount.state) for mount in state.all_mounts()] == [(b"/a", "unknown"), (b"/b", "unknown")]


def test_a_live_server_whose_mount_is_not_to_be_seen_is_elsewhere(server: Registration, mounted: list[MountInfo]) -> None:
    server.publish(RECORD)
    assert [(mount.target, mount.state) for mount in state.all_mounts()] == [(RECORD.target, "elsewhere")]


def test_an_upper_is_mounted_while_its_server_lives_and_its_mount_is_there(server: Registration, mounted: list[MountInfo]) -> None:
    server.publish(RECORD)
    assert not state.is_mounted([(1, 2)])
    mounted.append(info())
    assert state.is_mounted([(1, 2)])
    assert state.is_mounted([(9, 9), (1, 3)])  # its work directory counts as well
    assert not state.is_mounted([(1, 4)])


def test_a_question_is_answered_over_the_control_socket(server: Registration) -> None:
    server.publish(RECORD)

    def answer() -> None:
        connection, _ = server.control.accept()
        with connection, connection.makefile("rb") as stream:
            asked = json.loads(stream.readline())
            connection.sendall(json.dumps({"you asked": asked}).encode() + b"\n")

    thread = threading.Thread(target=answer)
    thread.start()
    assert state.ask("0:77", {"cmd": "stats"}) == {"you asked": {"cmd": "stats"}}
    thread.join()


def test_a_path_too_long_for_a_socket_address_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    monkeypatch.setattr(state, "directories", lambda: [os.fsencode(deep / "registry")])
    registration = Registration(os.fsencode(deep / "registry"))
    registration.publish(RECORD)
    assert registration.control.family == socket.AF_UNIX
    registration.remove()


def test_a_server_that_is_gone_cannot_be_asked(registry: Path) -> None:
    dead_server(registry, RECORD)
    with pytest.raises(MountError, match="is dead"):
        state.ask("0:77", {"cmd": "stats"})
    with pytest.raises(MountError, match="no control socket"):
        state.ask("0:78", {"cmd": "stats"})


def test_a_path_is_located_through_symlinks_dots_and_slashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = os.fsencode(tmp_path.resolve())
    (tmp_path / "real" / "mnt").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/mnt")
    (tmp_path / "again").symlink_to("link")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path / "real")
    want = base + b"/real/mnt"
    for path in (b"mnt", b"mnt/", b"./mnt", b"../link", b"../again/", b"../link/../mnt", want, b"../real//mnt//", b"mnt/."):
        assert state.locate(path) == want
    assert state.locate(b".") == base + b"/real"
    assert state.locate(b"/") == b"/"
    assert state.locate(b"absent") == base + b"/real/absent"
    assert state.locate(b"../loop") == base + b"/loop"
