"""Layers that try to lead a server astray, and a trace of what it touched. $UNIONFS_FUZZ_MOUNTS: how many are tried."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import tree
from tests.support.hostile import MARKS, OTHER_MARKS, PREFIXES, a_name, a_value, fill
from tests.support.mounts import REPOSITORY, Layers, Mount, MountFailed, Mounts, our_program
from tests.support.traced import OPTIONS, between_marks, violations
from tests.support.tree import fingerprint

MOUNTS = int(os.environ.get("UNIONFS_FUZZ_MOUNTS", "2"))
_MAX_OBJECTS = 300

_IN_PROCESS = """
import os, random, sys
from pathlib import Path
from tests.support.hostile import Explorer, fill
from tests.support.traced import BEGIN, END
from tests.unit.overlay.test_hostile import some_features
from tests.unit.overlay.world import World
from unionfs.overlay import stack
where, seeds, clones = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "clones"
if not clones:
    stack._clone = lambda fd, attrs: None
os.umask(0)
for seed in range(seeds):
    rng = random.Random(seed)
    (where / str(seed)).mkdir()
    world = World(where / str(seed))
    for layer in (*world.lowers, world.upper):
        fill(layer, rng, b"/var/outside-of-all")
    view = world.open(**some_features(rng))
    explorer = Explorer(view, rng)
    os.path.lexists(BEGIN)
    explorer.look()
    explorer.change(80)
    explorer.look()
    os.path.lexists(END)
    world.close_all()
"""


@pytest.mark.parametrize("clones", ["clones", "none"])
def test_every_path_that_is_opened_lies_in_the_layers(mounts: Mounts, scratch: Path, clones: str) -> None:
    """The union itself, with and without private clones of the layers' mounts."""
    trace = scratch / "trace"
    work = scratch / "layers"
    work.mkdir()
    subprocess.run(
        ["strace", *OPTIONS, "-o", trace, sys.executable, "-c", _IN_PROCESS, work, str(3 * MOUNTS), clones],
        cwd=REPOSITORY, check=True, timeout=600,
    )  # fmt: skip
    lines = between_marks(trace.read_text(errors="replace").splitlines())
    assert len(lines) > 2000
    found = violations(lines, inside=str(work) if clones == "none" else None, outside="outside-of-all")
    assert not found, "\n".join(found[:20])


