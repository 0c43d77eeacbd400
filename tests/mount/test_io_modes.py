"""The three ways the kernel may keep data (io=cached, writeback, passthrough): all must show what a plain directory and overlayfs show."""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import random
import stat
import subprocess
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import chattr, requirements, tree
from tests.support.mounts import REPOSITORY, Layers, Mount, Mounts, our_program
from tests.support.users import as_user

pytestmark = [
    *(pytest.mark.root, pytest.mark.fuse, pytest.mark.overlayfs),
    pytest.mark.skipif(requirements.missing_for_overlayfs() is not None, reason=str(requirements.missing_for_overlayfs())),
]

MODES = ("cached", "writeback", "passthrough")
SIDES = ("plain", "kernel", *MODES)
PAGE = mmap.PAGESIZE
BODY = bytes(range(256)) * 79  # 20,224 bytes, no whole pages

SEED = int(os.environ.get("UNIONFS_SEED", "1"))
SECONDS = float(os.environ.get("UNIONFS_SECONDS", "4"))


@dataclass
class Side:
    """``top``: where it is seen. ``place``: the layer its files are in to begin with."""

    name: str
    top: Path
    place: str
    mount: Mount | None = None

    def __truediv__(self, name: str) -> Path:
        return self.top / name

    def requests(self) -> dict[str, int]:
        assert self.mount is not None
        done = subprocess.run([*our_program(), "stats", "--json", str(self.mount.target)], cwd=REPOSITORY, capture_output=True,
                              text=True, timeout=20, check=True)
        found: dict[str, int] = json.loads(done.stdout)["requests"]
        return found


def _layers(scratch: Path) -> Layers:
    for name in ("lower", "upper", "work"):
        (scratch / name).mkdir()
    return Layers((scratch / "lower",), scratch / "upper", scratch / "work")


def _furnish(place: Path) -> None:
    for name in ("file", "other", "mapped"):
        (place / name).write_bytes(BODY)
    (place / "log").write_bytes(b"")
    (place / "suid").write_bytes(BODY)
    (place / "suid").chmod(0o6777)


@pytest.fixture(params=[f"{name}-{place}" for name in SIDES for place in ("lower", "upper") if (name, place) != ("plain", "lower")])
def side(request: pytest.FixtureRequest, scratch: Path, mounts: Mounts) -> Side:
    name, _, place = request.param.partition("-")
    layers = _layers(scratch)
    assert layers.upper is not None
    _furnish(scratch / place)
    if name == "plain":
        return Side(name, layers.upper, place)
    mount = mounts.kernel(layers) if name == "kernel" else mounts.ours(layers, "-o", f"io={name}")
    return Side(name, mount.target, place, mount)


# ---- one descriptor and another -----------------------------------------------------------------------------------------

def test_a_mapping_and_writes_see_each_other(side: Side) -> None:
    fd = os.open(side / "mapped", os.O_RDWR)
    with mmap.mmap(fd, len(BODY)) as mapped:
        os.pwrite(fd, b"WRITTEN", 5000)
        assert mapped[5000:5007] == b"WRITTEN"
        mapped[9000:9006] = b"STORED"
        assert os.pread(fd, 6, 9000) == b"STORED"
        with open(side / "mapped", "rb") as other:
            assert other.read()[9000:9006] == b"STORED"
    os.close(fd)
    expected = bytearray(BODY)
    expected[5000:5007], expected[9000:9006] = b"WRITTEN", b"STORED"
    assert (side / "mapped").read_bytes() == expected


def test_a_store_into_a_mapping_changes_the_time(side: Side) -> None:
    os.utime(side / "mapped", ns=(10**18, 10**18))
    fd = os.open(side / "mapped", os.O_RDWR)
    os.fstat(fd)
    with mmap.mmap(fd, PAGE) as mapped:
        os.close(fd)
        mapped[0:3] = b"new"
        mapped.flush()
        assert os.stat(side / "mapped").st_mtime_ns > 10**18


def test_truncation_by_an_open_is_seen_by_who_has_the_file_open(side: Side) -> None:
    fd = os.open(side / "file", os.O_RDWR)
    os.close(os.open(side / "file", os.O_WRONLY | os.O_TRUNC))
    assert os.fstat(fd).st_size == 0 and os.pread(fd, 10, 0) == b""
    with open(side / "file", "wb") as file:
        file.write(b"new")
    assert os.fstat(fd).st_size == 3 and os.pread(fd, 10, 0) == b"new"
    os.close(fd)


