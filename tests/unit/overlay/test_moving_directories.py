"""Directories that lowers have parts in, moved about with redirect_dir=on: what they are made of x where they go x what is done next.

Every case is played on the kernel's overlayfs and on the union over like layers, in two acts. Between them and at the end the two exchange
their layers, so that each goes on from what the other wrote. At every stage both must show the same.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Protocol

import pytest

from tests.support import system
from tests.support.mounts import Layers, Mounts
from tests.support.tree import Snapshot, by_top, difference, names_in, snapshot
from tests.unit.overlay.world import View, World, mark, put, whiteout
from unionfs.linux import files
from unionfs.overlay.features import Redirect

pytestmark = [pytest.mark.root, pytest.mark.overlayfs, pytest.mark.usefixtures("root")]

NOREPLACE, EXCHANGE = files.RENAME_NOREPLACE, files.RENAME_EXCHANGE
OPTIONS = "redirect_dir=on,index=off,metacopy=off,xino=off"


class Client(Protocol):
    """What an act is played with."""

    def rename(self, old: bytes, new: bytes, flags: int = 0) -> None: ...
    def mkdir(self, path: bytes) -> object: ...
    def make_file(self, path: bytes, data: bytes = b"") -> object: ...
    def unlink(self, path: bytes) -> None: ...
    def rmdir(self, path: bytes) -> None: ...
    def chmod(self, path: bytes, mode: int) -> None: ...
    def is_directory(self, path: bytes) -> bool: ...
    def names(self, path: bytes) -> list[bytes]: ...


class Union(View):
    def is_directory(self, path: bytes) -> bool:
        return stat.S_ISDIR(self.stat(path).st_mode)


@dataclass(frozen=True)
class Mounted:
    root: bytes

    def at(self, path: bytes) -> bytes:
        return os.path.join(self.root, path)

    def rename(self, old: bytes, new: bytes, flags: int = 0) -> None:
        files.renameat2(-100, self.at(old), -100, self.at(new), flags)

    def mkdir(self, path: bytes) -> None:
        os.mkdir(self.at(path), 0o755)

    def make_file(self, path: bytes, data: bytes = b"") -> None:
        with open(os.open(self.at(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644), "wb") as file:
            file.write(data)

    def unlink(self, path: bytes) -> None:
        os.unlink(self.at(path))

    def rmdir(self, path: bytes) -> None:
        os.rmdir(self.at(path))

    def chmod(self, path: bytes, mode: int) -> None:
        os.chmod(self.at(path), mode)

    def is_directory(self, path: bytes) -> bool:
        return stat.S_ISDIR(os.lstat(self.at(path)).st_mode)

    def names(self, path: bytes) -> list[bytes]:
        return list(names_in(self.at(path), hide_ghosts=True))


# ---- what the directory p/old is made of ----

@dataclass(frozen=True)
class Stacked:
    """One case's directories in upper, the top lower and the bottom."""

    upper: Path
    top: Path
    base: Path

    def fill(self, layer: Path, path: str) -> None:
        """The layer's part of the directory: a file of its own, one in every part, a subdirectory in every part."""
        name = layer.parent.name
        put(layer / path / name, name.encode())
        put(layer / path / "everywhere", name.encode())
        put(layer / path / "sub" / name, name.encode())


def in_base(case: Stacked) -> None:
    case.fill(case.base, "p/old")


def in_both_lowers(case: Stacked) -> None:
    in_base(case)
    case.fill(case.top, "p/old")


def in_all_layers(case: Stacked) -> None:
    in_both_lowers(case)
    case.fill(case.upper, "p/old")
    whiteout(case.upper / "p/old/sub/lower1")


def opaque_in_top(case: Stacked) -> None:
    in_both_lowers(case)
    mark(case.top / "p/old", "opaque")
    mark(case.top / "p/old/sub", "opaque")


def opaque_in_upper(case: Stacked) -> None:
    in_both_lowers(case)
    case.fill(case.upper, "p/old")
    mark(case.upper / "p/old", "opaque")


def over_a_whiteout(case: Stacked) -> None:
    """What is below a whiteout of the top lower does not count, and the upper's is its own."""
    in_base(case)
    whiteout(case.top / "p/old")
    case.fill(case.upper, "p/old")


