"""Layers changed under a mount: no harm without a refresh, the exact view with one, and by itself with lowers=live."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.support import tree
from tests.support.mounts import Layers, Mount, Mounts, our_program
from tests.unit.overlay.test_refresh import CHANGES, again, fill, replace
from tests.unit.overlay.world import put
from unionfs import state

#: What a stale view may answer.
CLEAN = {errno.ENOENT, errno.ESTALE, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ESPIPE, errno.EINVAL, errno.ENOTEMPTY, errno.EEXIST}


def layers_in(scratch: Path, *, writable: bool = True, cases: int = 1) -> Layers:
    """Two lowers, filled by tests.unit.overlay.test_refresh.fill; with *cases*, so many times over, in directories of their own."""
    top, base, upper, work = (scratch / name for name in ("top", "base", "upper", "work"))
    for path in (top, base, upper, work):
        path.mkdir()
    for case in range(cases):
        fill(*((top, base) if cases == 1 else (top / f"case{case}", base / f"case{case}")))
    return Layers((top, base), upper, work) if writable else Layers((top, base))


def change_everything(layers: Layers) -> None:
    """Every change there is, each to a case of its own."""
    for case, change in enumerate(CHANGES.values()):
        change(*(lower / f"case{case}" for lower in layers.lowers))


def refresh(mount: Mount, *path: str) -> None:
    done = subprocess.run([*our_program(), "refresh", str(mount.target), *path], capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def look_at_everything(mount: Mount) -> None:
    """As often as there is something; only clean errors."""
    for directory, directories, names in os.walk(mount.target, onerror=check):
        for name in (*directories, *names):
            path = Path(directory) / name
            try:
                if path.is_file() and not path.is_symlink():
                    path.read_bytes()
                os.listxattr(path, follow_symlinks=False)
            except OSError as exc:
                check(exc)


def check(exc: OSError) -> None:
    assert exc.errno in CLEAN, exc


def missing_names(mount: Mount, top: str = ".") -> None:
    """Have the kernel remember that these are not there."""
    for name in ("added", "renamed", "second", "alone/more", "alone/deep/more", "alone/deep/other", "empty/deep", "directory/x",
                 "file/in it"):
        assert not (mount.target / top / name).exists()


def fresh_view(mounts: Mounts, layers: Layers) -> tree.Snapshot:
    mount = mounts.ours(Layers(layers.lowers))
    found = tree.snapshot(mount.path)
    assert mount.unmount() == []
    return found


@pytest.mark.parametrize("live", [False, True], ids=["refreshed", "live"])
def test_the_view_becomes_that_of_a_fresh_mount(mounts: Mounts, scratch: Path, live: bool) -> None:
    layers = layers_in(scratch, writable=False, cases=len(CHANGES))
    mount = mounts.ours(layers, "-o", "lowers=live" if live else "lowers=static")
    tree.snapshot(mount.path)
    for case in range(len(CHANGES)):
        missing_names(mount, f"case{case}")
    change_everything(layers)
    if live:
        wait_for_view(mount, fresh_view(mounts, layers))
        return
    look_at_everything(mount)
    refresh(mount)
    assert tree.snapshot(mount.path) == fresh_view(mounts, layers)


def wait_for_view(mount: Mount, expected: tree.Snapshot, seconds: float = 2.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = tree.snapshot(mount.path)
        except OSError as exc:
            check(exc)
            found = {}
        if found == expected:
            return
        if time.monotonic() > deadline:
            assert found == expected
        time.sleep(0.05)


def test_a_stale_mount_can_be_written_to(mounts: Mounts, scratch: Path) -> None:
    """Undefined, as with the kernel's overlayfs, but without a hang, a traceback in the log, or EIO."""
    layers = layers_in(scratch, cases=len(CHANGES))
    mount = mounts.ours(layers)
    paths = [os.fsencode(mount.target) + b"/" + path for path in tree.snapshot(mount.path) if path != b"."]
    change_everything(layers)
    for path in paths:
        for verb in (lambda p: os.truncate(p, 3), lambda p: os.chmod(p, 0o700), lambda p: os.rename(p, p + b"-moved"),
                     lambda p: os.unlink(p + b"-moved"), os.mkdir):
            try:
                verb(path)
            except OSError as exc:
                check(exc)
    look_at_everything(mount)