def test_truncation_by_path_and_growth_leave_zeros(side: Side) -> None:
    fd = os.open(side / "file", os.O_RDWR)
    os.truncate(side / "file", 5000)
    assert os.fstat(fd).st_size == 5000 and os.pread(fd, 10, 4998) == BODY[4998:5000]
    os.pwrite(fd, b"end", 9000)
    os.close(fd)
    assert (side / "file").read_bytes() == BODY[:5000] + bytes(4000) + b"end"


def test_the_end_of_the_file_is_where_others_have_put_it(side: Side) -> None:
    reader = os.open(side / "file", os.O_RDWR)
    with open(side / "file", "ab") as file:
        file.write(b"more")
    assert os.lseek(reader, 0, os.SEEK_END) == len(BODY) + 4
    assert os.pread(reader, 10, len(BODY)) == b"more"
    os.close(reader)


def test_appends_by_two_lose_nothing(side: Side) -> None:
    lines = 400

    def append(who: bytes) -> None:
        fd = os.open(side / "log", os.O_WRONLY | os.O_APPEND)
        for number in range(lines):
            os.write(fd, b"%s %d\n" % (who, number))
        os.close(fd)

    child = os.fork()
    if not child:
        try:
            append(b"child")
            os._exit(0)
        finally:
            os._exit(1)
    append(b"parent")
    assert os.waitpid(child, 0)[1] == 0
    found = (side / "log").read_bytes().splitlines()
    assert sorted(found) == sorted(b"%s %d" % (who, number) for who in (b"parent", b"child") for number in range(lines))


def test_an_unlinked_file_goes_on_for_who_has_it_open(side: Side) -> None:
    fd = os.open(side / "file", os.O_RDWR)
    os.unlink(side / "file")
    (side / "file").write_bytes(b"another")
    os.pwrite(fd, b"CHANGED", 100)
    os.ftruncate(fd, 200)
    os.fsync(fd)
    assert os.fstat(fd).st_nlink == 0 and os.fstat(fd).st_size == 200
    assert os.pread(fd, 300, 0) == BODY[:100] + b"CHANGED" + BODY[107:200]
    os.close(fd)
    assert (side / "file").read_bytes() == b"another"


def test_a_file_that_another_replaced_goes_on_for_who_has_it_open(side: Side) -> None:
    fd = os.open(side / "file", os.O_RDWR)
    os.pwrite(fd, b"OLD", 0)
    os.truncate(side / "other", 10)
    os.rename(side / "other", side / "file")
    os.pwrite(fd, b"CHANGED", 100)
    assert os.pread(fd, 110, 0)[:3] == b"OLD" and os.pread(fd, 7, 100) == b"CHANGED"
    assert (side / "file").read_bytes() == BODY[:10]
    os.close(fd)


def test_an_open_reader_and_copying_up(side: Side) -> None:
    """The data seen through the old descriptor of a lower's file are the old ones with passthrough, else the new ones; all else is new."""
    reader = os.open(side / "file", os.O_RDONLY)
    assert os.pread(reader, 4, 0) == BODY[:4]
    with open(side / "file", "r+b") as file:
        file.write(b"NEW!")
        file.truncate(6000)
    expected = b"NEW!" + BODY[4:6000]
    assert (side / "file").read_bytes() == expected
    kept = side.name == "passthrough" and side.place == "lower"
    assert os.pread(reader, len(BODY), 0) == (BODY if kept else expected)
    assert os.fstat(reader).st_size == 6000
    os.fchmod(reader, 0o640)
    assert stat.S_IMODE(os.stat(side / "file").st_mode) == 0o640
    assert os.path.sameopenfile(reader, (again := os.open(side / "file", os.O_RDONLY)))
    for fd in (reader, again):
        os.close(fd)


def test_a_name_more_is_the_same_file(side: Side) -> None:
    fd = os.open(side / "file", os.O_RDONLY)
    os.link(side / "file", side / "too")
    for name in ("file", "too", "file"):
        with open(side / name, "r+b") as file:
            file.seek(0, os.SEEK_END)
            file.write(b"+")
    assert (side / "file").read_bytes() == (side / "too").read_bytes() == BODY + b"+++"
    assert os.path.samefile(side / "file", side / "too") and os.fstat(fd).st_nlink == 2
    os.close(fd)


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND])
def test_a_users_write_takes_suid_away_and_roots_does_not(side: Side, flags: int) -> None:
    def write() -> None:
        fd = os.open(side / "suid", flags)
        os.write(fd, b"x")
        os.close(fd)

    write()
    assert stat.S_IMODE(os.stat(side / "suid").st_mode) == 0o6777
    as_user(write)
    assert stat.S_IMODE(os.stat(side / "suid").st_mode) == 0o777


