"""Hard links of a lower, and what numbers and link counts are shown of them: as the kernel's overlayfs on the same layers."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.mounts import Layers, Mount, Mounts

Step = tuple[str, ...]
FEATURES = "redirect_dir=off,index={},metacopy=off,xino=off"


@dataclass(frozen=True)
class Shown:
    """What stat says of a name; ``same``: the non-directories that show its number."""

    nlink: int
    same: frozenset[str]
    content: bytes | None


def shown(root: Path, *, directories: bool = True) -> dict[str, Shown]:
    """Of every name below root, without *directories* their link counts left out. Listings have to tell the number of stat."""
    found: dict[str, os.stat_result] = {}
    numbers: dict[int, set[str]] = defaultdict(set)
    for parent, _, _ in os.walk(root):
        with os.scandir(parent) as entries:
            for entry in entries:
                name = os.path.relpath(entry.path, root)
                found[name] = st = os.lstat(entry.path)
                if not stat.S_ISDIR(st.st_mode):
                    numbers[st.st_ino].add(name)
                    assert entry.inode() == st.st_ino, name
    return {
        name: Shown(
            st.st_nlink if directories or not stat.S_ISDIR(st.st_mode) else 0, frozenset(numbers[st.st_ino]), contents(root / name, st))
        for name, st in found.items()
    }


def contents(path: Path, st: os.stat_result) -> bytes | None:
    return path.read_bytes() if stat.S_ISREG(st.st_mode) else None


def do(root: Path, step: Step) -> None:
    """One step by a process that sees nothing but the mount."""
    verb, *names = step
    first, *rest = (root / name for name in names)
    if verb == "write":
        with open(first, "ab") as file:
            file.write(b"more\n")
    elif verb == "open":
        os.close(os.open(first, os.O_WRONLY))
    elif verb == "truncate":
        os.truncate(first, 1)
    elif verb == "chmod":
        first.chmod(0o640)
    elif verb == "look":
        os.stat(first)
    elif verb == "forget":
        Path("/proc/sys/vm/drop_caches").write_text("2")
    elif verb == "chown":
        os.chown(first, 7, 7, follow_symlinks=False)
    elif verb == "create":
        first.write_bytes(b"new\n")
    else:
        getattr(os, verb)(first, *rest)


def lower(path: Path, links: dict[str, str], *, others: tuple[str, ...] = ("single",), symlinks: dict[str, str] | None = None) -> Path:
    """A lower with the files that *links* tie their names to."""
    path.mkdir()
    for name, to in {**links, **dict(zip(others, others, strict=True))}.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        if not (path / to).exists():
            (path / to).parent.mkdir(parents=True, exist_ok=True)
            (path / to).write_text(f"{to}\n")
        if name != to:
            os.link(path / to, path / name)
    for name, target in (symlinks or {}).items():
        (path / name).symlink_to(target)
    return path


class Pair:
    """Ours and the kernel's overlayfs on copies of one set of layers."""

    def __init__(
        self, mounts: Mounts, scratch: Path, make: Callable[[Path], tuple[Path, ...]], features: str, engine: str = "channel"
    ) -> None:
        self._mounts = mounts
        self._features = features
        self._engine = engine
        sides = [scratch / name for name in ("ours", "kernel")]
        sides[0].mkdir()
        self._made = make(sides[0])
        for name in ("upper", "work"):
            (sides[0] / name).mkdir()
        subprocess.run(["cp", "-a", sides[0], sides[1]], check=True, timeout=30)
        self.layers = [
            Layers(tuple(side / path.relative_to(sides[0]) for path in self._made), side / "upper", side / "work") for side in sides]
        self.live: list[Mount] = []

    def mount(self, *, crossed: bool = False) -> None:
        """Both, each on its own layers, or each on the other's."""
        ours, kernels = reversed(self.layers) if crossed else self.layers
        self.live = [
            self._mounts.ours(ours, "-o", self._features, "--engine", self._engine),
            self._mounts.kernel(kernels, options=self._features),
        ]

    def unmount(self) -> None:
        complaints = [line for mount in self.live for line in mount.unmount()]
        assert not complaints
        self.live = []

    def do(self, step: Step) -> None:
        for mount in self.live:
            do(mount.target, step)

    def assert_same(self, what: object) -> dict[str, Shown]:
        # with an index any known name becomes a link in upper when the file changes, in the kernel that which it changes by
        ours, kernels = (shown(mount.target, directories="index=off" in self._features) for mount in self.live)
        assert ours == kernels, what
        return kernels


@pytest.fixture
def layer_root(scratch: Path) -> Iterator[Path]:
    yield scratch
    for name in ("ours", "kernel"):
        shutil.rmtree(scratch / name, ignore_errors=True)


def one_lower(side: Path) -> tuple[Path, ...]:
    links = {"a": "a", "b": "a", "d/c": "a", "d/e": "d/e", "f": "d/e"}
    made = lower(side / "lower", links, symlinks={"s": "single"})
    os.link(made / "s", made / "t", follow_symlinks=False)
    return (made,)


def two_lowers(side: Path) -> tuple[Path, ...]:
    """A file whose names lie in both lowers, one of them covered by another file."""
    base = lower(side / "base", {"a": "a", "b": "a", "d/c": "a", "x": "x", "d/y": "x"})
    top = lower(side / "top", {"b": "b", "d/z": "b"}, others=())
    os.link(base / "a", top / "d/over")
    return (top, base)


