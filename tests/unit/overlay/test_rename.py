"""rename: every kind of source and target in every place, held against the kernel's overlayfs on the same layers."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.support import system
from tests.support.mounts import KERNEL_OPTIONS, Layers, Mounts
from tests.support.tree import Snapshot, by_top, difference, snapshot
from tests.unit.overlay.world import USERXATTR, View, World, is_whiteout, mark, marked, put, whiteout
from unionfs.linux import files
from unionfs.overlay.features import Redirect
from unionfs.overlay.rename import rename
from unionfs.overlay.union import Change

NOREPLACE, EXCHANGE = files.RENAME_NOREPLACE, files.RENAME_EXCHANGE
Builder = Callable[[Path, Path], None]


# ---- what a name can be: (its place in upper, its place in the lower) ----

def absent(upper: Path, lower: Path) -> None:
    pass


def whiteout_over_file(upper: Path, lower: Path) -> None:
    put(lower, b"deleted")
    whiteout(upper)


def whiteout_over_directory(upper: Path, lower: Path) -> None:
    put(lower / "deleted", b"deleted")
    whiteout(upper)


def upper_file(upper: Path, lower: Path) -> None:
    put(upper, b"upper")


def lower_file(upper: Path, lower: Path) -> None:
    put(lower, b"lower", 0o600)


def file_over_file(upper: Path, lower: Path) -> None:
    put(lower, b"below")
    put(upper, b"above")


def file_over_directory(upper: Path, lower: Path) -> None:
    put(lower / "below", b"below")
    put(upper, b"above")


def upper_symlink(upper: Path, lower: Path) -> None:
    upper.symlink_to("upper")


def lower_symlink(upper: Path, lower: Path) -> None:
    lower.symlink_to("lower")


def lower_fifo(upper: Path, lower: Path) -> None:
    os.mkfifo(lower)


def upper_directory(upper: Path, lower: Path) -> None:
    upper.mkdir()


def full_upper_directory(upper: Path, lower: Path) -> None:
    put(upper / "inside" / "upper")


def lower_directory(upper: Path, lower: Path) -> None:
    lower.mkdir()


def full_lower_directory(upper: Path, lower: Path) -> None:
    put(lower / "inside", b"lower")


def merged_directory(upper: Path, lower: Path) -> None:
    put(upper / "inside", b"upper")
    put(lower / "below", b"lower")


def emptied_directory(upper: Path, lower: Path) -> None:
    put(lower / "deleted", b"lower")
    whiteout(upper / "deleted")


def opaque_directory(upper: Path, lower: Path) -> None:
    put(lower / "hidden", b"lower")
    upper.mkdir()
    mark(upper, "opaque")


def full_opaque_directory(upper: Path, lower: Path) -> None:
    opaque_directory(upper, lower)
    put(upper / "inside", b"upper")


def directory_over_file(upper: Path, lower: Path) -> None:
    put(lower, b"lower")
    upper.mkdir()


SOURCES: list[Builder] = [
    upper_file, lower_file, file_over_file, file_over_directory, lower_symlink, lower_fifo, upper_directory,
    full_upper_directory, lower_directory, merged_directory, full_opaque_directory, directory_over_file,
]
TARGETS: list[Builder] = [
    absent, whiteout_over_file, whiteout_over_directory, upper_file, lower_file, file_over_file, file_over_directory,
    upper_symlink, upper_directory, full_upper_directory, lower_directory, full_lower_directory, emptied_directory,
    opaque_directory, directory_over_file,
]
FLAGS = {0: "plain", NOREPLACE: "noreplace", EXCHANGE: "exchange"}


@dataclass(frozen=True)
class Case:
    source: Builder
    target: Builder
    flags: int
    directory: str

    @property
    def name(self) -> str:
        to = "beside" if self.directory == "a" else "elsewhere"
        return f"{self.source.__name__}-{self.target.__name__}-{FLAGS[self.flags]}-{to}"

    def build(self, world: World) -> None:
        upper, lower = world.upper / self.name, world.lowers[0] / self.name
        for top in (upper, lower):
            for name in ("a", "b"):
                (top / name).mkdir(parents=True)
        self.source(upper / "a" / "old", lower / "a" / "old")
        self.target(upper / self.directory / "new", lower / self.directory / "new")

    @property
    def paths(self) -> tuple[bytes, bytes]:
        return f"{self.name}/a/old".encode(), f"{self.name}/{self.directory}/new".encode()


CASES = [Case(*case) for case in product(SOURCES, TARGETS, FLAGS, "ab")]
NAMES = [case.name for case in CASES]


@dataclass(frozen=True)
class Outcome:
    """What came of all cases on one side: errnos (0: it worked) and the tree afterwards, by case."""

    errors: dict[str, int]
    trees: dict[str, Snapshot]


def attempt(action: Callable[[], None]) -> int:
    try:
        action()
    except OSError as exc:
        assert exc.errno
        return exc.errno
    return 0


def a_world(root: Path, name: str) -> World:
    (root / name).mkdir()
    world = World(root / name, lowers=1)
    for case in CASES:
        case.build(world)
    return world


def layers_of(world: World) -> Layers:
    return Layers(tuple(world.lowers), world.upper, world.work)


@dataclass(frozen=True)
class Table:
    kernel: Outcome
    ours: Outcome
    #: Our layers mounted by the kernel, and the kernel's served by us.
    ours_by_kernel: dict[str, Snapshot]
    kernels_by_us: dict[str, Snapshot]


@pytest.fixture(scope="module")
def memory(module_mounts: Mounts) -> Iterator[Path]:
    """A tmpfs: some ten thousand objects are made and removed."""
    path = module_mounts.scratch / "memory"
    path.mkdir()
    system.mount("tmpfs", path, "tmpfs")
    yield path
    system.unmount(path)


@pytest.fixture(scope="module", params=["nofollow"] if USERXATTR else ["off", "on"])
def table(module_mounts: Mounts, memory: Path, request: pytest.FixtureRequest) -> Table:
    """All cases done on both sides with redirect_dir off and on (for users it is nofollow), then the layers exchanged."""
    redirect_dir: str = request.param
    options = KERNEL_OPTIONS.replace("redirect_dir=on", f"redirect_dir={redirect_dir}")
    kinds = {"on": Redirect.ON, "off": Redirect.FOLLOW, "nofollow": Redirect.NOFOLLOW}
    features: dict[str, Any] = {"redirect": kinds[redirect_dir]}
    before = os.umask(0)
    try:
        kernels, ours = a_world(memory, f"kernel-{redirect_dir}"), a_world(memory, f"ours-{redirect_dir}")
        mount = module_mounts.kernel(layers_of(kernels), options=options)
        kernel_errors = {case.name: attempt(partial(_rename_at, mount.path, case)) for case in CASES}
        kernel = Outcome(kernel_errors, by_top(snapshot(mount.path, hide_ghosts=True), NAMES))
        assert mount.unmount() == []

        view = ours.open(**features)
        our_errors = {case.name: attempt(partial(view.rename, *case.paths, case.flags)) for case in CASES}
        our = Outcome(our_errors, by_top(view.snapshot(), NAMES))
        assert os.listdir(ours.building) == []
        ours.close_all()

        mount = module_mounts.kernel(layers_of(ours), options=options)
        ours_by_kernel = by_top(snapshot(mount.path, hide_ghosts=True), NAMES)
        assert mount.unmount() == []
        kernels_by_us = by_top(kernels.open(**features).snapshot(), NAMES)
        kernels.close_all()
        return Table(kernel, our, ours_by_kernel, kernels_by_us)
    finally:
        os.umask(before)


def _rename_at(root: bytes, case: Case) -> None:
    old, new = (os.path.join(root, path) for path in case.paths)
    files.renameat2(-100, old, -100, new, case.flags)


def name_of(code: int) -> str:
    return errno.errorcode.get(code, "done")


def disagreements(table: Table, case: Case) -> str:
    ours, kernels = name_of(table.ours.errors[case.name]), name_of(table.kernel.errors[case.name])
    found = []
    if ours != kernels and (ours, kernels) != ("EXDEV", "ENOTDIR"):  # the VFS compares kinds before it asks a filesystem
        found.append(f"ours answers {ours}, the kernel's {kernels}")
    tree = table.ours.trees[case.name]
    found.append(difference(tree, table.kernel.trees[case.name], ("ours", "the kernel's")))
    found.append(difference(tree, table.ours_by_kernel[case.name], ("ours", "our layers mounted by the kernel")))
    found.append(difference(tree, table.kernels_by_us[case.name], ("ours", "the kernel's layers served by us")))
    return "\n".join(f"{case.name}: {line}" for line in found if line)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.__name__)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
def test_a_rename_does_what_the_kernel_does(table: Table, source: Builder, target: Builder) -> None:
    cases = [case for case in CASES if (case.source, case.target) == (source, target)]
    assert len(cases) == 6
    assert "\n".join(filter(None, (disagreements(table, case) for case in cases))) == ""


def test_the_table_has_every_kind_of_answer(table: Table) -> None:
    assert {name_of(code) for code in table.kernel.errors.values()} - {"EXDEV"} == {
        "done", "EEXIST", "ENOENT", "EISDIR", "ENOTDIR", "ENOTEMPTY",
    }


# ---- what the table does not hold ----

def test_a_directory_that_shows_empty_is_replaced_though_stray_whiteouts_are_in_it(world: World, view: View) -> None:
    """The kernel lists whiteouts of directories that are not merged, and says ENOTEMPTY; we hide them."""
    whiteout(world.upper / "stray" / "gone")
    view = world.reopen(view)
    view.mkdir(b"new")
    view.make_file(b"new/inside")
    view.rename(b"new", b"stray")
    assert view.names(b"stray") == [b"inside"]
    assert os.listdir(world.upper / "stray") == ["inside"]



@pytest.fixture
def view(world: World) -> View:
    put(world.lowers[0] / "dir" / "file", b"lower")
    put(world.lowers[0] / "dir" / "other", b"other")
    return world.open()


@pytest.mark.parametrize("flags", [NOREPLACE | EXCHANGE, files.RENAME_WHITEOUT, 8, -1 & 0xFFFFFFFF])
def test_other_flags_are_einval(view: View, flags: int) -> None:
    assert attempt(lambda: view.rename(b"dir/file", b"dir/new", flags)) == errno.EINVAL
    assert view.names(b"dir") == [b"file", b"other"]


def test_what_is_not_there_is_not_renamed(view: View) -> None:
    assert attempt(lambda: view.rename(b"dir/nothing", b"dir/new")) == errno.ENOENT


def test_a_name_onto_itself_is_nothing(world: World, view: View) -> None:
    view.rename(b"dir/file", b"dir/file")
    assert view.read(b"dir/file") == b"lower"
    assert not (world.upper / "dir" / "file").exists()


def test_two_names_of_one_file_both_stay(view: View) -> None:
    view.link(b"dir/file", b"dir/link")
    view.rename(b"dir/file", b"dir/link")
    assert view.names(b"dir") == [b"file", b"link", b"other"]


def test_an_exchange_with_itself_is_nothing(view: View) -> None:
    view.rename(b"dir/file", b"dir/file", EXCHANGE)
    assert view.names(b"dir") == [b"file", b"other"]
    assert view.read(b"dir/file") == b"lower"


def test_an_exchange_of_two_links_of_one_file_changes_nothing_to_see(world: World, view: View) -> None:
    view.link(b"dir/file", b"link")
    ino = view.ino(b"link")
    view.rename(b"dir/file", b"link", EXCHANGE)
    assert view.ino(b"dir/file") == view.ino(b"link") == ino
    view.unlink(b"link")
    assert view.read(b"dir/file") == b"lower"
    view.forget()
    assert len(view.union.tree.nodes) == 1


def test_whoever_has_it_open_goes_on_with_it(view: View) -> None:
    ino = view.ino(b"dir/file")
    view.rename(b"dir/file", b"moved")
    view.union.write(ino, 0, b"WRITTEN")
    assert view.read(b"moved") == b"WRITTEN"
    assert view.ino(b"moved") == ino


def test_there_and_back_again_leaves_what_was(world: World, view: View) -> None:
    before = view.snapshot(b"dir")
    for _ in range(3):
        view.rename(b"dir/file", b"elsewhere")
        assert is_whiteout(world.upper / "dir" / "file")
        view.rename(b"elsewhere", b"dir/file")
    assert view.snapshot(b"dir") == before
    assert os.listdir(world.upper) == ["dir"]
    assert world.reopen(view).snapshot(b"dir") == before


def test_a_moved_directory_takes_what_is_in_it_along(world: World, view: View) -> None:
    view.mkdir(b"a")
    view.mkdir(b"a/b")
    view.make_file(b"a/b/file", b"deep")
    view.mkdir(b"c")
    inos = view.ino(b"a/b"), view.ino(b"a/b/file")
    view.rename(b"a/b", b"c/d")
    assert (view.ino(b"c/d"), view.ino(b"c/d/file")) == inos
    assert view.read(b"c/d/file") == b"deep"
    view.write(b"c/d/file", b"DEEP")
    assert (world.upper / "c" / "d" / "file").read_bytes() == b"DEEP"
    assert view.names(b"a") == []


def test_a_directory_does_not_move_into_itself(view: View) -> None:
    view.mkdir(b"a")
    view.mkdir(b"a/b")
    assert attempt(lambda: view.rename(b"a", b"a/b/c")) == errno.EINVAL
    assert view.names(b"a") == [b"b"]


def test_a_directory_moved_where_one_was_deleted_is_opaque_before_it_arrives(
    world: World, view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash between the two steps must not let the deleted names come back."""
    view.unlink(b"dir/file")
    view.unlink(b"dir/other")
    view.rmdir(b"dir")
    view.mkdir(b"new")
    opaque_at_rename = []
    renameat2 = files.renameat2

    def watched(old_dir: int, old: bytes, new_dir: int, new: bytes, flags: int = 0) -> None:
        opaque_at_rename.append(marked(world.upper / "new", "opaque"))
        renameat2(old_dir, old, new_dir, new, flags)

    monkeypatch.setattr(files, "renameat2", watched)
    view.rename(b"new", b"dir")
    assert opaque_at_rename == [b"y"]
    assert view.names(b"dir") == []
    assert world.reopen(view).names(b"dir") == []