def test_suid_that_comes_while_a_user_has_the_file_open_goes_with_his_next_write(side: Side) -> None:
    (side / "file").chmod(0o666)
    fd = os.open(side / "file", os.O_WRONLY)

    def write() -> None:
        os.write(fd, b"x")

    as_user(write)
    (side / "file").chmod(0o4777)
    as_user(write)
    os.close(fd)
    assert stat.S_IMODE(os.stat(side / "file").st_mode) == 0o777


def test_direct_reads_and_writes_meet_the_others(side: Side) -> None:
    fd = os.open(side / "mapped", os.O_RDWR | os.O_DIRECT)
    buffer = mmap.mmap(-1, PAGE)
    buffer[:] = b"d" * PAGE
    assert os.pwritev(fd, [buffer], PAGE) == PAGE
    assert (side / "mapped").read_bytes() == BODY[:PAGE] + b"d" * PAGE + BODY[2 * PAGE :]
    with open(side / "mapped", "r+b") as file:
        file.write(b"CACHED")
        file.flush()
        assert os.preadv(fd, [buffer], 0) == PAGE and buffer[:6] == b"CACHED"
    os.close(fd)


def test_what_was_written_is_on_disk_after_fsync(side: Side, scratch: Path) -> None:
    fd = os.open(side / "file", os.O_WRONLY)
    os.pwrite(fd, b"synced", 3)
    os.fsync(fd)
    assert (scratch / "upper" / "file").read_bytes()[:9] == BODY[:3] + b"synced"
    os.close(fd)


# ---- each mode keeps its word -------------------------------------------------------------------------------------------

def test_with_passthrough_no_data_comes_to_the_server(scratch: Path, mounts: Mounts) -> None:
    layers = _layers(scratch)
    _furnish(scratch / "lower")
    mount = mounts.ours(layers, "-o", "io=passthrough")
    side = Side("passthrough", mount.target, "lower", mount)
    (side / "file").read_bytes()
    (side / "file").write_bytes(b"short")
    (side / "new").write_bytes(BODY)
    with open(side / "other", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0:3] = b"new"
    requests = side.requests()
    assert "read" not in requests and "write" not in requests and "setattr" not in requests
    assert requests["open"] == 3 and requests["create"] == 1
    assert requests["flush"] == 1 and requests["release"] == 4
    assert (scratch / "upper" / "new").read_bytes() == BODY and (scratch / "upper" / "file").read_bytes() == b"short"


def test_without_passthrough_opening_is_no_request(scratch: Path, mounts: Mounts) -> None:
    layers = _layers(scratch)
    _furnish(scratch / "lower")
    for mode in ("cached", "writeback"):
        mount = mounts.ours(layers, "-o", f"io={mode}")
        side = Side(mode, mount.target, "lower", mount)
        for _ in range(5):
            (side / "file").read_bytes()
        assert side.requests()["open"] == 1
        assert mount.unmount() == []


@pytest.mark.parametrize("mode", MODES)
def test_only_with_passthrough_two_mounts_of_a_file_share_its_pages(scratch: Path, mounts: Mounts, mode: str) -> None:
    pages = 256
    (scratch / "upper").mkdir()
    (scratch / "upper" / "big").write_bytes(os.urandom(pages * PAGE))
    tops = []
    for number in range(2):
        above = scratch / f"above{number}"
        for name in ("upper", "work"):
            (above / name).mkdir(parents=True)
        tops.append(mounts.ours(Layers((scratch / "upper",), above / "upper", above / "work"), "-o", f"io={mode}").target)
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1")
    first = (tops[0] / "big").read_bytes()
    fd = os.open(tops[1] / "big", os.O_RDONLY)
    found = _resident(fd, pages)
    assert os.pread(fd, len(first), 0) == first
    os.close(fd)
    assert found == (pages if mode == "passthrough" else 0)


