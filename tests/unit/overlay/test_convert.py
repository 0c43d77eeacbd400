"""Converting an upper: what is refused, and what a kill leaves. That the targets read the result is in tests/mount."""

from __future__ import annotations

import os
import random
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.chaos import fill, stir
from tests.support.mounts import Layers, Mounts, our_program
from tests.support.tree import Snapshot, difference, fingerprint
from tests.support.users import USER, as_user
from tests.unit.overlay.world import USERXATTR, View, World, mark, no_descriptor_left, put, whiteout
from unionfs.errors import InUseError, LayerError
from unionfs.linux import files
from unionfs.overlay.check import check
from unionfs.overlay.convert import Target, convert
from unionfs.overlay.diff import changes
from unionfs.overlay.features import Features, Redirect
from unionfs.overlay.make import Caller
from unionfs.overlay.owners import CONTAINERS_STAT

pytestmark = pytest.mark.skipif(USERXATTR, reason="redirects, whiteouts and trusted.* attributes: needs root")

EVERYTHING = Features(metacopy=True)
READ_AS: dict[Target, dict[str, Any]] = {
    Target.KERNEL: {"metacopy": True},
    Target.USERXATTR: {"userxattr": True, "redirect": Redirect.NOFOLLOW},
    Target.FUSE_OVERLAYFS: {"whfiles": True},
    Target.OCI: {"whfiles": True},
}  # fmt: skip


def converted(world: World, target: Target, **features: Any) -> None:
    with no_descriptor_left():
        convert(
            os.fsencode(world.upper), [os.fsencode(path) for path in world.lowers], target, EVERYTHING._replace(**features),
            work=os.fsencode(world.work),
        )  # fmt: skip


def shown(world: World, **features: Any) -> Snapshot:
    view = world.open(**features)
    found = view.snapshot()
    world.close(view)
    return found


def shown_by_all_marks(world: World) -> Snapshot:
    """By a reader that knows every encoding, and writes nothing: upper is a lower."""
    view = world.open_lowers([world.upper, *world.lowers], whfiles=True, metacopy=True)
    found = view.snapshot()
    world.close(view)
    return found


def without_new_times(found: Snapshot, before: Snapshot, world: World) -> Snapshot:
    """With the times of *before* where they are noted for later, on directories and on files with all their data still below."""
    at = {path: os.path.join(os.fsencode(world.upper), path) for path in found}
    noted = {path for path in found if os.path.exists(at[path]) and any(name.endswith(".convert.times") for name in os.listxattr(at[path]))}
    return {path: replace(entry, mtime=before[path].mtime) if path in noted and path in before else entry for path, entry in found.items()}


@pytest.fixture
def filled(world: World) -> World:
    put(world.lowers[0] / "dir" / "one", b"1")
    put(world.lowers[1] / "dir" / "sub" / "two", b"2" * 5000)
    put(world.lowers[1] / "other" / "three", b"3")
    return world


# ---- what is refused ----


def a_name_like_a_whiteout_file(world: World) -> None:
    put(world.upper / "dir" / ".wh.one")


def a_name_like_a_whiteout_file_that_will_be_copied_up(world: World) -> None:
    put(world.lowers[1] / "dir" / "sub" / ".wh.x")
    moved(world)


def an_attribute_of_an_overlay_inside(world: World) -> None:
    os.setxattr(put(world.upper / "dir" / "new"), "trusted.overlay.overlay.origin", b"x")


def an_attribute_of_an_ordinary_users_overlay_inside(world: World) -> None:
    os.setxattr(put(world.upper / "dir" / "new"), "user.overlay.origin", b"x")


def an_attribute_of_another_program_on_the_root(world: World) -> None:
    os.setxattr(world.upper, "user.fuseoverlayfs.origin", b"x")


def a_long_name_that_is_hidden(world: World) -> None:
    put(world.lowers[0] / ("n" * 253))
    whiteout(world.upper / ("n" * 253))