def test_the_files_a_rename_will_copy_up_are_told_beforehand(world: World, view: View) -> None:
    world.close(view)
    view = world.open(redirect=Redirect.FOLLOW)
    file, other = view.ino(b"dir/file"), view.ino(b"dir/other")
    root, directory = view.ino(b""), view.ino(b"dir")
    ask = view.union.to_bring_up
    assert ask(directory, b"file", root, b"new", 0) == [file]
    assert ask(directory, b"file", directory, b"other", 0) == [file]
    assert ask(directory, b"file", directory, b"other", EXCHANGE) == [file, other]
    for one, two in ((b"dir", b"new"), (b"new", b"dir")):  # what will be refused is refused before anything is copied up
        with pytest.raises(OSError, match="cross-device" if one == b"dir" else "No such file"):
            ask(root, one, root, two, EXCHANGE if two == b"dir" else 0)
    view.chmod(b"dir/file", 0o600)
    assert ask(directory, b"file", root, b"new", 0) == []


@pytest.mark.parametrize("target", ["absent", "upper", "lower", "whiteout"])
@pytest.mark.parametrize("source", ["file", "directory"])
def test_without_rename_whiteout_the_same_comes_of_it(
    world: World, view: View, monkeypatch: pytest.MonkeyPatch, source: str, target: str
) -> None:
    refused = _without_rename_whiteout(monkeypatch)
    if source == "directory":  # an opaque one, over what was deleted
        view.unlink(b"dir/file")
        view.mkdir(b"dir/file")
        view.make_file(b"dir/file/inside", b"lower")
        if target in ("upper", "lower"):
            view.unlink(b"dir/other")
            view.mkdir(b"dir/other")
    elif target == "upper":
        view.write(b"dir/other", b"upper")
    elif target == "whiteout":
        view.unlink(b"dir/other")
    if source == "directory" and target == "whiteout":
        view.unlink(b"dir/other")
    new = b"dir/new" if target == "absent" else b"dir/other"
    view.rename(b"dir/file", new)
    assert refused or (source, target) == ("directory", "whiteout")  # that one is an exchange anyway
    assert view.find(b"dir/file") is None
    assert is_whiteout(world.upper / "dir" / "file")
    assert view.read(new + b"/inside" if source == "directory" else new) == b"lower"
    assert os.listdir(world.building) == []
    before = view.snapshot()
    assert world.reopen(view).snapshot() == before


