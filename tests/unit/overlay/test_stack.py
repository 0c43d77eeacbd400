"""Opening layers: what is refused, in one clear line, with nothing left open; locks; the work directory."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import system
from tests.support.tree import fingerprint
from tests.support.users import as_user
from tests.unit.overlay.world import PREFIX, USERXATTR, World, mark, no_descriptor_left, put, whiteout
from unionfs.errors import InUseError, LayerError
from unionfs.linux import mounts
from unionfs.overlay.features import Features, Sync
from unionfs.overlay.stack import open_stack
from unionfs.overlay.union import Union

MS_RDONLY, MS_BIND = 1, 0x1000


def refused(lowers: list[bytes], upper: bytes | None, work: bytes | None, kind: type[LayerError] = LayerError) -> str:
    """The one line open_stack refuses these with; nothing stays open."""
    with no_descriptor_left(), pytest.raises(kind) as caught:
        open_stack(lowers, upper, work, Features(userxattr=USERXATTR))
    text = str(caught.value)
    assert text and "\n" not in text
    assert type(caught.value) is kind
    return text


def b(path: Path) -> bytes:
    return os.fsencode(path)


# ---- what is refused ----

def test_a_union_without_lowers_is_refused(world: World) -> None:
    assert "at least one lower" in refused([], b(world.upper), b(world.work))


@pytest.mark.parametrize("lacking", ["upper", "work"])
def test_upper_and_work_come_together(world: World, lacking: str) -> None:
    upper = None if lacking == "upper" else b(world.upper)
    work = None if lacking == "work" else b(world.work)
    text = refused([b(world.lowers[0])], upper, work)
    assert f"without {lacking} directory" in text


@pytest.mark.parametrize("which", ["lower", "upper", "work"])
@pytest.mark.parametrize("trouble", ["missing", "file", "loop", "too long"])
def test_a_bad_directory_is_named_with_its_part_and_reason(world: World, which: str, trouble: str) -> None:
    bad = world.root / "bad"
    reason = {"missing": "No such file", "file": "Not a directory", "loop": "Too many levels", "too long": "too long"}[trouble]
    if trouble == "file":
        put(bad)
    elif trouble == "loop":
        bad.symlink_to(bad)
    elif trouble == "too long":
        bad = world.root / ("x" * 300)
    parts = {"lower": b(world.lowers[1]), "upper": b(world.upper), "work": b(world.work), which: b(bad)}
    text = refused([b(world.lowers[0]), parts["lower"]], parts["upper"], parts["work"])
    assert text.startswith(f"{which} directory {bad}: ") and reason in text


def test_a_lower_for_which_there_is_no_descriptor_left_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), b"")

    monkeypatch.setattr(mounts, "open_tree", none_left)
    assert refused([b(world.lowers[0])], None, None) == f"lower directory {world.lowers[0]}: Too many open files"


def test_a_path_of_any_bytes_makes_a_readable_line(world: World) -> None:
    text = refused([b(world.root) + b"/new\nline\xff"], None, None)
    assert "new\\nline\\xff" in text


@pytest.mark.parametrize("nesting", ["upper in work", "work in upper", "the same"])
def test_upper_and_work_may_not_hold_each_other(world: World, nesting: str) -> None:
    inner_upper, inner_work = world.work / "upper", world.upper / "work"
    inner_upper.mkdir()
    inner_work.mkdir()
    upper, work = {
        "upper in work": (inner_upper, world.work), "work in upper": (world.upper, inner_work),
        "the same": (world.upper, world.upper),
    }[nesting]
    assert "neither may be inside the other" in refused([b(world.lowers[0])], b(upper), b(work))


def test_a_symlink_does_not_hide_that_work_is_inside_upper(world: World) -> None:
    (world.upper / "sub").mkdir()
    (world.root / "link").symlink_to(world.upper / "sub")
    assert "neither may be inside" in refused([b(world.lowers[0])], b(world.upper), b(world.root / "link"))


def test_a_name_that_only_begins_alike_is_no_nesting(world: World) -> None:
    (world.root / "upper-work").mkdir()
    open_stack([b(world.lowers[0])], b(world.upper), b(world.root / "upper-work"), Features(userxattr=USERXATTR)).close()


@pytest.mark.parametrize("lower", ["upper", "upper/sub", "work", "link"])
def test_a_lower_that_the_mount_would_change_is_refused(world: World, lower: str) -> None:
    (world.upper / "sub").mkdir()
    (world.root / "link").symlink_to(world.upper / "sub")
    text = refused([b(world.lowers[0]), b(world.root / lower)], b(world.upper), b(world.work))
    assert text.startswith(f"lower directory {world.root / lower} is, or lies in, the {'work' if lower == 'work' else 'upper'} directory ")


def test_upper_and_work_may_lie_in_a_lower(world: World) -> None:
    open_stack([b(world.root)], b(world.upper), b(world.work), Features(userxattr=USERXATTR)).close()


def test_work_on_another_filesystem_is_refused(world: World, tmpfs: Callable[..., Path]) -> None:
    assert "not under the same mount" in refused([b(world.lowers[0])], b(world.upper), b(tmpfs("other")))


def test_work_under_another_mount_of_the_same_filesystem_is_refused(world: World, root: None) -> None:
    """st_dev is the same, and still a rename between the two is EXDEV."""
    bound = world.root / "bound"
    bound.mkdir()
    system.mount(str(world.work), bound, "", MS_BIND)
    try:
        assert bound.stat().st_dev == world.upper.stat().st_dev
        assert "not under the same mount" in refused([b(world.lowers[0])], b(world.upper), b(bound))
    finally:
        system.unmount(bound)


def test_an_upper_on_a_read_only_filesystem_is_refused(world: World, tmpfs: Callable[..., Path]) -> None:
    disk = tmpfs("ro")
    (disk / "upper").mkdir()
    (disk / "work").mkdir()
    system.mount("none", disk, "", MS_RDONLY | 32)  # MS_REMOUNT
    assert "read-only" in refused([b(world.lowers[0])], b(disk / "upper"), b(disk / "work"))


def test_an_upper_that_cannot_hold_our_marks_is_refused(world: World, root: None) -> None:
    """An ordinary user may not set trusted.*: he needs userxattr."""
    for path in (world.upper, world.work):
        os.chown(path, 1000, 1000)

    def attempt() -> str:
        try:
            open_stack([b(world.lowers[0])], b(world.upper), b(world.work))
        except LayerError as exc:
            return str(exc)
        return ""

    assert "trusted.overlay.* attributes" in as_user(attempt)


def test_an_unwritable_upper_is_refused_to_an_ordinary_user(world: World, root: None) -> None:
    def attempt() -> str:
        try:
            open_stack([b(world.lowers[0])], b(world.upper), b(world.work), Features(userxattr=True))
        except LayerError as exc:
            return str(exc)
        return ""

    assert "Permission denied" in as_user(attempt)


def test_a_work_directory_whose_work_is_no_directory_is_refused_and_kept(world: World) -> None:
    put(world.building, b"mine")
    assert refused([b(world.lowers[0])], b(world.upper), b(world.work)).startswith(f"{world.building} is no directory")
    assert world.building.read_bytes() == b"mine"


def test_a_work_that_is_a_symlink_is_not_followed(world: World) -> None:
    put(world.root / "precious" / "file", b"keep")
    world.building.symlink_to(world.root / "precious")
    assert refused([b(world.lowers[0])], b(world.upper), b(world.work)).startswith(f"{world.building} is no directory")
    assert (world.root / "precious" / "file").read_bytes() == b"keep"


# ---- locks ----

def test_an_upper_in_use_is_refused_until_it_is_closed(world: World) -> None:
    (world.root / "work2").mkdir()
    view = world.open()
    text = refused([b(world.lowers[0])], b(world.upper), b(world.root / "work2"), InUseError)
    assert text == f"upper directory {world.upper} is in use by another mount"
    world.close(view)
    world.close(world.open())


def test_a_work_in_use_is_refused_and_the_other_upper_stays_free(world: World) -> None:
    other = world.root / "upper2"
    other.mkdir()
    (world.root / "work2").mkdir()
    world.open()
    text = refused([b(world.lowers[0])], b(other), b(world.work), InUseError)
    assert text == f"work directory {world.work} is in use by another mount"
    open_stack([b(world.lowers[0])], b(other), b(world.root / "work2"), Features(userxattr=USERXATTR)).close()


def test_a_refused_mount_leaves_the_work_of_a_live_one_alone(world: World) -> None:
    world.open()
    put(world.building / "in use")
    refused([b(world.lowers[0])], b(world.upper), b(world.work), InUseError)
    assert (world.building / "in use").exists()


def test_a_lock_dies_with_its_process(world: World) -> None:
    code = (
        "import os, sys; from unionfs.overlay.stack import open_stack; from unionfs.overlay.features import Features;"
        "open_stack([os.fsencode(sys.argv[1])], os.fsencode(sys.argv[2]), os.fsencode(sys.argv[3]),"
        f" Features(userxattr={USERXATTR})); print('open', flush=True); os.kill(os.getpid(), 9)"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, world.lowers[0], world.upper, world.work],
        cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, text=True, check=False)
    assert (child.stdout, child.returncode) == ("open\n", -9)
    world.open()


def test_a_live_upper_may_be_the_lower_of_another_union(world: World) -> None:
    put(world.upper / "file", b"in use above")
    world.open()
    reader = Union(open_stack([b(world.upper)], None, None, Features(userxattr=USERXATTR)))
    try:
        found = reader.lookup(1, b"file")
        assert found is not None and reader.read(found[0].ino, 0, 100) == b"in use above"
    finally:
        reader.close()


# ---- the work directory ----

def test_work_is_cleaned_and_other_names_are_kept(world: World) -> None:
    put(world.building / "#1" / "deep" / "file")
    put(world.building / "#2", b"half a copy")
    (world.building / "link").symlink_to("/nowhere")
    put(world.work / "index" / "00fb", b"the kernel's")
    put(world.work / "other", b"mine")
    world.open()
    assert os.listdir(world.building) == []
    assert sorted(os.listdir(world.work)) == ["index", "other", "work"]
    assert (world.work / "index" / "00fb").read_bytes() == b"the kernel's"


def test_cleaning_work_does_not_follow_symlinks(world: World) -> None:
    put(world.root / "precious" / "file", b"keep")
    (world.building / "deep").mkdir(parents=True)
    (world.building / "deep" / "link").symlink_to(world.root / "precious")
    (world.building / "link").symlink_to(world.root / "precious")
    world.open()
    assert (world.root / "precious" / "file").read_bytes() == b"keep"


def test_cleaning_work_takes_whiteouts_and_closed_directories(world: World) -> None:
    whiteout(world.building / "#1" / "gone")
    (world.building / "#1" / "closed" / "inner").mkdir(parents=True)
    (world.building / "#1" / "closed").chmod(0)
    world.open()
    assert os.listdir(world.building) == []


def test_an_ordinary_user_cleans_closed_directories_too(world: World, root: None) -> None:
    """The owner may always open his directory; a crashed copy-up of one that has no r or x must not block the next mount."""
    (world.building / "closed" / "inner").mkdir(parents=True)
    (world.building / "closed").chmod(0)
    for path in (world.upper, world.work, world.building, world.building / "closed", world.building / "closed" / "inner"):
        os.chown(path, 1000, 1000)

    def attempt() -> list[str]:
        open_stack([b(world.lowers[0])], b(world.upper), b(world.work), Features(userxattr=True)).close()
        return os.listdir(world.building)

    assert as_user(attempt) == []


def test_a_work_that_says_incompat_is_refused_with_the_path_to_delete(world: World) -> None:
    put(world.building / "incompat" / "volatile" / "dirty")
    put(world.building / "leftover")
    text = refused([b(world.lowers[0])], b(world.upper), b(world.work))
    assert f"delete {world.building}/incompat/volatile" in text
    assert (world.building / "leftover").exists(), "nothing is cleaned when the mount is refused"


VOLATILE = Features(userxattr=USERXATTR, volatile=True, sync=Sync.NEVER)


def test_a_volatile_mount_leaves_the_kernel_s_mark_and_no_mount_follows_it(world: World) -> None:
    arguments = ([b(world.lowers[0])], b(world.upper), b(world.work))
    open_stack(*arguments, VOLATILE).close()
    incompat = world.building / "incompat"
    assert sorted(found.relative_to(incompat) for found in incompat.rglob("*")) == [Path("volatile"), Path("volatile/dirty")]
    modes = [stat.S_IMODE(found.stat().st_mode) for found in (incompat, incompat / "volatile", incompat / "volatile" / "dirty")]
    assert modes == ([0, 0, 0] if os.geteuid() == 0 else [0o700, 0o700, 0o600])
    for features in (VOLATILE, Features(userxattr=USERXATTR), Features(userxattr=USERXATTR, sync=Sync.NEVER)):
        with pytest.raises(LayerError, match=f"delete {incompat}/volatile"):
            open_stack(*arguments, features)
    shutil.rmtree(incompat / "volatile")
    open_stack(*arguments, Features(userxattr=USERXATTR)).close()


def test_never_syncing_alone_leaves_no_mark(world: World) -> None:
    open_stack([b(world.lowers[0])], b(world.upper), b(world.work), Features(userxattr=USERXATTR, sync=Sync.NEVER)).close()
    assert os.listdir(world.building) == []


def test_a_volatile_mount_of_an_ordinary_user_can_be_cleaned_by_him(world: World, root: None) -> None:
    for path in (world.upper, world.work, world.building):
        path.mkdir(exist_ok=True)
        os.chown(path, 1000, 1000)

    def attempt() -> list[str]:
        arguments = ([b(world.lowers[0])], b(world.upper), b(world.work))
        open_stack(*arguments, VOLATILE._replace(userxattr=True)).close()
        shutil.rmtree(world.building / "incompat" / "volatile")
        open_stack(*arguments, Features(userxattr=True)).close()
        return os.listdir(world.building)

    assert as_user(attempt) == []


def test_an_empty_incompat_is_no_reason_to_refuse(world: World) -> None:
    (world.building / "incompat").mkdir(parents=True)
    world.open()


def test_no_trial_mark_stays_on_the_work_directory(world: World) -> None:
    world.open()
    assert os.listxattr(world.building) == []
    assert stat.S_IMODE(world.building.stat().st_mode) == 0o700


# ---- how layers are named and seen ----

def test_paths_may_be_relative_symlinks_and_any_bytes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = b(world.root) + b"/lo\xffwer:,\\ \n"
    os.mkdir(odd)
    with open(odd + b"/file", "wb") as stream:
        stream.write(b"odd")
    (world.root / "up").symlink_to("upper")
    monkeypatch.chdir(world.root)
    union = Union(open_stack([b"lower0", odd], b"up", b"work/", Features(userxattr=USERXATTR)))
    try:
        assert union.lookup(1, b"file") is not None
        assert union.stack.lowers[1].where == odd
    finally:
        union.close()


def test_closing_gives_back_every_descriptor(world: World) -> None:
    with no_descriptor_left():
        view = world.open()
        put(world.lowers[0] / "sub" / "file", b"x")
        assert view.read(b"sub/file") == b"x"
        view.write(b"sub/file", b"y")
        view.unlink(b"sub/file")
        world.close(view)


def test_upper_and_work_seen_through_a_lower_are_empty(world: World) -> None:
    """--lower / with an upper somewhere below it."""
    put(world.lowers[0] / "file")
    upper, work = world.lowers[0] / "deep" / "upper", world.lowers[0] / "deep" / "work"
    upper.mkdir(parents=True)
    work.mkdir()
    put(upper / "added", b"through the union")
    view_stack = open_stack([b(world.lowers[0])], b(upper), b(work), Features(userxattr=USERXATTR))
    union = Union(view_stack)
    try:
        deep = union.lookup(1, b"deep")
        assert deep is not None
        for name in (b"upper", b"work"):
            found = union.lookup(deep[0].ino, name)
            assert found is not None
            assert [entry[0] for entry in union.entries(found[0].ino, 0)] == [b".", b".."]
            assert union.lookup(found[0].ino, b"added") is None
        assert union.lookup(1, b"added") is not None
    finally:
        union.close()


def test_the_same_directory_may_be_two_lowers(world: World, lowers_untouched: Callable[[], None]) -> None:
    put(world.lowers[0] / "sub" / "file", b"twice")
    world.lowers = [world.lowers[0], world.lowers[0]]
    lowers_untouched()
    view = world.open()
    assert view.names(b"sub") == [b"file"]
    view.unlink(b"sub/file")
    assert view.names(b"sub") == []
    view = world.reopen(view)
    assert view.names(b"sub") == []


def test_500_lowers_work(world: World) -> None:
    lowers = []
    for number in range(500):
        put(world.root / "many" / str(number) / f"file{number}", b"%d" % number)
        lowers.append(world.root / "many" / str(number))
    world.lowers = lowers
    view = world.open()
    assert len(view.names()) == 500
    assert view.read(b"file499") == b"499"


def test_as_root_lowers_are_read_only_clones_that_no_path_leads_to(world: World, root: None) -> None:
    view = world.open()
    layer = view.union.stack.lowers[0]
    assert layer.private
    assert os.fstatvfs(layer.root_fd).f_flag & os.ST_RDONLY
    assert mounts.mount_id(layer.root_fd) not in {mount.mount_id for mount in mounts.mountinfo()}


def test_as_root_reading_leaves_the_access_times_of_lowers_alone(world: World, root: None) -> None:
    put(world.lowers[0] / "dir" / "file", b"x")
    paths = (world.lowers[0] / "dir" / "file", world.lowers[0] / "dir")
    for path in paths:
        os.utime(path, ns=(1_000_000_000, 2_000_000_000))
    view = world.open()
    assert (view.names(b"dir"), view.read(b"dir/file")) == ([b"file"], b"x")
    assert [path.stat().st_atime_ns for path in paths] == [1_000_000_000] * 2


def test_a_read_only_stack_needs_no_upper(world: World, lowers_untouched: Callable[[], None]) -> None:
    put(world.lowers[0] / "file", b"x")
    lowers_untouched()
    before = fingerprint(world.root)
    view = world.open(writable=False)
    assert view.read(b"file") == b"x"
    assert view.union.stack.upper is None
    assert fingerprint(world.root) == before


@pytest.mark.parametrize("userxattr", [False, True])
def test_the_namespace_of_the_marks_is_the_one_asked_for(world: World, root: None, userxattr: bool) -> None:
    for layer in world.lowers:
        put(layer / "sub" / layer.name)
    os.setxattr(world.lowers[0] / "sub", "user.overlay.opaque", b"y")
    view = world.open(userxattr=userxattr)
    assert view.names(b"sub") == ([b"lower0"] if userxattr else [b"lower0", b"lower1"])


def test_marks_are_written_in_the_namespace_of_the_mount(world: World) -> None:
    put(world.lowers[0] / "sub" / "file")
    view = world.open()
    view.unlink(b"sub/file")
    view.rmdir(b"sub")
    view.mkdir(b"sub")
    assert [name for name in os.listxattr(world.upper / "sub") if "overlay" in name] == [PREFIX + "opaque"]
    mark(world.upper / "sub", "opaque", b"y")