def a_metacopy_without_data(world: World) -> None:
    mark(put(world.upper / "file", bytes(10)), "metacopy", b"")


def an_invalid_redirect(world: World) -> None:
    put(world.upper / "dir" / "new")
    mark(world.upper / "dir", "redirect", b"a/b")


def moved(world: World) -> None:
    view = world.open()
    view.rename(b"dir", b"moved")
    world.close(view)


Build = Callable[[World], None]
REFUSED: dict[Build, set[Target]] = {
    a_name_like_a_whiteout_file: {Target.FUSE_OVERLAYFS, Target.OCI},
    a_name_like_a_whiteout_file_that_will_be_copied_up: {Target.FUSE_OVERLAYFS, Target.OCI},
    an_attribute_of_an_overlay_inside: {Target.USERXATTR, Target.FUSE_OVERLAYFS, Target.OCI},
    an_attribute_of_an_ordinary_users_overlay_inside: {Target.USERXATTR, Target.FUSE_OVERLAYFS, Target.OCI},
    an_attribute_of_another_program_on_the_root: {Target.FUSE_OVERLAYFS, Target.OCI},
    a_long_name_that_is_hidden: {Target.OCI},
    a_metacopy_without_data: set(Target),
    an_invalid_redirect: set(Target),
}


@pytest.mark.parametrize("target", Target, ids=lambda target: target.value)
@pytest.mark.parametrize("build", REFUSED, ids=lambda build: build.__name__)
def test_what_the_target_cannot_have_is_refused_before_anything_changes(filled: World, build: Build, target: Target) -> None:
    build(filled)
    before = [fingerprint(path) for path in (filled.upper, *filled.lowers)]
    if target in REFUSED[build]:
        with pytest.raises(LayerError) as refusal:
            converted(filled, target)
        assert os.fspath(filled.upper) in str(refusal.value) and "\n" not in str(refusal.value)
        assert [fingerprint(path) for path in (filled.upper, *filled.lowers)] == before
    else:
        old = shown(filled, **READ_AS[Target.KERNEL])
        converted(filled, target)
        assert difference(old, shown(filled, **READ_AS[target]), ("before", "after")) == ""


def test_an_opaque_root_is_for_those_who_know_it(filled: World) -> None:
    put(filled.upper / ".wh..wh..opq")
    with pytest.raises(LayerError, match="root is opaque"):
        converted(filled, Target.KERNEL, whfiles=True)
    converted(filled, Target.OCI, whfiles=True)
    converted(filled, Target.FUSE_OVERLAYFS, whfiles=True)
    assert os.listdir(filled.upper) == []
    assert shown(filled, whfiles=True).keys() == {b"."}


def test_owners_in_attributes_are_for_who_reads_them(filled: World) -> None:
    filled.close(filled.open(stat_attribute=CONTAINERS_STAT))
    with pytest.raises(LayerError, match="owners and modes"):
        converted(filled, Target.OCI)
    converted(filled, Target.FUSE_OVERLAYFS)


def test_an_upper_in_use_is_not_touched(filled: World, mounts: Mounts) -> None:
    view = filled.open()
    with pytest.raises(InUseError):
        converted(filled, Target.OCI)
    filled.close(view)
    mounts.kernel(Layers(tuple(filled.lowers), filled.upper, filled.work))
    with pytest.raises(InUseError, match="kernel"):
        converted(filled, Target.OCI)


# ---- what comes of it ----


def test_an_oci_layer_has_no_attributes_and_no_devices(filled: World) -> None:
    view = filled.open(metacopy=True)
    view.chmod(b"other/three", 0o600)
    view.rename(b"dir", b"moved")
    view.unlink(b"moved/one")
    filled.close(view)
    converted(filled, Target.OCI)
    found = {}
    for path in sorted(filled.upper.rglob("*")):
        assert not os.listxattr(path, follow_symlinks=False)
        found[str(path.relative_to(filled.upper))] = path.read_bytes() if path.is_file() else None
    assert found == {".wh.dir": b"", "moved": None, "moved/sub": None, "moved/sub/two": b"2" * 5000, "other": None, "other/three": b"3"}