def redirected_by_top(case: Stacked) -> None:
    case.fill(case.base, "p/elsewhere")
    case.fill(case.top, "p/old")
    mark(case.top / "p/old", "redirect", b"elsewhere")
    whiteout(case.top / "p/elsewhere")


def redirected_by_upper(case: Stacked) -> None:
    case.fill(case.base, "far/away")
    case.fill(case.top, "far/away")
    case.fill(case.upper, "p/old")
    mark(case.upper / "p/old", "redirect", f"/{case.base.name}/far/away".encode())
    whiteout(case.upper / "far/away")


def over_a_file(case: Stacked) -> None:
    put(case.base / "p/old", b"file")
    case.fill(case.top, "p/old")


OLD: list[Callable[[Stacked], None]] = [
    in_base, in_both_lowers, in_all_layers, opaque_in_top, opaque_in_upper, over_a_whiteout, redirected_by_top, redirected_by_upper,
    over_a_file,
]


# ---- where the directory q, to which it goes, is ----

def q_in_base(case: Stacked) -> None:
    (case.base / "q/other/inner").mkdir(parents=True)
    put(case.base / "q/file", b"file")
    put(case.base / "q/victim/last", b"last")


def q_merged(case: Stacked) -> None:
    q_in_base(case)
    put(case.top / "q/other/top", b"top")
    put(case.upper / "q/new", b"new")


def q_in_upper(case: Stacked) -> None:
    q_in_base(case)
    whiteout(case.top / "q")
    put(case.upper / "q/other/upper", b"upper")
    put(case.upper / "q/file", b"file")
    put(case.upper / "q/victim/last", b"last")


def q_opaque(case: Stacked) -> None:
    q_merged(case)
    q = case.upper / "q"
    put(q / "other/upper", b"upper")
    put(q / "file", b"file")
    put(q / "victim/last", b"last")
    mark(q, "opaque")


def q_redirected(case: Stacked) -> None:
    put(case.base / "before/other/inner", b"inner")
    put(case.base / "before/file", b"file")
    put(case.base / "before/victim/last", b"last")
    (case.upper / "q").mkdir(parents=True)
    mark(case.upper / "q", "redirect", f"/{case.base.name}/before".encode())
    whiteout(case.upper / "before")


NEW: list[Callable[[Stacked], None]] = [q_in_base, q_merged, q_in_upper, q_opaque, q_redirected]


# ---- what is done ----

Act = Callable[[Client], None]


def clear(client: Client, path: bytes) -> None:
    """rm -r"""
    if not client.is_directory(path):
        client.unlink(path)
        return
    for name in client.names(path):
        clear(client, path + b"/" + name)
    client.rmdir(path)


def in_place(client: Client) -> None:
    client.rename(b"p/old", b"p/moved")


def in_place_twice(client: Client) -> None:
    client.rename(b"p/old", b"p/between")
    client.rename(b"p/between", b"p/moved")


def back_again(client: Client) -> None:
    client.rename(b"p/old", b"q/there")
    client.rename(b"q/there", b"p/old")


def away(client: Client) -> None:
    client.rename(b"p/old", b"q/there")


def away_after_a_name(client: Client) -> None:
    client.rename(b"p/old", b"p/between")
    client.rename(b"p/between", b"q/there")


def made_anew(client: Client) -> None:
    client.rename(b"p/old", b"q/there")
    client.mkdir(b"p/old")
    client.make_file(b"p/old/everywhere", b"new")
    client.mkdir(b"p/old/sub")


def over_a_removed_file(client: Client) -> None:
    client.unlink(b"q/file")
    client.rename(b"p/old", b"q/file", NOREPLACE)


def over_an_emptied_directory(client: Client) -> None:
    client.unlink(b"q/victim/last")
    client.rename(b"p/old", b"q/victim")


def over_a_full_directory(client: Client) -> None:
    client.rename(b"p/old", b"q/victim")


def exchanged(client: Client) -> None:
    client.rename(b"p/old", b"q/other", EXCHANGE)