def _resident(fd: int, pages: int) -> int:
    """How many of the first *pages* of a file are in memory, as a mapping of it sees it (mincore(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    size = ctypes.c_size_t(pages * PAGE)
    address = ctypes.c_void_p(libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, ctypes.c_long(0)))
    found = (ctypes.c_ubyte * pages)()
    try:
        assert libc.mincore(address, size, found) == 0, os.strerror(ctypes.get_errno())
    finally:
        libc.munmap(address, size)
    return sum(page & 1 for page in found)


# ---- what others change, and what may only grow ---------------------------------------------------------------------------

@pytest.mark.parametrize("mode", MODES)
def test_a_refresh_shows_a_lower_file_that_has_grown(scratch: Path, mounts: Mounts, mode: str) -> None:
    layers = _layers(scratch)
    _furnish(scratch / "lower")
    mount = mounts.ours(layers, "-o", f"io={mode}")
    assert (mount.target / "file").read_bytes() == BODY
    with open(scratch / "lower" / "file", "ab") as file:
        file.write(b"more")
    subprocess.run([*our_program(), "refresh", str(mount.target)], cwd=REPOSITORY, timeout=20, check=True)
    assert (mount.target / "file").read_bytes() == BODY + b"more"


def test_writes_are_not_collected_where_lowers_may_change(scratch: Path) -> None:
    _check_fallback(scratch, "writeback", ["-o", "lowers=live"], "io=writeback is not for lowers=live: files are cached")


@pytest.mark.parametrize("mode", MODES)
def test_an_append_only_file_takes_appends_and_nothing_else(scratch: Path, mounts: Mounts, mode: str) -> None:
    layers = _layers(scratch)
    _furnish(scratch / "lower")
    with chattr.cleared_at_the_end(scratch / "lower"):
        chattr.set_flags(scratch / "lower" / "file", chattr.APPEND)
        mount = mounts.ours(layers, "-o", f"io={mode}")
        fd = os.open(mount.target / "file", os.O_WRONLY | os.O_APPEND)
        for text in (b"one", b"two"):
            os.write(fd, text)
            os.fsync(fd)
        os.close(fd)
        assert (scratch / "upper" / "file").read_bytes() == BODY + b"onetwo"
        with pytest.raises(PermissionError):
            fd = os.open(mount.target / "file", os.O_WRONLY)
            try:
                os.pwrite(fd, b"x", 0)
                os.fsync(fd)
            finally:
                os.close(fd)
        assert mount.unmount() == []
    assert (scratch / "upper" / "file").read_bytes() == BODY + b"onetwo"


# ---- where a mode cannot be had -------------------------------------------------------------------------------------------

def test_the_engine_pyfuse3_says_that_it_caches_instead(scratch: Path) -> None:
    _check_fallback(scratch, "passthrough", ["--engine=pyfuse3"], "io=passthrough is not for the engine pyfuse3: files are cached")


def _check_fallback(scratch: Path, mode: str, more: list[str], warning: str) -> None:
    layers = _layers(scratch)
    _furnish(scratch / "lower")
    target = scratch / "mnt"
    target.mkdir()
    command = [*our_program(), "mount", *more, "-o", f"io={mode}", "--lower", str(layers.lowers[0]), "--upper", str(layers.upper)]
    done = subprocess.run([*command, "--work", str(layers.work), str(target)], cwd=REPOSITORY, stdin=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, timeout=30, check=True, text=True)
    try:
        assert done.stderr.splitlines() == [f"unionfs: warning: {warning}"]
        with open(target / "file", "r+b") as file:
            file.write(b"NEW")
        assert (target / "file").read_bytes() == b"NEW" + BODY[3:]
    finally:
        subprocess.run(["umount", str(target)], timeout=20, check=True)


def test_layers_on_an_overlayfs_pass_through_and_on_two_are_served(scratch: Path, mounts: Mounts) -> None:
    for name in ("bottom", "one", "two"):
        (scratch / name).mkdir()
    _furnish(scratch / "bottom")
    above = scratch / "bottom"
    for depth in ("one", "two"):
        for name in ("upper", "work"):
            (scratch / depth / name).mkdir()
        above = mounts.kernel(Layers((above,), scratch / depth / "upper", scratch / depth / "work")).target
        ours = scratch / depth / "ours"
        for name in ("", "upper", "work"):
            (ours / name).mkdir()
        mount = mounts.ours(Layers((above,), ours / "upper", ours / "work"), "-o", "io=passthrough")
        side = Side("passthrough", mount.target, "lower", mount)
        if depth == "two":
            mount.expect_log("the kernel refuses files of a layer")
        assert (side / "file").read_bytes() == BODY
        assert ("read" in side.requests()) == (depth == "two")
        with open(side / "file", "r+b") as file:
            file.write(b"NEW")
        assert (side / "file").read_bytes() == b"NEW" + BODY[3:]


# ---- under load -----------------------------------------------------------------------------------------------------------

class Worker:
    """Does the same to a directory of the mount and to a plain one, and compares what is read."""

    def __init__(self, number: int, pair: tuple[Path, Path]) -> None:
        self.rng = random.Random(f"{SEED} {number}")
        self.pair = pair
        self.held: list[tuple[int, int]] = []

    def step(self) -> None:
        name = f"f{self.rng.randrange(12)}"
        verbs = (self.write, self.append, self.replace, self.remove, self.cut, self.hold, self.held_write, self.read, self.store)
        self.rng.choice(verbs)(name)

    def both(self, what: Callable[[Path], object], name: str) -> None:
        found = []
        for top in self.pair:
            try:
                found.append(what(top / name))
            except FileNotFoundError:
                found.append(None)
        assert found[0] == found[1], f"{what.__name__} of {name}"

    def _at(self) -> int:
        return self.rng.randrange(60_000)

    def _open(self, name: str, flags: int, then: Callable[[int], object]) -> None:
        def opened(path: Path) -> object:
            fd = os.open(path, flags, 0o644)
            try:
                return then(fd)
            finally:
                os.close(fd)

        self.both(opened, name)

    def write(self, name: str) -> None:
        data, at = self.rng.randbytes(self.rng.randrange(9000)), self._at()
        self._open(name, os.O_RDWR | os.O_CREAT, lambda fd: os.pwrite(fd, data, at))

    def append(self, name: str) -> None:
        data = self.rng.randbytes(300)
        self._open(name, os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, data))

    def replace(self, name: str) -> None:
        data = self.rng.randbytes(self.rng.randrange(20_000))
        self._open("new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, lambda fd: os.write(fd, data))
        self.both(lambda path: os.rename(path.with_name("new"), path), name)

    def remove(self, name: str) -> None:
        if self.rng.randrange(3) == 0:
            self.both(os.unlink, name)

    def cut(self, name: str) -> None:
        at = self._at()
        self.both(lambda path: os.truncate(path, at), name)

    def hold(self, name: str) -> None:
        """Keep it open, whatever becomes of its name."""
        if len(self.held) < 4:
            with contextlib.suppress(FileNotFoundError):
                self.held.append((os.open(self.pair[0] / name, os.O_RDWR), os.open(self.pair[1] / name, os.O_RDWR)))

    def held_write(self, name: str) -> None:
        if self.held:
            fds = self.held.pop(self.rng.randrange(len(self.held)))
            data, at = self.rng.randbytes(5000), self._at()
            for fd in fds:
                os.pwrite(fd, data, at)
            assert os.fstat(fds[0]).st_size == os.fstat(fds[1]).st_size
            assert os.pread(fds[0], 1 << 17, 0) == os.pread(fds[1], 1 << 17, 0)
            for fd in fds:
                os.close(fd)

    def read(self, name: str) -> None:
        self.both(lambda path: (path.read_bytes(), os.stat(path).st_size), name)

    def store(self, name: str) -> None:
        data, where = self.rng.randbytes(100), self.rng.random()

        def stored(fd: int) -> bytes:
            size = os.fstat(fd).st_size
            if size < len(data):
                return b""
            with mmap.mmap(fd, size) as mapped:
                at = int((size - len(data)) * where)
                mapped[at : at + len(data)] = data
                return bytes(mapped)

        self._open(name, os.O_RDWR, stored)

    def run(self, until: float) -> None:
        while time.monotonic() < until:
            self.step()
        for fds in self.held:
            for fd in fds:
                os.close(fd)


@pytest.mark.timeout(90 + SECONDS * 3)
@pytest.mark.parametrize("mode", MODES)
def test_eight_at_once_with_caches_dropped_all_the_time_see_what_a_plain_directory_shows(scratch: Path, mounts: Mounts, mode: str) -> None:
    layers, plain = _layers(scratch), scratch / "plain"
    assert layers.upper is not None
    rng = random.Random(SEED)
    for number in range(8):
        for name in range(8):
            body = rng.randbytes(rng.randrange(40_000))
            for top in (scratch / "lower", plain):
                (top / f"d{number}").mkdir(parents=True, exist_ok=True)
                (top / f"d{number}" / f"f{name}").write_bytes(body)
    mount = mounts.ours(layers, "-o", f"io={mode}")
    until = time.monotonic() + SECONDS
    children = []
    for number in range(8):
        child = os.fork()
        if not child:
            try:
                Worker(number, (mount.target / f"d{number}", plain / f"d{number}")).run(until)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        children.append(child)
    while time.monotonic() < until:
        Path("/proc/sys/vm/drop_caches").write_text("3")
        time.sleep(0.05)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
    ours = tree.snapshot(mount.target)
    assert tree.difference(ours, tree.snapshot(plain), (mode, "plain")) == ""
    assert mount.unmount() == []
    theirs = mounts.kernel(layers)
    assert tree.difference(ours, tree.snapshot(theirs.target), (mode, "the kernel's")) == ""
