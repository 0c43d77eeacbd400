"""`unionfs mount`, as its callers see it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.commands.program import Place, environment, flags, listed, make_layers, place, run, texts, wait_for
from tests.support import requirements, system
from tests.support.mounts import Layers, our_program
from tests.support.users import as_user

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(requirements.missing_for_fuse() is not None, reason=str(requirements.missing_for_fuse())),
]


@pytest.fixture
def layers(scratch: Path) -> Layers:
    return make_layers(scratch, lowers=2)


def test_the_command_returns_when_the_mount_answers(layers: Layers, mnt: Place) -> None:
    assert run("mount", *flags(layers), mnt.path).status == 0
    assert sorted(os.listdir(mnt.path)) == ["file", "only-lower0", "only-lower1"]
    assert (mnt.path / "file").read_text() == "in lower0\n"
    (mnt.path / "new").write_text("x")
    assert layers.upper is not None and (layers.upper / "new").read_text() == "x"


def test_the_same_by_options(layers: Layers, mnt: Place) -> None:
    assert run("mount", "-o", texts(layers) + ",,", mnt.path).status == 0
    assert (mnt.path / "file").read_text() == "in lower0\n"


def test_options_given_several_times_add_up(layers: Layers, mnt: Place) -> None:
    top, base = layers.lowers
    above = f"-oupperdir={layers.upper},workdir={layers.work}"
    assert run("mount", "-o", f"lowerdir+={top}", "-o", f"lowerdir+={base},,ro", above, mnt.path).status == 0
    assert sorted(os.listdir(mnt.path)) == ["file", "only-lower0", "only-lower1"]
    with pytest.raises(OSError, match="Read-only"):
        (mnt.path / "new").touch()


@pytest.mark.parametrize("name", [b"a:b", b"a,b", b"a\\b", b'a"b', b'"a"', b"a b", b"a\nb", b"\xff\xfe", b"a=b", "ünï".encode(), b"-o"])
def test_a_layer_may_have_any_name(scratch: Path, mnt: Place, name: bytes) -> None:
    where = os.path.join(os.fsencode(scratch), name)
    for directory in (where, where + b"/low", where + b"/up", where + b"/work"):
        os.mkdir(directory)
    os.mkdir(where + b"/low/inside")
    escaped = where.replace(b"\\", b"\\\\").replace(b":", b"\\:").replace(b",", b"\\,")
    option = b"lowerdir=%s/low,upperdir=%s/up,workdir=%s/work" % (escaped, escaped, escaped)
    assert run("mount", "-o", option, mnt.path).status == 0
    assert os.listdir(mnt.path) == ["inside"]
    assert listed(mnt.path)["lowers"] == [(where + b"/low").decode("utf-8", "surrogateescape")]
    assert run("umount", mnt.path).status == 0
    if b"," in name and b'"' not in name:
        quoted = b'lowerdir="%s/low",upperdir="%s/up",workdir="%s/work"' % (where, where, where)
        assert run("mount", "-o", quoted, mnt.path).status == 0
        assert run("umount", mnt.path).status == 0
    assert run("mount", "--lower", where + b"/low", "--upper", where + b"/up", "--work", where + b"/work", mnt.path).status == 0
    assert os.listdir(mnt.path) == ["inside"]


def test_the_target_may_have_any_name_too(scratch: Path, layers: Layers) -> None:
    with place(scratch, b"m\xff\n \\040") as mnt:
        assert run("mount", *flags(layers), mnt.path).status == 0
        assert listed(mnt.path)["state"] == "live"
        assert (mnt.path / "file").exists()
        assert run("umount", mnt.path).status == 0
        assert not mnt.is_mounted()


def test_paths_may_be_relative_and_symlinks(scratch: Path, layers: Layers, mnt: Place) -> None:
    for link, to in (("l", "lower0"), ("u", "upper"), ("w", "work"), ("m", "mnt")):
        (scratch / link).symlink_to(to)
    assert run("mount", "--lower", "./l", "--upper", "u", "--work", "../" + scratch.name + "/w", "m/", cwd=scratch).status == 0
    assert (mnt.path / "file").read_text() == "in lower0\n"
    found = listed(mnt.path)
    assert (found["lowers"], found["upper"]) == ([str(scratch / "lower0")], str(layers.upper))


def test_a_layer_may_be_named_by_an_inherited_descriptor(layers: Layers, mnt: Place) -> None:
    fd = os.open(layers.lowers[0], os.O_RDONLY)
    try:
        assert run("mount", "--lower", f"/proc/self/fd/{fd}", mnt.path, pass_fds=[fd]).status == 0
    finally:
        os.close(fd)
    assert (mnt.path / "file").read_text() == "in lower0\n"


def test_the_server_keeps_nothing_of_its_caller(layers: Layers, mnt: Place) -> None:
    reader, writer = os.pipe()
    assert run("mount", *flags(layers), mnt.path, pass_fds=[writer]).status == 0
    os.close(writer)
    assert os.read(reader, 1) == b""  # the end of file that podman waits for
    os.close(reader)
    server = mnt.server
    assert [os.readlink(f"/proc/{server}/fd/{fd}") for fd in (0, 1, 2)] == ["/dev/null"] * 3
    assert os.readlink(f"/proc/{server}/cwd") == "/"
    assert os.getsid(server) == server


def test_the_server_keeps_few_descriptors(layers: Layers, mnt: Place) -> None:
    assert run("mount", *flags(layers), mnt.path).status == 0
    assert len(os.listdir(f"/proc/{mnt.server}/fd")) < 30


def test_root_s_mount_is_for_all_users_with_suid_and_devices(layers: Layers, mnt: Place) -> None:
    (layers.lowers[0] / "node").touch()
    assert run("mount", *flags(layers), mnt.path).status == 0
    line = next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {mnt.path} " in line)
    assert " rw,relatime " in line and "allow_other" in line and " fuse.unionfs unionfs " in line
    assert as_user(lambda: (mnt.path / "file").read_text()) == "in lower0\n"


def test_flags_of_the_mount_are_set_when_asked_for(layers: Layers, mnt: Place) -> None:
    assert run("mount", *flags(layers), "-o", "nosuid,nodev,noexec,noatime,nosymfollow,fsname=a b", mnt.path).status == 0
    line = next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {mnt.path} " in line)
    assert " rw,nosuid,nodev,noexec,noatime,nosymfollow " in line
    assert " fuse.unionfs a\\040b " in line


@pytest.mark.parametrize("private", [False, True])
def test_a_private_mount_takes_no_part_in_propagation(scratch: Path, layers: Layers, mnt: Place, private: bool) -> None:
    system.mount(str(mnt.path), mnt.path, "none", 0x1000)  # MS_BIND
    system.mount("none", mnt.path, "none", 1 << 20)  # MS_SHARED
    target = mnt.path / "below"
    target.mkdir()
    try:
        assert run("mount", *flags(layers), *(["-o", "private"] if private else []), target).status == 0
        line = next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {target} " in line)
        assert ("shared:" in line) != private
    finally:
        run("umount", target)
        system.unmount(mnt.path)


def test_what_callers_commonly_write_is_taken_silently(layers: Layers, mnt: Place) -> None:
    common = "volatile,noacl,fsync=0,private,writeback=0,static_nlink,x-foo=1,comment=z,_netdev,nofail,default_permissions,timeout=5"
    done = run("mount", *flags(layers), "-o", common, "--engine=pyfuse3", mnt.path)
    assert (done.status, done.err) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_server_unmounts(layers: Layers, mnt: Place, number: signal.Signals) -> None:
    assert run("mount", *flags(layers), mnt.path).status == 0
    server = mnt.server
    os.kill(server, number)
    assert system.wait_until_gone(server, 10)
    assert not mnt.is_mounted()
    assert listed(mnt.path) == {}


@pytest.mark.parametrize("flag", ["-f", "-d"])
def test_in_the_foreground_it_stays_until_the_mount_is_gone(layers: Layers, mnt: Place, flag: str) -> None:
    command = [*our_program(), "mount", flag, *flags(layers), str(mnt.path)]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE) as server:
        wait_for(lambda: listed(mnt.path).get("state") == "live")
        assert (mnt.path / "file").read_text() == "in lower0\n"
        assert server.poll() is None
        assert run("umount", mnt.path).status == 0
        _, told = server.communicate(timeout=20)
        assert server.returncode == 0
        assert (b"DEBUG" in told) == (flag == "-d")


def test_in_the_foreground_control_c_unmounts(layers: Layers, mnt: Place) -> None:
    command = [*our_program(), "mount", "-f", *flags(layers), str(mnt.path)]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL) as server:
        wait_for(lambda: listed(mnt.path).get("state") == "live")
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 0
    assert not mnt.is_mounted()


def test_the_log_goes_where_the_option_or_the_environment_says(scratch: Path, layers: Layers, mnt: Place) -> None:
    assert run("mount", *flags(layers), "--log", "log file", mnt.path, cwd=scratch).status == 0
    os.kill(mnt.server, signal.SIGTERM)
    wait_for(lambda: not mnt.is_mounted())
    assert "stopping on signal 15" in (scratch / "log file").read_text()
    wait_for(lambda: listed(mnt.path) == {})
    assert run("mount", *flags(layers), mnt.path, env=environment(UNIONFS_LOG=str(scratch / "other"))).status == 0
    assert (scratch / "other").exists()


def test_an_empty_environment_suffices(layers: Layers, mnt: Place) -> None:
    program = our_program()
    env = {} if len(program) == 1 else {"PYTHONPATH": environment()["PYTHONPATH"]}
    assert run("mount", *flags(layers), mnt.path, env=env).status == 0
    assert (mnt.path / "file").exists()


def test_closed_standard_streams_do_no_harm(layers: Layers, mnt: Place) -> None:
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *our_program()]
    assert run("mount", *flags(layers), mnt.path, command=command).status == 0
    assert [os.readlink(f"/proc/{mnt.server}/fd/{fd}") for fd in (0, 1, 2)] == ["/dev/null"] * 3


def test_five_hundred_layers_and_a_copy_up_from_each(scratch: Path, mnt: Place) -> None:
    lowers = []
    for number in range(500):
        lower = scratch / "many" / str(number)
        lower.mkdir(parents=True)
        (lower / f"file{number}").touch()
        (lower / "top").write_text(str(number))
        lowers.append(str(lower))
    command = ["sh", "-c", 'ulimit -n 1024; exec "$@"', "sh", *our_program()]
    upper, work = scratch / "many" / "upper", scratch / "many" / "work"
    for directory in (upper, work):
        directory.mkdir()
    options = f"lowerdir={':'.join(lowers)},upperdir={upper},workdir={work},volatile"
    assert run("mount", "-o", options, mnt.path, command=command).status == 0
    assert len(os.listdir(mnt.path)) == 501
    assert (mnt.path / "top").read_text() == "0"
    for number in range(500):
        (mnt.path / f"file{number}").chmod(0o600)
    assert len(os.listdir(upper)) == 500


def test_without_an_upper_the_mount_is_read_only(layers: Layers, mnt: Place) -> None:
    assert run("mount", *flags(Layers(layers.lowers)), mnt.path).status == 0
    with pytest.raises(OSError, match="Read-only"):
        (mnt.path / "file").write_text("x")


def test_a_mount_over_its_own_lower_and_upper(scratch: Path, layers: Layers) -> None:
    lower = layers.lowers[0]
    found = Place(lower)
    assert run("mount", *flags(layers), lower).status == 0
    try:
        (lower / "file").write_text("changed")
        assert layers.upper is not None and (layers.upper / "file").read_text() == "changed"
    finally:
        assert run("umount", lower).status == 0
    assert not found.is_mounted()
    assert (lower / "file").read_text() == "in lower0\n"


def test_with_static_nlink_every_directory_shows_one_link(layers: Layers, mnt: Place) -> None:
    assert layers.upper is not None
    (layers.upper / "directory" / "inside").mkdir(parents=True)
    assert run("mount", "-o", texts(layers) + ",static_nlink", mnt.path).status == 0
    assert (mnt.path / "directory").stat().st_nlink == 1
