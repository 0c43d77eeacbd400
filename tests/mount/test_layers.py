"""Which directories may be layers, and that being one costs them nothing."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.support import system, tree
from tests.support.mounts import Layers, MountFailed, Mounts


def directories(scratch: Path, *names: str) -> tuple[Path, ...]:
    paths = tuple(scratch / name for name in names)
    for path in paths:
        path.mkdir()
    return paths


def test_five_hundred_lowers_are_one_tree(mounts: Mounts, scratch: Path) -> None:
    lowers = directories(scratch, *(f"l{number}" for number in range(500)))
    for number, lower in enumerate(lowers):
        (lower / f"file{number}").write_text(str(number))
        (lower / "in_all").write_text(str(number))
        (lower / "directory").mkdir()
        (lower / "directory" / f"{number}").touch()
    upper, work = directories(scratch, "upper", "work")
    mount = mounts.ours(Layers(lowers, upper, work))
    assert len(os.listdir(mount.target)) == 502
    assert (mount.target / "in_all").read_text() == "0" and (mount.target / "file499").read_text() == "499"
    assert len(os.listdir(mount.target / "directory")) == 500
    (mount.target / "file499").write_text("changed")
    assert (upper / "file499").read_text() == "changed" and (lowers[499] / "file499").read_text() == "499"


def test_without_upper_everything_that_writes_fails_with_erofs(mounts: Mounts, scratch: Path) -> None:
    top, base = directories(scratch, "top", "base")
    (base / "file").write_text("base")
    (top / "other").write_text("top")
    mount = mounts.ours(Layers((top, base)))
    assert sorted(os.listdir(mount.target)) == ["file", "other"] and (mount.target / "file").read_text() == "base"
    file = mount.target / "file"
    for change in (lambda: file.write_text("x"), lambda: os.chmod(file, 0o600), lambda: os.unlink(file),
                   lambda: os.mkdir(mount.target / "new"), lambda: os.rename(file, mount.target / "new"),
                   lambda: os.setxattr(file, "user.x", b""), lambda: os.utime(file, (1, 1)),
                   lambda: os.truncate(file, 0), lambda: os.link(file, mount.target / "new"),
                   lambda: os.symlink("x", mount.target / "new")):
        with pytest.raises(OSError) as caught:
            change()
        assert caught.value.errno == errno.EROFS
    assert os.statvfs(mount.target).f_flag & os.ST_RDONLY


def test_the_running_system_can_be_the_lower(mounts: Mounts, scratch: Path) -> None:
    upper, work = directories(scratch, "upper", "work")
    mount = mounts.ours(Layers((Path("/"),), upper, work))
    here = os.listdir(mount.target / "etc")
    assert sorted(here) == sorted(os.listdir("/etc"))
    assert (mount.target / "etc" / "passwd").read_bytes() == Path("/etc/passwd").read_bytes()
    assert os.listdir(mount.target / "proc") == []  # other mounts are not part of the layer
    (mount.target / "etc" / "unionfs-test").write_text("only in the union")
    assert not Path("/etc/unionfs-test").exists() and (upper / "etc" / "unionfs-test").exists()


def test_a_mount_seen_through_its_own_lower_is_an_empty_directory(mounts: Mounts, scratch: Path) -> None:
    upper, work = directories(scratch, "upper", "work")
    mount = mounts.ours(Layers((Path("/"),), upper, work))
    inside = mount.target / str(mount.target).lstrip("/")
    assert os.listdir(inside) == []
    assert os.listdir(mount.target / str(scratch).lstrip("/"))


def test_upper_and_work_seen_through_a_lower_are_empty(mounts: Mounts, scratch: Path) -> None:
    lower, = directories(scratch, "lower")
    upper, work, beside = directories(lower, "upper", "work", "beside")
    (upper / "of_upper").write_text("x")
    (beside / "file").write_text("y")
    mount = mounts.ours(Layers((lower,), upper, work))
    assert (mount.target / "of_upper").read_text() == "x" and (mount.target / "beside" / "file").read_text() == "y"
    assert os.listdir(mount.target / "upper") == [] and os.listdir(mount.target / "work") == []
    (mount.target / "beside" / "file").write_text("changed")
    assert (upper / "beside" / "file").read_text() == "changed" and (beside / "file").read_text() == "y"


def test_a_union_can_be_mounted_over_its_own_lower(mounts: Mounts, scratch: Path) -> None:
    lower, upper, work = directories(scratch, "lower", "upper", "work")
    (lower / "file").write_text("lower")
    mount = mounts.ours(Layers((lower,), upper, work), target=lower)
    assert (lower / "file").read_text() == "lower"
    (lower / "file").write_text("changed")
    (lower / "new").write_text("new")
    assert sorted(os.listdir(lower)) == ["file", "new"]
    assert not mount.unmount()
    assert (lower / "file").read_text() == "lower" and os.listdir(lower) == ["file"]


def test_a_union_can_be_mounted_over_its_own_upper(mounts: Mounts, scratch: Path) -> None:
    lower, upper, work = directories(scratch, "lower", "upper", "work")
    (lower / "file").write_text("lower")
    mount = mounts.ours(Layers((lower,), upper, work), target=upper)
    (upper / "file").write_text("changed")
    assert not mount.unmount()
    assert (upper / "file").read_text() == "changed" and (lower / "file").read_text() == "lower"


def test_a_live_upper_can_be_the_lower_of_another_union(mounts: Mounts, scratch: Path) -> None:
    lower, upper, work, upper2, work2 = directories(scratch, "lower", "upper", "work", "upper2", "work2")
    (lower / "file").write_text("lower")
    first = mounts.ours(Layers((lower,), upper, work))
    (first.target / "new").write_text("of the first")
    second = mounts.ours(Layers((upper, lower), upper2, work2))
    assert (second.target / "new").read_text() == "of the first"
    (second.target / "new").write_text("of the second")
    assert (first.target / "new").read_text() == "of the first"
    (first.target / "later").write_text("x")
    assert (second.target / "file").read_text() == "lower"


def test_a_union_can_be_the_lower_of_another_union(mounts: Mounts, scratch: Path) -> None:
    lower, upper, work, upper2, work2 = directories(scratch, "lower", "upper", "work", "upper2", "work2")
    (lower / "file").write_text("lower")
    first = mounts.ours(Layers((lower,), upper, work))
    (first.target / "one").write_text("1")
    second = mounts.ours(Layers((first.target,), upper2, work2))
    (second.target / "one").write_text("2")
    os.unlink(second.target / "file")
    assert os.listdir(second.target) == ["one"] and sorted(os.listdir(first.target)) == ["file", "one"]
    assert (first.target / "one").read_text() == "1"


def test_layers_are_never_written_whatever_is_done_above(mounts: Mounts, scratch: Path) -> None:
    lowers = directories(scratch, "top", "base")
    upper, work = directories(scratch, "upper", "work")
    for number, lower in enumerate(lowers):
        for name in ("a", "b", "c"):
            (lower / name).mkdir()
            (lower / name / f"file{number}").write_text(name)
            os.symlink("file0", lower / name / f"link{number}")
    before = [tree.fingerprint(lower) for lower in lowers]
    mount = mounts.ours(Layers(lowers, upper, work))
    for name in ("a", "b"):
        for file in list((mount.target / name).iterdir()):
            os.lchown(file, 1000, 1000)
            os.rename(file, mount.target / "c" / f"moved-{name}-{file.name}")
        os.rmdir(mount.target / name)
    (mount.target / "a").mkdir()
    for file in (mount.target / "c").glob("*file*"):
        file.write_text("changed")
    assert [tree.fingerprint(lower) for lower in lowers] == before


def test_reading_leaves_the_access_times_of_lowers_alone(mounts: Mounts, scratch: Path) -> None:
    lower, upper, work = directories(scratch, "lower", "upper", "work")
    (lower / "directory").mkdir()
    (lower / "directory" / "file").write_text("x")
    for path in (lower / "directory" / "file", lower / "directory"):
        os.utime(path, (1, 2))
    mount = mounts.ours(Layers((lower,), upper, work))
    assert (mount.target / "directory" / "file").read_text() == "x" and os.listdir(mount.target / "directory")
    assert os.stat(lower / "directory" / "file").st_atime == os.stat(lower / "directory").st_atime == 1


def test_a_hostile_layer_leads_nowhere_outside_itself(mounts: Mounts, scratch: Path) -> None:
    top, base, upper, work, outside = directories(scratch, "top", "base", "upper", "work", "outside")
    (outside / "secret").write_text("outside")
    (base / "directory").mkdir()
    (base / "directory" / "file").write_text("inside")
    os.symlink(outside, top / "directory")
    mount = mounts.ours(Layers((top, base), upper, work))
    assert os.readlink(mount.target / "directory") == str(outside)
    os.unlink(mount.target / "directory")
    (mount.target / "directory").mkdir()
    assert os.listdir(mount.target / "directory") == [] and os.listdir(outside) == ["secret"]


def test_layer_paths_may_be_symlinks(mounts: Mounts, scratch: Path) -> None:
    lower, upper, work = directories(scratch, "lower", "upper", "work")
    (lower / "file").write_text("x")
    for name in ("lower", "upper", "work"):
        os.symlink(name, scratch / f"{name}-link")
    mount = mounts.ours(Layers((scratch / "lower-link",), scratch / "upper-link", scratch / "work-link"))
    (mount.target / "file").write_text("changed")
    assert (upper / "file").read_text() == "changed"


@pytest.mark.parametrize("missing", ["lower", "upper", "work"])
def test_a_missing_layer_is_named_in_one_line(mounts: Mounts, scratch: Path, missing: str) -> None:
    directories(scratch, *({"lower", "upper", "work"} - {missing}))
    with pytest.raises(MountFailed) as caught:
        mounts.ours(Layers((scratch / "lower",), scratch / "upper", scratch / "work"))
    assert str(scratch / missing) in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_layer_that_is_a_file_is_refused(mounts: Mounts, scratch: Path) -> None:
    upper, work = directories(scratch, "upper", "work")
    (scratch / "lower").write_text("no directory")
    with pytest.raises(MountFailed) as caught:
        mounts.ours(Layers((scratch / "lower",), upper, work))
    assert str(scratch / "lower") in str(caught.value)


def test_upper_inside_work_and_work_inside_upper_are_refused(mounts: Mounts, scratch: Path) -> None:
    lower, outer = directories(scratch, "lower", "outer")
    inner, = directories(outer, "inner")
    for upper, work in ((outer, inner), (inner, outer), (outer, outer)):
        with pytest.raises(MountFailed):
            mounts.ours(Layers((lower,), upper, work))


def test_upper_and_work_on_different_mounts_are_refused(mounts: Mounts, scratch: Path) -> None:
    lower, upper, other = directories(scratch, "lower", "upper", "other")
    system.mount("none", other, "tmpfs")
    try:
        work, = directories(other, "work")
        with pytest.raises(MountFailed):
            mounts.ours(Layers((lower,), upper, work))
    finally:
        system.unmount(other)


def test_the_same_filesystem_mounted_twice_counts_as_different_mounts(mounts: Mounts, scratch: Path) -> None:
    lower, upper, work, again = directories(scratch, "lower", "upper", "work", "again")
    system.mount(str(work), again, "none", flags=4096)  # MS_BIND
    try:
        with pytest.raises(MountFailed):
            mounts.ours(Layers((lower,), upper, again))
    finally:
        system.unmount(again)


def test_the_roots_mode_and_owner_are_those_of_the_upper(mounts: Mounts, scratch: Path) -> None:
    lower, upper, work = directories(scratch, "lower", "upper", "work")
    os.chmod(upper, 0o751)
    os.chown(upper, 1000, 1001)
    mount = mounts.ours(Layers((lower,), upper, work))
    found = os.stat(mount.target)
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o751, 1000, 1001)