@contextlib.contextmanager
def traced(mount: Mount, trace: Path) -> Iterator[None]:
    """strace on the mount's servers until they end, which the block sees to: threads born while strace lets go can stay stopped.

    Before, they import all they will ever import: who asks for statistics waits for that.
    """
    subprocess.run([*our_program(), "stats", mount.path], check=True, capture_output=True, timeout=30)
    pids = [word for pid in mount.servers for word in ("-p", str(pid))]
    tracer = subprocess.Popen(["strace", *OPTIONS, "-o", trace, *pids], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while not trace.exists() or not _is_traced(mount.servers[0]):
            assert time.monotonic() < deadline and tracer.poll() is None, "strace does not attach"
            time.sleep(0.02)
        yield
        tracer.wait(20)
    finally:
        if tracer.poll() is None:
            tracer.send_signal(signal.SIGINT)
            tracer.wait(20)


def _is_traced(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    return "TracerPid:\t0\n" not in status


def attempt(call: Callable[[], object]) -> object:
    try:
        return call()
    except OSError:
        return None


def look(target: bytes) -> list[bytes]:
    """Everything below a mount that can be had; the paths."""
    paths = [b"."]
    for path in paths:
        if len(paths) > _MAX_OBJECTS:
            break
        full = os.path.join(target, path)
        attempt(lambda full=full: os.lstat(full))  # type: ignore[misc]
        for name in attempt(lambda full=full: os.listxattr(full, follow_symlinks=False)) or ():  # type: ignore[misc,attr-defined]
            attempt(lambda full=full, name=name: os.getxattr(full, name, follow_symlinks=False))  # type: ignore[misc]
        if os.path.islink(full):
            attempt(lambda full=full: os.readlink(full))  # type: ignore[misc]
        elif os.path.isdir(full):
            paths += [os.path.join(path, name) for name in attempt(lambda full=full: os.listdir(full)) or ()]  # type: ignore[misc,attr-defined]
        elif os.path.isfile(full):
            attempt(lambda full=full: Path(os.fsdecode(full)).read_bytes())  # type: ignore[misc]
    return paths


def change(target: bytes, paths: list[bytes], rng: random.Random, times: int) -> None:
    """Random system calls on what was found. Symlinks are not followed: where they point is the caller's own business."""
    for _ in range(times):
        path = os.path.normpath(os.path.join(target, rng.choice(paths)))
        new = os.path.normpath(os.path.join(target, rng.choice(paths)))
        if rng.randrange(2):
            new = os.path.join(new, a_name(rng))
        if all(os.path.realpath(os.path.dirname(one)) == os.path.dirname(one) for one in (path, new)):
            attempt(rng.choice(_verbs(path, new, rng)))


def _verbs(path: bytes, new: bytes, rng: random.Random) -> tuple[Callable[[], object], ...]:
    mark = rng.choice(MARKS)
    name = rng.choice((rng.choice(PREFIXES) + mark, rng.choice(OTHER_MARKS), b"user.x"))
    return (
        lambda: _write(path),
        lambda: os.lchown(path, 1, 1),
        lambda: os.unlink(path),
        lambda: os.rmdir(path),
        lambda: os.rename(path, new),
        lambda: os.rename(path, new),
        lambda: os.mkdir(new),
        lambda: os.symlink(b"..", new),
        lambda: os.link(path, new, follow_symlinks=False),
        lambda: os.utime(path, (1, 1), follow_symlinks=False),
        lambda: os.setxattr(path, name, a_value(rng, mark, b"/nowhere"), follow_symlinks=False),
        lambda: os.removexattr(path, name, follow_symlinks=False),
    )


def _write(path: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        os.write(fd, b"written")
    finally:
        os.close(fd)


_MODES = ("metacopy=on,whfiles", "redirect_dir=on", "userxattr", "whfiles,index=on", "redirect_dir=nofollow", "userxattr,whfiles")


@pytest.mark.parametrize("seed", range(MOUNTS))
def test_a_mount_of_hostile_layers_answers_and_stays_inside(mounts: Mounts, scratch: Path, seed: int) -> None:
    rng = random.Random(seed)
    outside = scratch / "outside-of-all"
    lowers = tuple(scratch / f"lower{number}" for number in range(3))
    layers = Layers(lowers, scratch / "upper", scratch / "work")
    for path in (*lowers, scratch / "upper", scratch / "work", outside):
        path.mkdir()
    (outside / "secret").write_text("secret")
    for path in (*lowers, scratch / "upper"):
        fill(path, rng, os.fsencode(outside), objects=60)
    before = [fingerprint(path) for path in (*lowers, outside)]
    options = ("-o", _MODES[seed % len(_MODES)])
    for _ in range(2):
        try:
            mount = mounts.ours(layers, *options)
        except MountFailed:  # a root's attributes say that this upper is kept in a way that these options exclude
            break
        trace = scratch / "trace"
        with traced(mount, trace):
            paths = look(mount.path)
            change(mount.path, paths, rng, 120)
            look(mount.path)
            assert mount.alive
            lines = trace.read_text(errors="replace").splitlines()[:-1]  # the last may be half written; at its end a server may open more
            assert not mount.unmount()
        assert len(lines) > 200
        found = violations(lines, inside=None, outside="outside-of-all")
        assert not found, "\n".join(found[:20])
        trace.unlink()
    assert [fingerprint(path) for path in (*lowers, outside)] == before


def answers(target: Path) -> dict[bytes, object]:
    """What every listed name is, or the error it is answered with; what is listed and not found is not there."""
    found: dict[bytes, object] = {}
    for path in look(os.fsencode(target)):
        try:
            found[path] = tree.entry_at(os.path.join(os.fsencode(target), path), hide_ghosts=True)
        except FileNotFoundError:
            continue
        except OSError as error:
            # a redirect to . or .. is no redirect here, to the kernel one to what may not be looked up
            found[path] = errno.EINVAL if error.errno == errno.EACCES else error.errno
    return found


@pytest.mark.parametrize("seed", range(MOUNTS))
def test_the_kernel_makes_the_same_of_hostile_layers(mounts: Mounts, scratch: Path, seed: int) -> None:
    """But for origins, which the kernel takes for corruption when they name what cannot be opened."""
    rng = random.Random(seed)
    lowers = tuple(scratch / f"lower{number}" for number in range(3))
    for path in lowers:
        path.mkdir()
        fill(path, rng, b"/nowhere", objects=50, marks=(b"opaque", b"redirect", b"redirect", b"metacopy", b"whiteout", b"nlink"), others=())
        os.chmod(path, 0o755)
    mount = mounts.ours(Layers(lowers), "-o", "redirect_dir=on,metacopy=on,index=off")
    kernel = mounts.kernel(Layers(lowers), options="redirect_dir=on,metacopy=on,index=off,xino=off")
    ours, theirs = answers(mount.target), answers(kernel.target)
    assert len(theirs) > 40
    different = [(path, ours.get(path), theirs.get(path)) for path in ours.keys() | theirs.keys() if ours.get(path) != theirs.get(path)]
    assert not different, different[:3]


@pytest.mark.parametrize(
    ("line", "harmless"),
    [
        ('openat(5</l>, "name", O_RDONLY|O_NOFOLLOW|O_CLOEXEC) = 6</l/name>', True),
        ('openat(5</l>, "name", O_RDONLY|O_CLOEXEC) = 6</l/name>', False),
        ('openat(5</l>, "name", O_RDONLY|O_NOFOLLOW) = 6</away/out>', False),
        ('openat(5</l>, "..", O_RDONLY|O_NOFOLLOW) = 6</l>', False),
        ('openat(AT_FDCWD</>, "/etc/passwd", O_RDONLY) = 6</etc/passwd>', False),
        ('newfstatat(5</l>, "name", {st_mode=S_IFREG|0644, ...}, AT_SYMLINK_NOFOLLOW) = 0', True),
        ('newfstatat(5</l>, "name", 0x7ffc, 0) = -1 ENOENT (No such file or directory)', False),
        ('lgetxattr("/proc/self/fd/5/name", "user.x", "y", 128) = 1', True),
        ('getxattr("/proc/self/fd/5/name", "user.x", "y", 128) = 1', False),
        ('getxattr("/proc/self/fd/5", "user.x", "y", 128) = 1', True),
        ('getxattr("/proc/self/fd/5/../name", "user.x", "y", 128) = 1', False),
        ('openat2(5</l>, "a/b", {flags=O_PATH, resolve=RESOLVE_NO_MAGICLINKS|RESOLVE_NO_SYMLINKS|RESOLVE_IN_ROOT}, 24) = 6</l/a/b>', True),
        ('openat2(5</l>, "a/b", {flags=O_PATH, resolve=RESOLVE_NO_MAGICLINKS}, 24) = 6</l/a/b>', False),
        ('symlinkat("/away", 5</l>, "name") = 0', True),
        ('renameat2(5</l>, "a", 6</w>, "b/c", RENAME_EXCHANGE) = 0', False),
    ],
)  # fmt: skip
def test_the_trace_is_read_rightly(line: str, harmless: bool) -> None:
    """Not to be fooled: what the check of the traces lets pass, and what not."""
    assert (violations([line], inside="/l", outside="/away") == []) is harmless
