"""Files and directories that are append-only or immutable (chattr +a, +i): every verb, on the kernel's overlayfs and on ours.

Each case is a directory of its own that holds one protected object and what the verb needs. All are made before the mount; then both sides
do everything, the layers change hands, and some of it is tried again.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.support import chattr, requirements
from tests.support.chattr import APPEND, IMMUTABLE
from tests.support.mounts import Layers, Mount, Mounts

pytestmark = [
    *(pytest.mark.root, pytest.mark.fuse, pytest.mark.overlayfs),
    pytest.mark.skipif(requirements.missing_for_overlayfs() is not None, reason=str(requirements.missing_for_overlayfs())),
]

OLD_NS = 10**18
EXCHANGE = 2
_libc = ctypes.CDLL(None, use_errno=True)


def _write(path: Path, flags: int) -> None:
    fd = os.open(path, flags)
    try:
        os.write(fd, b"more")
    finally:
        os.close(fd)


def _truncate_open(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.ftruncate(fd, 1)
    finally:
        os.close(fd)


def _exchange(one: Path, other: Path) -> None:
    if _libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), EXCHANGE) != 0:
        raise OSError(ctypes.get_errno(), "exchange")


def _make_and_remove(case: Path) -> None:
    os.mkdir(case / "it" / "new")
    os.rmdir(case / "it" / "new")


def _write_and_make(case: Path) -> None:
    _write(case / "it" / "file", os.O_WRONLY)
    os.mkdir(case / "it" / "new")


def _twice(path: Path) -> bytes:
    """Two appends; the offset of neither counts."""
    for text in (b"one", b"two"):
        fd = os.open(path, os.O_RDWR | os.O_APPEND)
        try:
            os.pwrite(fd, text, 0)
        finally:
            os.close(fd)
    return path.read_bytes()


#: What is done to the case directory; ``it`` there is protected.
FILE_VERBS: dict[str, Callable[[Path], object]] = {
    "read": lambda d: (d / "it").read_bytes(),
    "open to write": lambda d: _write(d / "it", os.O_WRONLY),
    "open to write and make": lambda d: _write(d / "it", os.O_WRONLY | os.O_CREAT),
    "open to append": lambda d: _write(d / "it", os.O_WRONLY | os.O_APPEND),
    "append twice": lambda d: _twice(d / "it"),
    "open and truncate": lambda d: _write(d / "it", os.O_WRONLY | os.O_TRUNC),
    "open, truncate, append": lambda d: _write(d / "it", os.O_WRONLY | os.O_TRUNC | os.O_APPEND),
    "read and truncate": lambda d: os.close(os.open(d / "it", os.O_RDONLY | os.O_TRUNC)),
    "truncate": lambda d: os.truncate(d / "it", 1),
    "truncate what is open": lambda d: _truncate_open(d / "it"),
    "chmod": lambda d: (d / "it").chmod(0o600),
    "chown": lambda d: os.chown(d / "it", 1, 1),
    "set times": lambda d: os.utime(d / "it", ns=(OLD_NS, OLD_NS)),
    "set times to now": lambda d: os.utime(d / "it"),
    "set an attribute": lambda d: os.setxattr(d / "it", "user.new", b"1"),
    "replace an attribute": lambda d: os.setxattr(d / "it", "user.old", b"1"),
    "remove an attribute": lambda d: os.removexattr(d / "it", "user.old"),
    "trusted attribute": lambda d: os.setxattr(d / "it", "trusted.new", b"1"),
    "link": lambda d: os.link(d / "it", d / "new"),
    "unlink": lambda d: (d / "it").unlink(),
    "rename": lambda d: (d / "it").rename(d / "new"),
    "move": lambda d: (d / "it").rename(d / "dir" / "new"),
    "replace": lambda d: (d / "other").rename(d / "it"),
    "exchange": lambda d: _exchange(d / "it", d / "other"),
    "be exchanged": lambda d: _exchange(d / "other", d / "it"),
}

DIRECTORY_VERBS: dict[str, Callable[[Path], object]] = {
    "list": lambda d: sorted(os.listdir(d / "it")),
    "make a file": lambda d: _write(d / "it" / "new", os.O_WRONLY | os.O_CREAT),
    "make what is there": lambda d: os.mkdir(d / "it" / "file"),
    "make a directory": lambda d: os.mkdir(d / "it" / "new"),
    "make and remove": _make_and_remove,
    "make a symlink": lambda d: os.symlink("x", d / "it" / "new"),
    "make a fifo": lambda d: os.mkfifo(d / "it" / "new"),
    "link into": lambda d: os.link(d / "other", d / "it" / "new"),
    "move into": lambda d: (d / "other").rename(d / "it" / "new"),
    "move over": lambda d: (d / "other").rename(d / "it" / "file"),
    "move out": lambda d: (d / "it" / "file").rename(d / "new"),
    "rename within": lambda d: (d / "it" / "file").rename(d / "it" / "new"),
    "unlink within": lambda d: (d / "it" / "file").unlink(),
    "rmdir within": lambda d: (d / "it" / "sub").rmdir(),
    "exchange within": lambda d: _exchange(d / "it" / "file", d / "it" / "sub"),
    "write to a file within": lambda d: _write(d / "it" / "file", os.O_WRONLY),
    "make below": lambda d: os.mkdir(d / "it" / "sub" / "new"),
    "write within, then make": _write_and_make,
    "chmod within": lambda d: (d / "it" / "sub").chmod(0o700),
    "chmod": lambda d: (d / "it").chmod(0o700),
    "set times": lambda d: os.utime(d / "it", ns=(OLD_NS, OLD_NS)),
    "set times to now": lambda d: os.utime(d / "it"),
    "set an attribute": lambda d: os.setxattr(d / "it", "user.new", b"1"),
    "rmdir": lambda d: (d / "it").rmdir(),
    "rename": lambda d: (d / "it").rename(d / "new"),
    "move": lambda d: (d / "it").rename(d / "dir" / "new"),
    "replace": lambda d: (d / "dir").rename(d / "it"),
    "exchange": lambda d: _exchange(d / "it", d / "dir"),
}

#: Where the protected object is; in the last two it is a directory of both layers, protected in one.
FILE_PLACES = ("lower", "upper")
DIRECTORY_PLACES = ("lower", "upper", "lower of both", "upper of both")
KINDS = {"immutable": IMMUTABLE, "append-only": APPEND}


@dataclass(frozen=True)
class Case:
    kind: str
    flag: str
    place: str
    verb: str

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.flag}, {self.place}: {self.verb}".replace("/", "")

    def do(self, root: Path) -> object:
        verbs = FILE_VERBS if self.kind == "file" else DIRECTORY_VERBS
        return verbs[self.verb](root / self.name)


CASES = [Case("file", *rest) for rest in itertools.product(KINDS, FILE_PLACES, FILE_VERBS)]
CASES += [Case("directory", *rest) for rest in itertools.product(KINDS, DIRECTORY_PLACES, DIRECTORY_VERBS)]


def outcome(call: Callable[[], object]) -> str:
    try:
        result = call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return repr(result) if isinstance(result, bytes | list) else "done"


def build(case: Case, lower: Path, upper: Path) -> list[tuple[Path, int]]:
    """Make the case; what has to be protected in the end."""
    mine = upper if case.place == "upper" else lower
    (mine / case.name / "dir").mkdir(parents=True)
    (mine / case.name / "other").write_bytes(b"other")
    it = mine / case.name / "it"
    if case.kind == "file":
        it.write_bytes(b"text")
        os.setxattr(it, "user.old", b"0")
    else:
        (it / "sub").mkdir(parents=True)
        (it / "file").write_bytes(b"text")
    if "both" in case.place:
        (upper / case.name / "it").mkdir(parents=True)
    protected = (upper if "upper" in case.place else lower) / case.name / "it"
    return [(protected, KINDS[case.flag])]


def furnish(root: Path) -> Layers:
    layers = Layers((root / "lower",), root / "upper", root / "work")
    assert layers.upper is not None and layers.work is not None
    for path in (*layers.lowers, layers.upper, layers.work):
        path.mkdir(parents=True)
    for path, flags in [found for case in CASES for found in build(case, layers.lowers[0], layers.upper)]:
        chattr.set_flags(path, flags)
    return layers


def attempt(mount: Mount) -> dict[str, str]:
    return {case.name: outcome(partial(case.do, mount.target)) for case in CASES}


def again(mount: Mount) -> dict[str, str]:
    """What became of each protected object: whether it still is."""
    return {case.name: outcome(partial((mount.target / case.name / "it").chmod, 0o711)) for case in CASES}


def kept(upper: Path) -> dict[str, tuple[bytes | None, int]]:
    """``overlay.protattr`` and the flags on disk of everything protected."""
    found = {}
    for case in CASES:
        it = upper / case.name / "it"
        if it.is_file() or it.is_dir():  # no whiteout
            mark = os.getxattr(it, "trusted.overlay.protattr") if "trusted.overlay.protattr" in os.listxattr(it) else None
            found[case.name] = mark, chattr.flags(it)
    return found


@dataclass(frozen=True)
class Results:
    ours: dict[str, str]
    kernels: dict[str, str]
    our_upper: dict[str, tuple[bytes | None, int]]
    kernels_upper: dict[str, tuple[bytes | None, int]]
    #: Which of the two served it, and whose layers.
    our_own_again: dict[str, str]
    kernels_by_us: dict[str, str]
    ours_by_kernel: dict[str, str]


@pytest.fixture(scope="module")
def results(module_mounts: Mounts) -> Iterator[Results]:
    scratch = module_mounts.scratch
    if not chattr.are_possible(scratch):
        pytest.skip("the filesystem of the scratch directory has no file attributes")
    with chattr.cleared_at_the_end(scratch):
        layers = {side: furnish(scratch / side) for side in ("ours", "kernels")}
        mount = module_mounts.kernel(layers["kernels"])
        kernels = attempt(mount)
        assert mount.unmount() == []
        mount = module_mounts.ours(layers["ours"])
        ours = attempt(mount)
        assert mount.unmount() == []
        uppers = {side: kept(found.upper) for side, found in layers.items() if found.upper is not None}
        made = []
        for serve, side in ((module_mounts.ours, "ours"), (module_mounts.ours, "kernels"), (module_mounts.kernel, "ours")):
            mount = serve(layers[side])
            made.append(again(mount))
            assert mount.unmount() == []
        yield Results(ours, kernels, uppers["ours"], uppers["kernels"], *made)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_verb_does_what_it_does_on_the_kernels_overlayfs(results: Results, case: Case) -> None:
    assert results.ours[case.name] == results.kernels[case.name]
    if case.verb != "truncate what is open":  # opened for writing it is copied up there; here by the first change, and none comes
        assert results.our_upper.get(case.name) == results.kernels_upper.get(case.name)


def test_the_cases_hold_refusals_and_leave_marks(results: Results) -> None:
    assert {"EPERM", "done"} <= set(results.kernels.values())
    assert {(b"i", 0), (b"a", 0)} <= set(results.kernels_upper.values())


def test_what_was_kept_holds_at_the_next_mount_whoever_serves_it(results: Results) -> None:
    assert results.our_own_again == results.ours_by_kernel
    assert results.kernels_by_us == results.ours_by_kernel
    assert list(results.ours_by_kernel.values()).count("EPERM") > len(CASES) // 2