def test_an_upper_changed_under_the_mount_does_no_harm(mounts: Mounts, scratch: Path) -> None:
    layers = layers_in(scratch)
    mount = mounts.ours(layers)
    upper = layers.upper
    assert upper is not None
    put(mount.target / "made" / "deep" / "file", b"made")
    (mount.target / "file").write_bytes(b"copied")
    os.link(mount.target / "file", mount.target / "link")
    with (mount.target / "made" / "deep" / "file").open("r+b") as held:
        shutil.rmtree(upper / "made")
        again(upper / "file", lambda path: path.mkdir())
        look_at_everything(mount)
        held.write(b"x")
        refresh(mount)
    assert not (mount.target / "made").exists() and list((mount.target / "file").iterdir()) == []
    put(mount.target / "made" / "again", b"x")
    assert (upper / "made" / "again").read_bytes() == b"x"


def test_who_has_a_file_open_goes_on_reading_it(mounts: Mounts, scratch: Path) -> None:
    layers = layers_in(scratch, writable=False)
    mount = mounts.ours(layers)
    with (mount.target / "big").open("rb") as held:
        assert held.read(10) == b"x" * 10
        replace(layers.lowers[1] / "big", b"y" * 10)
        refresh(mount)
        assert (mount.target / "big").read_bytes() == b"y" * 10
        held.seek(0)
        assert held.read() == b"x" * 100_000


def test_copying_up_what_vanished_is_a_clean_error(mounts: Mounts, scratch: Path) -> None:
    layers = layers_in(scratch)
    mount = mounts.ours(layers)
    tree.snapshot(mount.path)
    (layers.lowers[1] / "file").unlink()
    with pytest.raises(OSError) as caught, open(mount.target / "file", "r+b", buffering=0) as file:
        file.write(b"x")
    assert caught.value.errno in (errno.ENOENT, errno.ESTALE)
    assert layers.upper is not None and os.listdir(layers.upper) == []


def test_a_path_is_refreshed_alone(mounts: Mounts, scratch: Path) -> None:
    layers = layers_in(scratch, writable=False)
    mount = mounts.ours(layers)
    tree.snapshot(mount.path)
    missing_names(mount)
    put(layers.lowers[1] / "alone" / "more", b"1")
    put(layers.lowers[1] / "directory" / "x", b"2")
    refresh(mount, "alone/deep")
    assert (mount.target / "alone" / "more").read_bytes() == b"1" and not (mount.target / "directory" / "x").exists()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("live", [False, True], ids=["refreshed", "live"])
def test_readers_and_a_hundred_rewrites(mounts: Mounts, scratch: Path, live: bool) -> None:
    layers = layers_in(scratch)
    mount = mounts.ours(layers, "-o", "lowers=live") if live else mounts.ours(layers)
    base = layers.lowers[1]
    device = state.mount_of(mount.path)[0].device
    over = threading.Event()
    wrong: list[str] = []

    def read() -> None:
        while not over.is_set():
            try:
                for name in ("file", "big", "directory/base", "turning/1/2"):
                    (mount.target / name).read_bytes()
                look_at_everything(mount)
            except OSError as exc:
                if exc.errno not in CLEAN:
                    wrong.append(repr(exc))
            except AssertionError as exc:
                wrong.append(repr(exc))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for number in range(100):
            data = f"{number}\n".encode() * (1 + 997 * number % 5000)
            replace(base / "file", data)
            (base / "big").write_bytes(data)
            put(base / "turning" / str(number % 3) / "2", data)
            shutil.rmtree(base / "turning" / str((number + 1) % 3), ignore_errors=True)
            if not live:
                state.ask(device, {"cmd": "refresh"})
                assert (mount.target / "file").read_bytes() == data == (mount.target / "big").read_bytes()
                assert (mount.target / "turning" / str(number % 3) / "2").read_bytes() == data
            else:
                time.sleep(0.01)
    finally:
        over.set()
        for reader in readers:
            reader.join(60)
    assert wrong == []
    if live:
        wait_for_view(mount, fresh_view(mounts, layers))


def test_without_watches_the_view_is_right_in_two_seconds_and_a_line_says_so(mounts: Mounts, scratch: Path) -> None:
    """A layer on FUSE: nobody tells of what happens behind it."""
    layers = layers_in(scratch, writable=False)
    below = mounts.ours(Layers(layers.lowers), "-o", "timeout=0")
    mount = mounts.ours(Layers((below.target,)), "-o", "lowers=live")
    mount.expect_log("lowers=live: a layer lies on a filesystem that does not tell of its changes")
    tree.snapshot(mount.path)
    missing_names(mount)
    replace(layers.lowers[1] / "file", b"other")
    (layers.lowers[1] / "big").write_bytes(b"rewritten")
    put(layers.lowers[0] / "added", b"1")
    shutil.rmtree(layers.lowers[0] / "alone")
    refresh(below)
    wait_for_view(mount, tree.snapshot(below.path), 3.0)
    assert mount.log is not None and mount.log.read_text().count("WARNING") == 1