def exchanged_in_place(client: Client) -> None:
    client.mkdir(b"p/fresh")
    client.rename(b"p/old", b"p/fresh", EXCHANGE)


def exchanged_with_a_file(client: Client) -> None:
    client.rename(b"p/old", b"q/file", EXCHANGE)


def parent_first(client: Client) -> None:
    client.rename(b"p", b"q/p")
    client.rename(b"q/p/old", b"q/there")


def child_first(client: Client) -> None:
    client.rename(b"p/old/sub", b"q/sub")
    client.rename(b"p/old", b"q/there")
    client.rename(b"q/sub", b"q/there/sub")


def swapped_with_its_child(client: Client) -> None:
    client.rename(b"p/old/sub", b"p/sub")
    client.rename(b"p/old", b"p/sub/old")


def into_itself(client: Client) -> None:
    client.rename(b"p/old", b"p/old/sub/old")


def round_and_round(client: Client) -> None:
    client.rename(b"p/old", b"aside")
    client.rename(b"q/other", b"p/old")
    client.rename(b"aside", b"q/other")


FIRST: list[Act] = [
    in_place, in_place_twice, back_again, away, away_after_a_name, made_anew, over_a_removed_file, over_an_emptied_directory,
    over_a_full_directory, exchanged, exchanged_in_place, exchanged_with_a_file, parent_first, child_first, swapped_with_its_child,
    into_itself, round_and_round,
]
_PLACES = (b"p/moved", b"q/there", b"q/other", b"q/victim", b"q/file", b"p/fresh", b"p/sub/old", b"p/old")


def after(client: Client) -> None:
    """Wherever it is now, something in it changes, goes and comes; then it moves on, and its last name is used again."""
    for place in _PLACES:
        try:
            if client.is_directory(place):
                break
        except FileNotFoundError:
            continue
    names = client.names(place)
    if b"everywhere" in names:
        client.chmod(place + b"/everywhere", 0o600)
        client.unlink(place + b"/everywhere")
        client.mkdir(place + b"/everywhere")
    if b"sub" in names:
        client.rename(place + b"/sub", place + b"/below")
        clear(client, place + b"/below")
        client.mkdir(place + b"/sub")
    client.rename(place, b"last")
    client.mkdir(place)
    client.make_file(place + b"/inside", b"inside")
    client.rename(b"last", place, EXCHANGE)
    clear(client, b"last")


@dataclass(frozen=True)
class Case:
    old: Callable[[Stacked], None]
    new: Callable[[Stacked], None]
    first: Act

    @property
    def name(self) -> str:
        return f"{self.old.__name__}-{self.new.__name__}-{self.first.__name__}"

    def build(self, world: World) -> None:
        case = Stacked(world.upper / self.name, world.lowers[0] / self.name, world.lowers[1] / self.name)
        case.base.mkdir()
        self.old(case)
        self.new(case)


CASES = [Case(*case) for case in product(OLD, NEW, FIRST)]


class Within:
    """A client whose paths are below one directory."""

    def __init__(self, client: Client, top: str) -> None:
        self._client = client
        self._top = os.fsencode(top) + b"/"

    def rename(self, old: bytes, new: bytes, flags: int = 0) -> None:
        self._client.rename(self._top + old, self._top + new, flags)

    def mkdir(self, path: bytes) -> None:
        self._client.mkdir(self._top + path)

    def make_file(self, path: bytes, data: bytes = b"") -> None:
        self._client.make_file(self._top + path, data)

    def unlink(self, path: bytes) -> None:
        self._client.unlink(self._top + path)

    def rmdir(self, path: bytes) -> None:
        self._client.rmdir(self._top + path)

    def chmod(self, path: bytes, mode: int) -> None:
        self._client.chmod(self._top + path, mode)

    def is_directory(self, path: bytes) -> bool:
        return self._client.is_directory(self._top + path)

    def names(self, path: bytes) -> list[bytes]:
        return self._client.names(self._top + path)


Outcome = dict[str, tuple[str, Snapshot]]