#: Only where the server is asked when a file is opened: else the first write copies up.
OPEN = "open, nothing written"
MATRIX: dict[str, list[Step]] = {
    "nothing": [],
    "first is written": [("write", "a")],
    "second is written": [("write", "b")],
    "each is written": [("write", "b"), ("write", "d/c"), ("write", "a")],
    OPEN: [("look", "a"), ("look", "b"), ("open", "b")],
    "truncated": [("look", "b"), ("truncate", "a"), ("truncate", "d/c")],
    "attributes": [("chmod", "d/c"), ("chmod", "b")],
    "unlinked untouched": [("unlink", "a"), ("unlink", "d/c"), ("unlink", "b")],
    "unlinked after a write": [("write", "a"), ("unlink", "a"), ("write", "b"), ("unlink", "d/c"), ("unlink", "b")],
    "unlinked in another order": [("write", "d/c"), ("unlink", "b"), ("unlink", "a"), ("write", "d/c"), ("unlink", "d/c")],
    "renamed": [("rename", "d/c", "moved"), ("write", "moved"), ("write", "a"), ("rename", "a", "d/moved")],
    "renamed over another file": [("rename", "a", "single"), ("write", "b")],
    "renamed over by another file": [("rename", "single", "a"), ("rename", "d/c", "b2"), ("write", "b2"), ("unlink", "b2")],
    "renamed over by a link of another": [("rename", "d/c", "single"), ("rename", "single", "b")],
    "linked anew": [("link", "a", "new"), ("write", "new"), ("link", "b", "d/new"), ("unlink", "a"), ("unlink", "new")],
    "linked anew and all unlinked": [
        ("link", "b", "new"), ("unlink", "a"), ("unlink", "b"), ("unlink", "d/c"), ("write", "new"), ("unlink", "new")],
    "made anew": [("unlink", "a"), ("create", "a"), ("write", "b"), ("link", "a", "new")],
    "forgotten in between": [
        ("write", "a"), ("forget", ""), ("write", "b"), ("forget", ""), ("unlink", "a"), ("forget", ""), ("write", "d/c")],
}
SHAPES = {"one lower": one_lower, "two lowers": two_lowers}


@pytest.mark.parametrize(("index", "shape"), [("off", "one lower"), ("on", "one lower"), ("on", "two lowers")])
@pytest.mark.parametrize("case", MATRIX)
def test_names_of_one_lower_file_show_what_the_kernel_shows(
    mounts: Mounts, layer_root: Path, index: str, shape: str, case: str
) -> None:
    pair = Pair(mounts, layer_root, SHAPES[shape], FEATURES.format(index), "pyfuse3" if case == OPEN else "channel")
    pair.mount()
    pair.assert_same("at first")
    for step in MATRIX[case]:
        pair.do(step)
        pair.assert_same(step)
    pair.unmount()
    for crossed in (False, True):
        pair.mount(crossed=crossed)
        pair.assert_same(("after", case, "crossed" if crossed else "each its own"))
        pair.unmount()


def test_who_reads_a_directory_sees_the_new_number_of_what_was_copied_up(mounts: Mounts, layer_root: Path) -> None:
    """The kernel answers a second listing from what it remembers of the first."""
    (made,) = one_lower(layer_root)
    for name in ("upper", "work"):
        (layer_root / name).mkdir()
    mount = mounts.ours(Layers((made,), layer_root / "upper", layer_root / "work"))
    for name in ("a", "b", "d/c"):
        path = mount.target / name
        for _ in range(2):
            before = {entry.name: entry.inode() for entry in os.scandir(path.parent)}
        path.chmod(0o600)
        after = {entry.name: entry.inode() for entry in os.scandir(path.parent)}
        assert after[path.name] == path.stat().st_ino != before[path.name]
        assert {found for found in before if before[found] != after[found]} == {path.name}


def test_links_of_a_symlink_are_seen_and_broken_like_those_of_a_file(mounts: Mounts, layer_root: Path) -> None:
    pair = Pair(mounts, layer_root, one_lower, FEATURES.format("off"))
    pair.mount()
    assert pair.assert_same("at first")["s"].same == {"s", "t"}
    pair.do(("chown", "t"))
    assert pair.assert_same("after chown")["s"].same == {"s"}


@pytest.mark.parametrize("index", ["off", "on"])
def test_tar_sees_the_links_of_a_lower(mounts: Mounts, layer_root: Path, index: str) -> None:
    pair = Pair(mounts, layer_root, one_lower, FEATURES.format(index))
    pair.mount()
    pair.do(("chmod", "d/c"))
    pair.unmount()
    pair.mount()
    listings = []
    for mount in pair.live:
        made = subprocess.run(["tar", "-C", mount.target, "--sort=name", "-cf", "-", "."], check=True, capture_output=True, timeout=30)
        listed = subprocess.run(["tar", "-tvf", "-"], input=made.stdout, check=True, capture_output=True, timeout=30).stdout
        listings.append([line.partition(b"./")[2] for line in listed.splitlines()])
    assert listings[0] == listings[1]
    assert b"b link to ./a" in listings[0]
    assert (b"d/c link to ./a" in listings[0]) == (index == "on")


def test_numbers_stay_over_copy_up_and_remount_on_one_filesystem(mounts: Mounts, layer_root: Path) -> None:
    """Each object's number is that of its lower, on both; a broken link's that of its copy."""
    pair = Pair(mounts, layer_root, one_lower, FEATURES.format("off"))
    for _ in range(2):
        pair.mount()
        for mount in pair.live:
            below = mount.layers.lowers[0]
            assert os.stat(mount.target / "a").st_ino == os.stat(below / "a").st_ino
            do(mount.target, ("chmod", "single"))
            do(mount.target, ("chmod", "b"))
            assert os.stat(mount.target / "single").st_ino == os.stat(below / "single").st_ino
            assert mount.layers.upper is not None
            assert os.stat(mount.target / "b").st_ino == os.stat(mount.layers.upper / "b").st_ino
        pair.unmount()
