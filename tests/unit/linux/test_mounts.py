"""Reading mountinfo, and mounts that no path leads to."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import system
from unionfs.linux import libc, mounts


@pytest.fixture
def root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts")


@pytest.fixture
def tmpfs(root: None, scratch: Path) -> Iterator[Path]:
    path = scratch / "memory"
    path.mkdir()
    system.mount("tmpfs", path, "tmpfs")
    yield path
    system.unmount(path, system.MNT_DETACH)


LINE = (
    rb"36 35 98:0 /mnt\040one /tmp/a\011b\012c\134d\043e rw,noatime master:1 unbindable - fuse.unionfs "
    rb"some\040source rw,user_id=0"
)


def test_a_line_of_mountinfo_is_read_field_by_field() -> None:
    info = mounts._parse_mountinfo_line(LINE)
    assert (info.mount_id, info.parent_id, info.device) == (36, 35, "98:0")
    assert info.root == b"/mnt one"
    assert info.target == b"/tmp/a\tb\nc\\d#e"
    assert info.options == ("rw", "noatime")
    assert (info.fstype, info.source) == ("fuse.unionfs", b"some source")
    assert info.super_options == ("rw", "user_id=0")


def test_optional_fields_may_be_missing() -> None:
    info = mounts._parse_mountinfo_line(b"1 0 0:1 / / rw - proc proc rw")
    assert (info.fstype, info.target) == ("proc", b"/")


def test_a_target_of_any_bytes_is_found(root: None, scratch: Path) -> None:
    odd = os.fsencode(scratch) + b"/a b\t\n\\#\xff"
    os.mkdir(odd)
    system.mount("tmpfs", os.fsdecode(odd), "tmpfs")
    try:
        info = mounts.mount_at(odd)
        assert info is not None and info.fstype == "tmpfs"
    finally:
        system.unmount(os.fsdecode(odd))
    assert mounts.mount_at(odd) is None


def test_of_two_mounts_on_one_target_the_upper_one_counts(tmpfs: Path) -> None:
    lower = mounts.mount_at(os.fsencode(tmpfs))
    system.mount("ramfs", tmpfs, "ramfs")
    upper = mounts.mount_at(os.fsencode(tmpfs))
    system.unmount(tmpfs)
    assert lower is not None and upper is not None
    assert (lower.fstype, upper.fstype) == ("tmpfs", "ramfs")


def test_a_descriptor_knows_its_mount(tmpfs: Path, scratch: Path) -> None:
    inside, outside = (os.open(path, os.O_PATH) for path in (tmpfs, scratch))
    info = mounts.mount_at(os.fsencode(tmpfs))
    assert info is not None
    assert mounts.mount_id(inside) == info.mount_id != mounts.mount_id(outside)
    os.close(inside)
    os.close(outside)


def test_a_clone_does_not_see_what_is_mounted_below_and_cannot_be_written(tmpfs: Path, scratch: Path) -> None:
    (tmpfs / "canary").touch()
    clone = mounts.open_tree(os.fsencode(scratch), mounts.OPEN_TREE_CLONE)
    try:
        mounts.mount_setattr(clone, ("ro", "noatime"))
        assert os.fstatvfs(clone).f_flag & os.ST_RDONLY
        assert os.fstatvfs(clone).f_flag & os.ST_NOATIME
        assert os.listdir(f"/proc/self/fd/{clone}/memory") == []
        with pytest.raises(OSError) as caught:
            os.mkdir("new", dir_fd=clone)
        assert caught.value.errno == errno.EROFS
        mounts.mount_setattr(clone, (), clear=("ro",))
        os.mkdir("new", dir_fd=clone)
    finally:
        os.close(clone)
    assert (scratch / "new").is_dir()


def test_a_detached_mount_is_attached_at_its_place(root: None, scratch: Path) -> None:
    target = scratch / "target"
    target.mkdir()
    fd = mounts.fs_mount("tmpfs", {"size": b"64k", "source": b"name"}, [], ["nosuid", "nodev"])
    os.mkdir("inside", dir_fd=fd)
    mounts.move_mount(fd, os.fsencode(target))
    os.close(fd)
    try:
        assert os.listdir(target) == ["inside"]
        info = mounts.mount_at(os.fsencode(target))
        assert info is not None
        assert {"nosuid", "nodev"} <= set(info.options) and info.source == b"name"
    finally:
        mounts.umount2(os.fsencode(target))
    assert os.listdir(target) == []


def test_a_parameter_the_kernel_refuses_is_named(root: None) -> None:
    with pytest.raises(OSError, match="no-such-thing"):
        mounts.fs_mount("tmpfs", {"no-such-thing": b"1"}, [], [])
    with pytest.raises(OSError, match="no-such-filesystem"):
        mounts.fs_mount("no-such-filesystem", {}, [], [])


def test_a_failed_unmount_names_its_target(root: None, scratch: Path) -> None:
    with pytest.raises(OSError, match=str(scratch)) as caught:
        mounts.umount2(os.fsencode(scratch))
    assert caught.value.errno == errno.EINVAL


def test_a_system_call_nobody_knows_here_is_enosys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "host", "6.18", "#1", "abacus")))
    with pytest.raises(OSError, match="abacus") as caught:
        libc.syscall_number("pivot_root")
    assert caught.value.errno == errno.ENOSYS


def test_a_filesystem_is_made_from_texts_words_and_descriptors(root: None, scratch: Path) -> None:
    for name in ("lower", "upper", "work", "mnt"):
        (scratch / name).mkdir()
    fds = {name: os.open(scratch / name, os.O_PATH) for name in ("lower", "upper", "work")}
    (scratch / "lower" / "file").touch()
    layers = [("lowerdir+", fds["lower"]), ("upperdir", fds["upper"]), ("workdir", fds["work"])]
    fd = mounts.fs_create("overlay", [("source", b"x"), ("userxattr", None), *layers], ["noexec"])
    for opened in fds.values():
        os.close(opened)
    mounts.move_mount(fd, os.fsencode(scratch / "mnt"))
    os.close(fd)
    try:
        info = mounts.mount_at(os.fsencode(scratch / "mnt"))
        assert info is not None and (info.fstype, info.source) == ("overlay", b"x")
        assert "noexec" in info.options and "userxattr" in info.super_options
        assert os.listdir(scratch / "mnt") == ["file"]
    finally:
        system.unmount(scratch / "mnt")


@pytest.mark.parametrize(
    ("parameter", "errors", "text"),
    [
        (("nonsense", b"1"), {errno.EINVAL}, "overlay: Unknown parameter 'nonsense'"),
        (("redirect_dir", b"maybe"), {errno.EINVAL}, "overlay: Bad value for 'redirect_dir'"),
        (("upperdir", b"/no/such"), {errno.ENOENT}, "No such file or directory"),
    ],
)
def test_a_refused_parameter_is_told_by_name_and_in_the_kernel_s_words(
    root: None, parameter: tuple[str, bytes], errors: set[int], text: str
) -> None:
    with pytest.raises(OSError) as caught:
        mounts.fs_create("overlay", [parameter], [])
    assert caught.value.errno in errors
    assert (caught.value.filename, caught.value.strerror) == (parameter[0], text)


def test_a_filesystem_nobody_knows_is_an_error_that_names_it(root: None) -> None:
    with pytest.raises(OSError) as caught:
        mounts.fs_create("nonsense", [], [])
    assert (caught.value.errno, caught.value.filename) == (errno.ENODEV, "nonsense")
