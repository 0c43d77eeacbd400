"""Crashes, full disks, few descriptors, mounts in quick succession: nothing may be lost or left."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support import system
from tests.support.mounts import REPOSITORY, Layers, MountFailed, Mounts, our_program
from tests.support.users import in_child

MEGABYTE = 1 << 20


def stack_in(place: Path) -> Layers:
    """One lower, an upper and a work directory, all empty."""
    for name in ("lower", "upper", "work"):
        (place / name).mkdir(mode=0o755)
    return Layers((place / "lower",), place / "upper", place / "work")


def upper_of(layers: Layers) -> Path:
    assert layers.upper is not None
    return layers.upper


def work_of(layers: Layers) -> Path:
    assert layers.work is not None
    return layers.work


def random_file(path: Path, megabytes: int) -> str:
    """Make it; its hash."""
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for _ in range(megabytes):
            block = os.urandom(MEGABYTE)
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def hash_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- crashes ----

def _append_in_background(path: Path) -> int:
    """A child that triggers the copy-up; its pid. It ends by itself when the mount is gone."""
    if (pid := os.fork()) == 0:
        try:
            with open(path, "ab") as file:
                file.write(b"x")
        finally:
            os._exit(0)
    return pid


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.03, 0.08])
def test_a_server_killed_during_copy_up_leaves_the_old_file_or_the_complete_new_one(
        mounts: Mounts, scratch: Path, delay: float) -> None:
    layers = stack_in(scratch)
    old = random_file(layers.lowers[0] / "big", 64)
    mount = mounts.ours(layers)
    child = _append_in_background(mount.target / "big")
    time.sleep(delay)
    mount.kill_server()
    os.waitpid(child, 0)
    mount.unmount()
    copied = upper_of(layers) / "big"
    if copied.exists():
        with open(copied, "rb") as file:
            assert hashlib.sha256(file.read(64 * MEGABYTE)).hexdigest() == old
            assert file.read() in (b"", b"x")
    again = mounts.ours(layers)
    with open(again.target / "big", "rb") as file:
        assert hashlib.sha256(file.read(64 * MEGABYTE)).hexdigest() == old
    assert os.listdir(work_of(layers) / "work") == []  # what the crash left is gone
    assert hash_of(layers.lowers[0] / "big") == old


def test_after_a_crash_all_that_was_changed_before_is_there(mounts: Mounts, scratch: Path) -> None:
    layers = stack_in(scratch)
    for name in ("a", "b", "c"):
        (layers.lowers[0] / name).write_text(name)
    mount = mounts.ours(layers)
    (mount.target / "a").write_text("changed")
    os.unlink(mount.target / "b")
    os.rename(mount.target / "c", mount.target / "d")
    mount.kill_server()
    mount.unmount()
    again = mounts.ours(layers)
    assert sorted(os.listdir(again.target)) == ["a", "d"]
    assert (again.target / "a").read_text() == "changed" and (again.target / "d").read_text() == "c"


def test_a_mount_cleans_its_work_directory_and_keeps_other_names(mounts: Mounts, scratch: Path) -> None:
    layers = stack_in(scratch)
    work = work_of(layers)
    (work / "work" / "#left" / "deep").mkdir(parents=True)
    (work / "work" / "#left" / "deep" / "file").write_text("of a crash")
    os.mknod(work / "work" / "#1", 0o020000, os.makedev(0, 0))
    (work / "index").mkdir()
    (work / "index" / "00fb").write_text("of the kernel")
    (work / "other").write_text("of somebody")
    mounts.ours(layers)
    assert os.listdir(work / "work") == []
    assert (work / "index" / "00fb").read_text() == "of the kernel" and (work / "other").read_text() == "of somebody"


def test_anything_in_incompat_refuses_the_mount_and_is_named(mounts: Mounts, scratch: Path) -> None:
    layers = stack_in(scratch)
    dirty = work_of(layers) / "work" / "incompat" / "volatile"
    dirty.mkdir(parents=True)
    with pytest.raises(MountFailed) as caught:
        mounts.ours(layers)
    assert str(dirty) in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert dirty.exists()
    dirty.rmdir()
    mounts.ours(layers)


def test_a_work_directory_the_kernel_used_is_taken_over_and_given_back(mounts: Mounts, scratch: Path) -> None:
    layers = stack_in(scratch)
    (layers.lowers[0] / "file").write_text("lower")
    first = mounts.kernel(layers, options="index=on,redirect_dir=off,metacopy=off,xino=off")
    (first.target / "file").write_text("by the kernel")
    assert not first.unmount()
    second = mounts.ours(layers)
    assert (second.target / "file").read_text() == "by the kernel"
    (second.target / "file").write_text("by us")
    assert not second.unmount()
    third = mounts.kernel(layers)
    assert (third.target / "file").read_text() == "by us"


# ---- who uses an upper ----

def test_an_upper_in_use_is_refused_and_the_live_mount_goes_on(mounts: Mounts, scratch: Path) -> None:
    layers = stack_in(scratch)
    mount = mounts.ours(layers)
    with pytest.raises(MountFailed) as caught:
        mounts.ours(layers)
    assert str(upper_of(layers)) in str(caught.value) and len(str(caught.value).splitlines()) == 1
    (scratch / "other").mkdir()
    with pytest.raises(MountFailed):
        mounts.ours(Layers(layers.lowers, upper_of(layers), scratch / "other"))
    (mount.target / "file").write_text("still alive")
    assert (upper_of(layers) / "file").read_text() == "still alive"


@pytest.mark.timeout(180)
def test_two_hundred_rounds_of_mount_and_umount_need_no_sleep(scratch: Path, mounts: Mounts) -> None:
    layers = stack_in(scratch)
    target = scratch / "mnt"
    target.mkdir()
    command = [*our_program(), "mount", "--log", str(scratch / "log"), "--lower", str(layers.lowers[0]),
               "--upper", str(layers.upper), "--work", str(layers.work), str(target)]
    for number in range(200):
        done = subprocess.run(command, check=False, timeout=30, cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, f"round {number}: {done.stderr}"
        (target / f"file{number}").write_text("x")
        system.unmount(target)
    assert len(os.listdir(upper_of(layers))) == 200
    log = scratch / "log"
    assert not log.exists() or "ERROR" not in log.read_text()


def test_a_mount_point_is_free_again_right_after_the_unmount(mounts: Mounts, scratch: Path) -> None:
    layers = stack_in(scratch)
    for _ in range(3):
        mount = mounts.ours(layers, target=scratch / "lower")
        assert not mount.unmount()
    assert system.mounted_at(scratch / "lower") is None


# ---- limits ----

@pytest.mark.timeout(120)
def test_three_thousand_files_unlinked_while_open_need_few_descriptors(mounts: Mounts, scratch: Path) -> None:
    layers = stack_in(scratch)
    for number in range(1500):
        (layers.lowers[0] / f"old{number}").write_bytes(b"%d" % number)
    mount = mounts.ours(layers, prefix=["prlimit", "--nofile=1024:1024"])
    for server in mount.servers:
        limits = Path(f"/proc/{server}/limits").read_text()
        assert int(limits.split("Max open files")[1].split()[0]) <= 1024

    def unlink_while_open() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        opened = []
        for number in range(1500):
            opened.append((os.open(mount.target / f"old{number}", os.O_RDONLY), b"%d" % number))
            (mount.target / f"new{number}").write_bytes(b"n%d" % number)
            opened.append((os.open(mount.target / f"new{number}", os.O_RDWR), b"n%d" % number))
        for number in range(1500):
            os.unlink(mount.target / f"old{number}")
            os.unlink(mount.target / f"new{number}")
        assert os.listdir(mount.target) == []
        for fd, content in opened:
            assert os.pread(fd, 100, 0) == content and os.fstat(fd).st_nlink == 0
        for fd, _ in opened[1::2]:
            os.pwrite(fd, b"!", 0)
            assert os.pread(fd, 1, 0) == b"!"
        for fd, _ in opened:
            os.close(fd)

    in_child(unlink_while_open)
    (mount.target / "after").write_text("x")
    _wait_for_an_empty(work_of(layers) / "work")


def _wait_for_an_empty(directory: Path) -> None:
    """FORGET comes a moment after the last close."""
    deadline = time.monotonic() + 10
    while os.listdir(directory) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert os.listdir(directory) == []


def test_a_full_disk_leaves_the_old_file(mounts: Mounts, scratch: Path) -> None:
    (scratch / "small").mkdir()
    (scratch / "lower").mkdir()
    system.mount("none", scratch / "small", "tmpfs", data="size=4m")
    try:
        for name in ("upper", "work"):
            (scratch / "small" / name).mkdir()
        old = random_file(scratch / "lower" / "big", 8)
        (scratch / "lower" / "little").write_text("little")
        layers = Layers((scratch / "lower",), scratch / "small" / "upper", scratch / "small" / "work")
        mount = mounts.ours(layers)
        with pytest.raises(OSError) as caught, open(mount.target / "big", "ab", buffering=0) as file:
            file.write(b"x")
        assert caught.value.errno == errno.ENOSPC
        assert hash_of(mount.target / "big") == old and not (upper_of(layers) / "big").exists()
        assert os.listdir(work_of(layers) / "work") == []
        (mount.target / "little").write_text("there is room for this")
        assert (upper_of(layers) / "little").read_text() == "there is room for this"
        assert not mount.unmount()
    finally:
        system.unmount(scratch / "small", system.MNT_DETACH)


def test_other_requests_are_answered_during_a_long_copy_up(mounts: Mounts, scratch: Path) -> None:
    layers = stack_in(scratch)
    random_file(layers.lowers[0] / "big", 200)
    (layers.lowers[0] / "little").write_text("little")
    mount = mounts.ours(layers)
    started = time.monotonic()
    child = _append_in_background(mount.target / "big")
    slowest = 0.0
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        before = time.monotonic()
        os.listdir(mount.target)
        assert (mount.target / "little").read_text() == "little"
        slowest = max(slowest, time.monotonic() - before)
    took = time.monotonic() - started
    assert slowest < max(0.1, took / 2), f"a look-up waited {slowest:.3f} s of a copy-up of {took:.3f} s"


def test_a_stopped_server_is_ended_by_terminate(mounts: Mounts, scratch: Path) -> None:
    mount = mounts.ours(stack_in(scratch))
    (mount.target / "file").write_text("x")
    for pid in mount.servers:
        os.kill(pid, signal.SIGTERM)
        assert system.wait_until_gone(pid, 10)
    assert system.mounted_at(mount.target) is None
