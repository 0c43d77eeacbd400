"""What is wrong with an upper, and what a repair does about it."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.chaos import Disk, fill, stir
from tests.support.mounts import Layers, Mounts
from tests.support.tree import Snapshot, difference, fingerprint
from tests.unit.overlay.world import PREFIX, USERXATTR, World, mark, no_descriptor_left, put, whiteout
from unionfs.errors import InUseError
from unionfs.overlay.check import Finding, Kind, check
from unionfs.overlay.features import Features, Redirect

pytestmark = pytest.mark.skipif(USERXATTR, reason="redirects, whiteouts and trusted.* attributes: needs root")


def told(world: World, *, repair: bool = False, **features: Any) -> list[Finding]:
    """What is found. Without a repair nothing on disk has changed; nothing stays open, and the lowers are never written."""
    lowers = [os.fsencode(path) for path in world.lowers]
    before = [fingerprint(path) for path in (*world.lowers, world.upper, world.work)]
    with no_descriptor_left():
        found = check(os.fsencode(world.upper), lowers, os.fsencode(world.work), Features(**features), repair=repair)
    after = [fingerprint(path) for path in (*world.lowers, world.upper, world.work)]
    assert after[: len(lowers)] == before[: len(lowers)]
    assert repair or after == before
    return found


def wrong(findings: list[Finding]) -> list[tuple[Kind, str]]:
    return [(found.kind, os.path.basename(os.fsdecode(found.path))) for found in findings if not found.harmless]


def shown(world: World) -> Snapshot:
    view = world.open(metacopy=True)
    try:
        return view.snapshot()
    finally:
        world.close(view)


@pytest.fixture
def filled(world: World) -> World:
    put(world.lowers[0] / "dir" / "one", b"1")
    put(world.lowers[1] / "dir" / "two", b"2" * 5000)
    put(world.lowers[1] / "other" / "three", b"3")
    return world


# ---- each thing that can be wrong ----


def redirect_to_nothing(world: World) -> None:
    put(world.upper / "moved" / "new")
    mark(world.upper / "moved", "redirect", b"/gone")
    mark(world.upper, "impure")


def redirect_to_nothing_over_a_lower(world: World) -> None:
    put(world.upper / "dir" / "new")
    mark(world.upper / "dir", "redirect", b"gone")
    mark(world.upper, "impure")


def redirect_that_is_none(world: World) -> None:
    put(world.upper / "dir" / "new")
    whiteout(world.upper / "dir" / "one")
    mark(world.upper / "dir", "redirect", b"/a//b")
    mark(world.upper, "impure")


def whiteout_in_new_directory(world: World) -> None:
    whiteout(world.upper / "new" / "inside" / "nothing")


def whiteout_in_opaque_directory(world: World) -> None:
    whiteout(world.upper / "dir" / "one")
    mark(world.upper / "dir", "opaque")


def opaque_of_no_meaning(world: World) -> None:
    put(world.upper / "dir" / "new")
    mark(world.upper / "dir", "opaque", b"yes")


def opaque_file(world: World) -> None:
    mark(put(world.upper / "file"), "opaque")


def two_names_of_an_opaque_file(world: World) -> None:
    mark(put(world.upper / "file"), "opaque")
    os.link(world.upper / "file", world.upper / "second")


def whiteout_mark_on_a_directory(world: World) -> None:
    put(world.upper / "dir" / "new")
    mark(world.upper / "dir", "whiteout")


def metacopy_directory(world: World) -> None:
    put(world.upper / "dir" / "new")
    mark(world.upper / "dir", "metacopy", b"")


def pure_with_copies(world: World) -> None:
    view = world.open()
    view.chmod(b"dir/one", 0o600)
    world.close(view)
    os.removexattr(world.upper / "dir", PREFIX + "impure")


def leftover(world: World) -> None:
    put(world.work / "work" / "#1" / "half", b"x")


Damage = Callable[[World], None]
REPAIRABLE: dict[Damage, list[tuple[Kind, str]]] = {
    redirect_to_nothing: [(Kind.REDIRECT, "moved")],
    redirect_to_nothing_over_a_lower: [(Kind.REDIRECT, "dir")],
    whiteout_in_new_directory: [(Kind.WHITEOUT, "nothing")],
    whiteout_in_opaque_directory: [(Kind.WHITEOUT, "one")],
    opaque_of_no_meaning: [(Kind.OPAQUE, "dir")],
    two_names_of_an_opaque_file: [(Kind.MISPLACED, "file"), (Kind.MISPLACED, "second")],
    opaque_file: [(Kind.MISPLACED, "file")],
    whiteout_mark_on_a_directory: [(Kind.MISPLACED, "dir")],
    metacopy_directory: [(Kind.MISPLACED, "dir")],
    pure_with_copies: [(Kind.IMPURE, "dir")],
    leftover: [(Kind.WORK, "#1")],
}


@pytest.mark.parametrize("damage", REPAIRABLE, ids=lambda damage: damage.__name__)
def test_what_means_nothing_is_repaired_and_nothing_else_changes(filled: World, damage: Damage) -> None:
    damage(filled)
    findings = told(filled)
    assert wrong(findings) == REPAIRABLE[damage] and all(found.repairable for found in findings)
    before = None if damage is leftover else shown(filled)  # opening a union removes leftovers
    assert told(filled, repair=True) == findings
    assert told(filled) == []
    assert told(filled, repair=True) == []
    if before is not None:
        assert difference(before, shown(filled), ("before", "after")) == ""


def test_a_directory_with_an_invalid_redirect_can_be_entered_again(filled: World) -> None:
    redirect_that_is_none(filled)
    assert filled.open().names() == [b"dir", b"other"]
    filled.close_all()
    with pytest.raises(OSError, match="Invalid"):
        shown(filled)
    filled.close_all()
    assert wrong(told(filled, repair=True)) == [(Kind.REDIRECT, "dir"), (Kind.WHITEOUT, "one")]
    assert told(filled) == []
    assert shown(filled)[b"dir"].listing == (b"new",)


def metacopy_of_nothing(world: World) -> None:
    mark(put(world.upper / "file", bytes(10)), "metacopy", b"")


def metacopy_with_bad_mark(world: World) -> None:
    mark(put(world.upper / "dir" / "one", bytes(1)), "metacopy", b"\0\0")


def metacopy_redirected_to_nothing(world: World) -> None:
    file = put(world.upper / "file", bytes(10))
    mark(file, "metacopy", b"")
    mark(file, "redirect", b"/gone")
    mark(world.upper, "impure")


def two_of_one(world: World) -> None:
    for name in ("first", "second"):
        (world.upper / name).mkdir()
        mark(world.upper / name, "redirect", b"/dir")
    mark(world.upper, "impure")


def bad_redirect_below(world: World) -> None:
    mark(world.lowers[0] / "dir", "redirect", b"a/b")
    put(world.upper / "dir" / "new")


def volatile(world: World) -> None:
    put(world.work / "work" / "incompat" / "volatile" / "dirty")


def other_namespace(world: World) -> None:
    put(world.upper / "dir" / "new")
    os.setxattr(world.upper / "dir", "user.fuseoverlayfs.opaque", b"y")


def whiteout_file_of_another(world: World) -> None:
    put(world.upper / "dir" / ".wh.one")


def opaque_file_of_another(world: World) -> None:
    put(world.upper / "dir" / ".wh..wh..opq")


def opaque_device_of_another(world: World) -> None:
    whiteout(world.upper / "dir" / ".wh..opq")


def whiteout_by_attribute(world: World) -> None:
    mark(put(world.upper / "dir" / "one"), "whiteout")
    mark(world.upper / "dir", "opaque", b"x")


LEFT: dict[Damage, list[tuple[Kind, str]]] = {
    metacopy_of_nothing: [(Kind.METACOPY, "file")],
    metacopy_with_bad_mark: [(Kind.METACOPY, "one")],
    metacopy_redirected_to_nothing: [(Kind.METACOPY, "file")],
    two_of_one: [(Kind.REDIRECT, "second")],
    bad_redirect_below: [(Kind.REDIRECT, "dir")],
    volatile: [(Kind.WORK, "volatile")],
    other_namespace: [(Kind.ENCODING, "dir")],
    whiteout_file_of_another: [(Kind.ENCODING, ".wh.one")],
    opaque_device_of_another: [(Kind.ENCODING, ".wh..opq")],
    opaque_file_of_another: [(Kind.ENCODING, ".wh..wh..opq")],
    whiteout_by_attribute: [(Kind.WHITEOUT, "one")],
}


@pytest.mark.parametrize("damage", LEFT, ids=lambda damage: damage.__name__)
def test_what_might_lose_something_is_told_and_left(filled: World, damage: Damage) -> None:
    damage(filled)
    findings = told(filled)
    assert wrong(findings) == LEFT[damage] and not any(found.repairable for found in findings)
    before = fingerprint(filled.upper), fingerprint(filled.work)
    assert told(filled, repair=True) == findings
    assert (fingerprint(filled.upper), fingerprint(filled.work)) == before


def test_the_marks_of_all_programs_are_as_good_as_our_own_with_whfiles(filled: World) -> None:
    for damage in (other_namespace, whiteout_file_of_another, opaque_file_of_another, opaque_device_of_another):
        damage(filled)
    assert told(filled, whfiles=True) == []


def test_names_and_attributes_that_hide_nothing_may_be_anybodys(filled: World) -> None:
    put(filled.upper / ".wh.unknown")
    put(filled.upper / "dir" / "new")
    os.setxattr(filled.upper / "dir", "user.overlay.opaque", b"y")
    found = told(filled)
    assert len(found) == 2 and wrong(found) == []


def test_an_origin_that_is_gone_is_only_told(filled: World) -> None:
    view = filled.open()
    view.write(b"dir/one", b"x")
    filled.close(view)
    copy = filled.root / "copy"
    shutil.copytree(filled.lowers[0], copy)
    shutil.rmtree(filled.lowers[0])
    copy.rename(filled.lowers[0])
    found = told(filled)
    assert {finding.kind for finding in found} == {Kind.ORIGIN} and wrong(found) == []


def test_with_userxattr_a_redirect_is_what_the_mount_refuses(filled: World) -> None:
    put(filled.upper / "dir" / "new")
    os.setxattr(filled.upper / "dir", "user.overlay.redirect", b"other")
    file = put(filled.upper / "file", b"0")
    os.setxattr(file, "user.overlay.metacopy", b"")
    assert wrong(told(filled, userxattr=True)) == [(Kind.REDIRECT, "dir"), (Kind.METACOPY, "file")]


# ---- what the mount's own options do not read ----


def test_files_whose_data_are_below_need_metacopy_and_are_told_once(filled: World) -> None:
    view = filled.open(metacopy=True)
    for name in (b"dir/one", b"dir/two", b"other/three"):
        view.chmod(name, 0o600)
    filled.close(view)
    assert told(filled, metacopy=True) == []
    (found,) = told(filled)
    assert (found.kind, found.harmless, found.repairable) == (Kind.METACOPY, False, False)
    assert found.path == os.fsencode(filled.upper / "dir" / "one")
    assert "2 more" in found.text and found.text.endswith("mount with metacopy=on")
    assert told(filled, repair=True) == [found]
    view = filled.open()
    with pytest.raises(PermissionError):
        view.read(b"dir/one")


def test_files_whose_data_are_in_a_data_only_layer_need_no_option(filled: World) -> None:
    data = filled.root / "data"
    put(data / "blob", b"contents")
    mark(put(filled.lowers[0] / "file", bytes(8)), "metacopy", b"")
    mark(filled.lowers[0] / "file", "redirect", b"/blob")
    view = filled.open(metacopy=True, data=[data])
    view.chmod(b"file", 0o600)
    filled.close(view)
    view = filled.open(data=[data])
    assert view.read(b"file") == b"contents"
    filled.close(view)
    places = os.fsencode(filled.upper), [os.fsencode(path) for path in filled.lowers]
    assert check(*places, os.fsencode(filled.work), data=[os.fsencode(data)]) == []
    (found,) = check(*places, os.fsencode(filled.work))
    assert found.text == "its data are in no lower directory"


def test_a_metacopy_of_upper_reaches_a_data_only_layer_through_a_lower_only(filled: World) -> None:
    put(filled.root / "data" / "blob", b"contents")
    mark(put(filled.upper / "file", bytes(8)), "metacopy", b"")
    mark(filled.upper / "file", "redirect", b"/blob")
    mark(filled.upper, "impure")
    lowers, data = [os.fsencode(path) for path in filled.lowers], os.fsencode(filled.root / "data")
    (found,) = check(os.fsencode(filled.upper), lowers, os.fsencode(filled.work), Features(metacopy=True), data=[data])
    assert found.text == "its data are in no lower directory"


def test_renamed_directories_need_redirects_to_be_followed_and_are_told_once(filled: World) -> None:
    view = filled.open()
    for old, new in ((b"dir", b"a"), (b"other", b"b")):
        view.rename(old, new)
    filled.close(view)
    for redirect in (Redirect.ON, Redirect.FOLLOW):
        assert told(filled, redirect=redirect) == []
    (found,) = told(filled, redirect=Redirect.NOFOLLOW)
    assert (found.kind, found.harmless, found.repairable) == (Kind.REDIRECT, False, False)
    assert found.path == os.fsencode(filled.upper / "a")
    assert "1 more" in found.text and found.text.endswith("mount with redirect_dir=follow")
    view = filled.open(redirect=Redirect.NOFOLLOW)
    with pytest.raises(PermissionError):
        view.names(b"a")


def test_an_upper_without_a_work_directory_is_checked_and_repaired_too(filled: World) -> None:
    whiteout_in_new_directory(filled)
    places = os.fsencode(filled.upper), [os.fsencode(path) for path in filled.lowers]
    for repair in (False, True):
        assert wrong(check(*places, None, repair=repair)) == [(Kind.WHITEOUT, "nothing")]
    assert told(filled) == []


# ---- who may be there ----


def test_a_live_upper_is_read_but_not_repaired(filled: World) -> None:
    view = filled.open()
    view.mkdir(b"new")
    whiteout(filled.upper / "new" / "nothing")
    put(filled.work / "work" / "#orphan")
    assert wrong(told(filled)) == [(Kind.WHITEOUT, "nothing")]
    with pytest.raises(InUseError):
        told(filled, repair=True)


def test_an_upper_of_the_kernels_overlayfs_is_not_repaired(filled: World, mounts: Mounts) -> None:
    mounts.kernel(Layers(tuple(filled.lowers), filled.upper, filled.work))
    with pytest.raises(InUseError, match="kernel"):
        told(filled, repair=True)


# ---- nothing is wrong with what we and the kernel write ----

EVERYTHING = "redirect_dir=on,metacopy=on,index=on,xino=off"


@pytest.fixture
def stirred(world: World, mounts: Mounts) -> Iterator[Callable[[int, bool], None]]:
    def make(seed: int, by_kernel: bool) -> None:
        rng = random.Random(seed)
        for number, lower in enumerate(world.lowers):
            fill(lower, rng, marks=number < len(world.lowers) - 1)
        if by_kernel:
            mount = mounts.kernel(Layers(tuple(world.lowers), world.upper, world.work), options=EVERYTHING)
            assert stir(Disk(mount.target), rng, 80) > 5
            assert mount.unmount() == []
        else:
            view = world.open(metacopy=True)
            assert stir(view, rng, 80) > 5
            world.close(view)

    yield make


@pytest.mark.parametrize("by_kernel", [False, True], ids=["ours", "kernel"])
@pytest.mark.parametrize("seed", range(15))
def test_an_upper_that_was_unmounted_is_clean(world: World, stirred: Callable[[int, bool], None], seed: int, by_kernel: bool) -> None:
    stirred(seed, by_kernel)
    assert wrong(told(world, metacopy=True)) == []
    assert wrong(told(world, repair=True, metacopy=True)) == []
    assert told(world, metacopy=True) == []


# ---- anything at all ----

MARKS = ("opaque", "redirect", "metacopy", "origin", "impure", "whiteout", "nlink", "upper", "protattr", "unknown")


@pytest.mark.parametrize("seed", range(30))
def test_whatever_the_marks_hold_a_repair_ends_and_leaves_nothing_it_could_repair(
    world: World, stirred: Callable[[int, bool], None], seed: int
) -> None:
    stirred(seed, False)
    rng = random.Random(seed)
    places = [world.upper, *world.upper.rglob("*")]
    for _ in range(12):
        value = rng.choice([b"", b"y", b"x", b"/", b"/a", b"/a/b", b"a", b"..", b"/a/../b", b"\0\4\0\0", rng.randbytes(rng.randrange(40))])
        namespace = rng.choice(["trusted.overlay.", "trusted.overlay.", "trusted.overlay.overlay.", "user.overlay.", "user.fuseoverlayfs."])
        with contextlib.suppress(OSError):  # user.* is for files and directories only
            os.setxattr(rng.choice(places), namespace + rng.choice(MARKS), value, follow_symlinks=False)
    found = told(world, repair=True)
    again = told(world, repair=True)
    assert not [finding for finding in again if finding.repairable]
    assert again == told(world) and len(again) <= len(found)