def test_the_names_of_one_file_are_converted_as_one(filled: World) -> None:
    view = filled.open(metacopy=True)
    view.chmod(b"dir/one", 0o600)
    view.link(b"dir/one", b"dir/again")
    view.link(b"dir/one", b"other/again")
    filled.close(view)
    before = shown(filled, metacopy=True)
    converted(filled, Target.OCI)
    found = shown(filled, whfiles=True)
    assert found[b"dir/again"].nlink == 3 and difference(before, found, ("before", "after")) == ""


@pytest.mark.parametrize("target", [Target.USERXATTR, Target.FUSE_OVERLAYFS, Target.OCI], ids=lambda target: target.value)
def test_marks_where_they_mean_nothing_do_not_become_anybodys_data(filled: World, target: Target) -> None:
    file = put(filled.upper / "file")
    for name in ("opaque", "impure", "nlink", "unknown"):
        mark(file, name)
    converted(filled, target)
    assert [name for name in os.listxattr(file) if name.startswith("trusted")] == []


def test_an_opaque_mark_is_kept_only_where_it_hides_something(filled: World) -> None:
    for name in ("dir", "new"):
        put(filled.upper / name / "file")
        mark(filled.upper / name, "opaque")
    converted(filled, Target.OCI)
    assert sorted(os.listdir(filled.upper / "dir")) == [".wh..wh..opq", "file"]
    assert os.listdir(filled.upper / "new") == ["file"]


def test_whiteouts_by_attribute_become_what_an_upper_can_have(filled: World) -> None:
    mark(put(filled.upper / "dir" / "one"), "whiteout")
    mark(filled.upper / "dir", "opaque", b"x")
    converted(filled, Target.KERNEL)
    st = (filled.upper / "dir" / "one").lstat()
    assert stat.S_ISCHR(st.st_mode) and st.st_rdev == 0
    assert os.listxattr(filled.upper / "dir") == []


def test_a_directory_beside_its_own_whiteout_file_becomes_opaque(filled: World) -> None:
    put(filled.upper / "dir" / "new")
    put(filled.upper / ".wh.dir")
    put(filled.upper / "other" / "three", b"again")
    put(filled.upper / "other" / ".wh.three")
    old = shown(filled, whfiles=True)
    converted(filled, Target.KERNEL, whfiles=True)
    assert sorted(os.listdir(filled.upper)) == ["dir", "other"]
    assert difference(old, shown(filled), ("before", "after")) == ""


def test_converting_twice_changes_nothing_more_and_there_is_a_way_back(filled: World) -> None:
    view = filled.open(metacopy=True)
    view.rename(b"dir", b"other/dir")
    view.chmod(b"other/three", 0o600)
    view.unlink(b"other/dir/one")
    filled.close(view)
    before = shown(filled, metacopy=True)
    for target in Target:
        told = changes(os.fsencode(filled.upper), [os.fsencode(path) for path in filled.lowers], EVERYTHING)
        converted(filled, target)
        once = fingerprint(filled.upper)
        as_read = Features(**READ_AS[target])
        assert changes(os.fsencode(filled.upper), [os.fsencode(path) for path in filled.lowers], as_read) == told
        assert difference(before, shown(filled, **READ_AS[target]), ("before", target.value)) == ""
        converted(filled, target, **READ_AS[target])
        assert fingerprint(filled.upper) == once
        converted(filled, Target.KERNEL, **READ_AS[target])
        assert difference(before, shown(filled, metacopy=True), ("before", f"back from {target.value}")) == ""


# ---- kills ----


@pytest.fixture
def stirred(world: World) -> Iterator[Callable[[int], random.Random]]:
    def make(seed: int) -> random.Random:
        rng = random.Random(seed)
        for lower in world.lowers:
            fill(lower, rng)
        view = world.open(metacopy=True)
        assert stir(view, rng, 100) > 5
        world.close(view)
        return rng

    yield make