def play(client: Client, act: Act | None) -> dict[str, str]:
    """How the act ended in each case: done, or the name of an errno. No act: that of the case."""
    endings = {}
    for case in CASES:
        try:
            (act or case.first)(Within(client, case.name))
            endings[case.name] = "done"
        except OSError as exc:
            endings[case.name] = errno.errorcode[exc.errno or 0]
    return endings


@dataclass
class Table:
    """What both sides showed at each stage, by case: [(stage, ours, the kernel's)]."""

    stages: list[tuple[str, Outcome, Outcome]]


@pytest.fixture(scope="module")
def memory(module_mounts: Mounts) -> Iterator[Path]:
    """A tmpfs: some ten thousand objects are made and removed."""
    path = module_mounts.scratch / "memory"
    path.mkdir()
    system.mount("tmpfs", path, "tmpfs")
    yield path
    system.unmount(path)


@pytest.fixture(scope="module")
def table(module_mounts: Mounts, memory: Path) -> Table:
    before = os.umask(0)
    try:
        return _Play(module_mounts, *(_a_world(memory, side) for side in ("ours", "kernel"))).all()
    finally:
        os.umask(before)


def _a_world(memory: Path, name: str) -> World:
    (memory / name).mkdir()
    world = World(memory / name, lowers=2)
    for case in CASES:
        case.build(world)
    return world


class _Play:
    def __init__(self, mounts: Mounts, ours: World, kernels: World) -> None:
        self.mounts = mounts
        self.ours = ours
        self.kernels = kernels
        self.stages: list[tuple[str, Outcome, Outcome]] = []

    def all(self) -> Table:
        self.act("the first act", lambda client: play(client, None))
        self.ours, self.kernels = self.kernels, self.ours
        self.act("the second act, on the other's layers", lambda client: play(client, after))
        self.ours, self.kernels = self.kernels, self.ours
        self.act("the layers exchanged again", lambda client: {case.name: "" for case in CASES})
        return Table(self.stages)

    def act(self, stage: str, play_all: Callable[[Client], dict[str, str]]) -> None:
        """Mount both sides, play, and keep what they show."""
        mount = self.mounts.kernel(Layers(tuple(self.kernels.lowers), self.kernels.upper, self.kernels.work), options=OPTIONS)
        kernel = _outcome(play_all(Mounted(mount.path)), snapshot(mount.path, hide_ghosts=True))
        assert mount.unmount() == []
        view = Union(self.ours.open(redirect=Redirect.ON).union)
        ours = _outcome(play_all(view), view.snapshot())
        assert os.listdir(self.ours.building) == []
        view.forget()
        assert len(view.union.tree.nodes) == 1, "nodes are left behind"
        self.ours.close_all()
        self.stages.append((stage, ours, kernel))


def _outcome(endings: dict[str, str], everything: Snapshot) -> Outcome:
    shown = by_top(everything, (case.name for case in CASES))
    return {name: (ending, shown[name]) for name, ending in endings.items()}


@pytest.mark.parametrize("first", FIRST, ids=lambda act: act.__name__)
@pytest.mark.parametrize("old", OLD, ids=lambda builder: builder.__name__)
def test_a_moved_directory_is_what_it_is_on_the_kernels_overlayfs(table: Table, old: Callable[[Stacked], None], first: Act) -> None:
    found = []
    for case in (Case(old, new, first) for new in NEW):
        for stage, ours, kernels in table.stages:
            (ending, shown), (kernels_ending, kernels_shown) = ours[case.name], kernels[case.name]
            if ending != kernels_ending:
                found.append(f"{case.name}, {stage}: ours answers {ending}, the kernel's {kernels_ending}")
            if lines := difference(shown, kernels_shown, ("ours", "the kernel's")):
                found.append(f"{case.name}, {stage}: {lines}")
    assert "\n".join(found) == ""


def test_most_cases_are_played_to_the_end(table: Table) -> None:
    """Else the cases would not test what they are for."""
    endings = [kernels[case.name][0] for _, _, kernels in table.stages[:2] for case in CASES]
    assert endings.count("done") > 0.8 * len(endings)
    assert {"EINVAL", "ENOTEMPTY"} <= {*endings} <= {"done", "EINVAL", "ENOTEMPTY", "EEXIST", "ENOENT"}