def _without_rename_whiteout(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """As on an upper that is itself an overlay; the names it was asked for."""
    refused: list[bytes] = []
    renameat2 = files.renameat2

    def refusing(old_dir: int, old: bytes, new_dir: int, new: bytes, flags: int = 0) -> None:
        if flags & files.RENAME_WHITEOUT:
            refused.append(old)
            raise OSError(errno.EINVAL, "no RENAME_WHITEOUT here")
        renameat2(old_dir, old, new_dir, new, flags)

    monkeypatch.setattr(files, "renameat2", refusing)
    return refused


@pytest.mark.parametrize("victim", ["upper", "lower", "none"])
def test_a_failed_rename_changes_nothing(world: World, view: View, victim: str) -> None:
    if victim == "upper":
        view.write(b"dir/other", b"upper")
    new = b"dir/new" if victim == "none" else b"dir/other"
    view.write(b"dir/file", b"LOWER")
    before = view.snapshot()

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "no")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "renameat2", fail)
        assert attempt(lambda: view.rename(b"dir/file", new)) == errno.EIO
        assert attempt(lambda: view.rename(b"dir/file", b"dir/other", EXCHANGE)) == errno.EIO
    assert view.snapshot() == before
    assert os.listdir(world.building) == []
    view.rename(b"dir/file", new)
    assert view.read(new) == b"LOWER"


def test_the_time_of_a_moved_file_stays(world: World, view: View) -> None:
    view.change(b"dir/file", Change(mtime_ns=123))
    view.rename(b"dir/file", b"moved")
    assert view.stat(b"moved").st_mtime_ns == 123


def test_a_read_only_union_renames_nothing(world: World, view: View) -> None:
    put(world.lowers[0] / "dir" / "file", b"lower")
    reading = world.open(writable=False)
    root = reading.union.tree.root
    assert attempt(lambda: rename(reading.union.tree, root, b"dir", root, b"new", 0)) in (errno.EROFS, errno.EXDEV)
    assert attempt(lambda: reading.rename(b"dir/file", b"new")) == errno.EROFS
    assert stat.S_ISDIR(reading.stat(b"dir").st_mode)


def test_a_rename_onto_another_name_that_nobody_has_looked_up_changes_nothing(view: View) -> None:
    view.make_file(b"one", b"data")
    view.link(b"one", b"two")
    view.forget()
    view.rename(b"one", b"two")
    assert (view.read(b"one"), view.read(b"two")) == (b"data", b"data")
    assert {b"one", b"two"} <= set(view.names(b""))