CHANGES = ("setxattr", "removexattr", "unlink", "rmdir", "mkdir", "mknod", "symlink", "rename", "open", "chmod", "chown", "ftruncate")


def dies_after(calls: int, act: Callable[[], None]) -> bool:
    """Run *act* in a child that is gone before its *calls*-th change to the disk; whether it was."""
    pid = os.fork()
    if pid == 0:
        left = [calls]

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **named: Any) -> Any:
                if real is not os_open or arguments[1] & os.O_CREAT:
                    left[0] -= 1
                    if not left[0]:
                        os._exit(9)
                return real(*arguments, **named)

            return call

        os_open = os.open
        for name in CHANGES:
            setattr(os, name, counted(getattr(os, name)))
        for name in ("renameat2", "utimens", "copy_data"):
            setattr(files, name, counted(getattr(files, name)))
        try:
            act()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, 9)
    return status == 9


@pytest.mark.parametrize("target", [Target.USERXATTR, Target.FUSE_OVERLAYFS, Target.OCI], ids=lambda target: target.value)
@pytest.mark.parametrize("seed", [0, 1, 2, 5])
def test_killed_at_any_moment_it_shows_the_same_and_can_be_finished(
    world: World, stirred: Callable[[int], random.Random], target: Target, seed: int
) -> None:
    rng = stirred(seed)
    before = shown_by_all_marks(world)
    lowers = [fingerprint(path) for path in world.lowers]
    kills = 0
    while dies_after(rng.randint(12, 40), lambda: converted(world, target)):
        kills += 1
        now = without_new_times(shown_by_all_marks(world), before, world)
        assert difference(before, now, ("before", f"after kill {kills}")) == ""
        assert kills < 400
    assert kills > 0
    assert difference(before, shown(world, **READ_AS[target]), ("before", "after")) == ""
    assert [fingerprint(path) for path in world.lowers] == lowers
    if target is Target.USERXATTR:
        places = os.fsencode(world.upper), [os.fsencode(path) for path in world.lowers], os.fsencode(world.work)
        assert check(*places, Features(userxattr=True)) == []


def test_what_was_begun_has_to_be_finished_first(filled: World) -> None:
    moved(filled)
    assert dies_after(20, lambda: converted(filled, Target.OCI))
    with pytest.raises(LayerError, match="conversion to oci"):
        converted(filled, Target.KERNEL)
    with pytest.raises(LayerError, match="unionfs convert"):
        filled.open()
    places = os.fsencode(filled.upper), [os.fsencode(path) for path in filled.lowers], os.fsencode(filled.work)
    assert any("conversion" in found.text for found in check(*places))
    converted(filled, Target.OCI)


def is_going_on(world: World) -> bool:
    return any(name.endswith(".convert") for name in os.listxattr(world.upper))


def test_a_killed_command_is_finished_by_the_same_command(world: World, stirred: Callable[[int], random.Random]) -> None:
    rng = stirred(7)
    before = shown_by_all_marks(world)
    lowers = [word for path in world.lowers for word in ("--lower", os.fspath(path))]
    command = [*our_program(), "convert", os.fspath(world.upper), *lowers, "--to", "oci"]
    for _ in range(5):
        with subprocess.Popen(command) as process:
            while process.poll() is None and not is_going_on(world):
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.01))
            process.send_signal(signal.SIGKILL)
        now = without_new_times(shown_by_all_marks(world), before, world)
        assert difference(before, now, ("before", "after a kill")) == ""
        if not is_going_on(world):  # it was faster
            break
    else:
        assert subprocess.run(command, timeout=30, check=True).returncode == 0
    shutil.rmtree(world.root / ".upper.convert", ignore_errors=True)  # of one that was killed when all was done
    assert sorted(path.name for path in Path(world.root).iterdir()) == ["lower0", "lower1", "upper", "work"]
    assert difference(before, shown(world, whfiles=True), ("before", "after")) == ""


class OwnersOnly(View):
    """A user who does not take his own permissions away: what he may not read nobody can bring up for him."""

    def chmod(self, path: bytes, mode: int) -> None:
        super().chmod(path, mode | 0o700)


@pytest.fixture
def owned(world: World) -> World:
    """A world of the user's own, and below it what a user may have in a lower."""
    for path in (world.root, *world.lowers, world.upper, world.work):
        os.chown(path, USER, USER)
    for directory in ("shut", "shut/inner", "replaced", "readonly"):
        put(world.lowers[0] / directory / "gone", b"1")
        put(world.lowers[0] / directory / "file", b"2")
    for path in world.lowers[0].rglob("*"):
        os.chown(path, USER, USER)
    return world


def converted_by_user(world: World, target: Target) -> None:
    lowers = [os.fsencode(path) for path in world.lowers]
    as_user(lambda: convert(os.fsencode(world.upper), lowers, target, Features(userxattr=True), work=os.fsencode(world.work)))


@pytest.mark.parametrize("target", [Target.OCI, Target.FUSE_OVERLAYFS])
def test_an_ordinary_user_may_convert_what_its_modes_close_to_him(owned: World, target: Target) -> None:
    def change() -> None:
        view = owned.open(userxattr=True)
        for directory in (b"shut/inner", b"shut", b"replaced", b"readonly"):
            view.unlink(directory + b"/gone")
            view.chmod(directory + b"/file", 0)
        view.unlink(b"replaced/file")
        view.rmdir(b"replaced")
        view.mkdir(b"replaced", caller=Caller(USER, USER))
        view.make_file(b"replaced/new", b"3", mode=0o444, caller=Caller(USER, USER))
        for directory in (b"shut/inner", b"shut", b"replaced", b"readonly"):
            view.chmod(directory, 0o555 if directory == b"readonly" else 0)
        owned.close(view)
        owned.upper.chmod(0o500)

    as_user(change)
    before = shown_by_all_marks(owned)
    converted_by_user(owned, target)
    assert difference(before, shown_by_all_marks(owned), ("before", target.value)) == ""
    assert not [path for path in owned.upper.rglob("*") for name in os.listxattr(path) if name.startswith("user.overlay.")]


def test_what_is_another_s_is_named_before_anything_is_changed(owned: World) -> None:
    foreign = owned.upper / "shut" / "file"

    def change() -> None:
        view = owned.open(userxattr=True)
        view.unlink(b"shut/gone")
        owned.close(view)

    as_user(change)
    put(foreign)
    os.setxattr(foreign, "user.overlay.origin", b"")
    foreign.chmod(0)
    before = fingerprint(owned.upper)
    with pytest.raises(PermissionError) as failure:
        converted_by_user(owned, Target.OCI)
    assert str(foreign) in str(failure.value) and fingerprint(owned.upper) == before


def test_an_ordinary_user_may_check_and_convert(scratch: Path) -> None:
    home = scratch / "home"
    home.mkdir()
    os.chown(home, USER, USER)

    def act() -> list[str]:
        world, rng = World(home), random.Random(3)
        for lower in world.lowers:
            fill(lower, rng)
        view = world.open(userxattr=True, copy_limit=1 << 20)
        stir(OwnersOnly(view.union), rng, 100)
        before = view.snapshot()
        world.close(view)
        told, source = [], Target.USERXATTR
        for target in (Target.OCI, Target.FUSE_OVERLAYFS, Target.USERXATTR):
            features = Features(**{**READ_AS[source], "userxattr": True})
            places = os.fsencode(world.upper), [os.fsencode(path) for path in world.lowers]
            told += [found.text for found in check(*places, os.fsencode(world.work), features)]
            convert(*places, target, features)
            told.append(difference(before, shown(world, **{**READ_AS[target], "userxattr": True}), ("before", target.value)))
            source = target
        return told

    assert set(as_user(act)) == {""}
