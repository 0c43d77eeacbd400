"""Mount options: which go together is the kernel's word, and what they leave behind is what it leaves."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.commands.namespace import namespace
from tests.commands.program import Done, Place, make_layers, run, texts
from tests.support import requirements, system
from tests.support.mounts import Layers, our_program

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(requirements.missing_for_fuse() is not None, reason=str(requirements.missing_for_fuse())),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting the kernel's overlayfs needs root"),
]


@pytest.fixture
def layers(scratch: Path) -> Layers:
    return make_layers(scratch, lowers=2)


def kernel(text: str, mnt: Place) -> bool:
    """Whether the kernel mounts an overlay with these options; it is taken away again."""
    try:
        system.mount("overlay", mnt.path, "overlay", data=text)
    except OSError:
        return False
    system.unmount(mnt.path)
    return True


def renew(layers: Layers) -> None:
    """An empty upper and work: a mount leaves marks on them."""
    for directory in (layers.upper, layers.work):
        assert directory is not None
        shutil.rmtree(directory)
        directory.mkdir()


def ours(text: str, mnt: Place) -> Done:
    """Mount with these options, and unmount."""
    done = run("mount", "-o", text, mnt.path)
    if done.status == 0:
        assert run("umount", mnt.path).status == 0
    return done


@pytest.mark.parametrize(
    "options",
    [
        "redirect_dir=on", "redirect_dir=off", "redirect_dir=follow", "redirect_dir=nofollow", "redirect_dir=maybe",
        "metacopy=on", "metacopy=on,redirect_dir=on", "metacopy=on,redirect_dir=off", "metacopy=on,redirect_dir=follow",
        "metacopy=on,redirect_dir=nofollow", "metacopy=on,index=on", "index=on", "index=on,redirect_dir=off", "index=1",
        "userxattr", "userxattr,redirect_dir=on", "userxattr,redirect_dir=follow", "userxattr,redirect_dir=nofollow",
        "userxattr,metacopy=on", "userxattr,metacopy=off", "userxattr,index=on", "nfs_export=on,metacopy=on",
        "nfs_export=on,index=off", "xino=on", "xino=auto", "xino=off", "xino=maybe", "uuid=on", "uuid=null", "uuid=off",
        "uuid=auto", "uuid=maybe",
    ],
)  # fmt: skip
def test_the_kernel_and_we_refuse_the_same_combinations(layers: Layers, mnt: Place, options: str) -> None:
    accepted = kernel(f"{texts(layers)},{options}", mnt)
    renew(layers)
    done = ours(f"{texts(layers)},{options}", mnt)
    assert (done.status == 0) == accepted, done.err
    assert len(done.lines) == (0 if accepted else 1)


@pytest.mark.parametrize("lowerdir", ["{0}::{1}", "{0}::{1}::{1}x", "{0}::{1}:{1}x", "::{1}", "{0}::", "{0}::{1}:"])
@pytest.mark.parametrize("options", ["", ",metacopy=on", ",userxattr", ",redirect_dir=nofollow"])
def test_data_only_layers_are_taken_where_the_kernel_takes_them(
    scratch: Path, layers: Layers, mnt: Place, lowerdir: str, options: str
) -> None:
    (scratch / "lower1x").mkdir()
    text = f"lowerdir={lowerdir.format(*layers.lowers)},upperdir={layers.upper},workdir={layers.work}{options}"
    accepted = kernel(text, mnt)
    renew(layers)
    done = ours(text, mnt)
    assert (done.status == 0) == accepted, done.err
    assert len(done.lines) == (0 if accepted else 1)


# ---- what each option does, with the kernel beside it ----

@contextmanager
def mounted(engine: str, layers: Layers, mnt: Place, options: str, lowerdir: str | None = None) -> Iterator[Path]:
    """A fresh upper, mounted by *engine*."""
    renew(layers)
    text = texts(layers) if lowerdir is None else f"lowerdir={lowerdir},upperdir={layers.upper},workdir={layers.work}"
    done = run("mount", f"--engine={engine}", "-o", f"{text},{options}", mnt.path)
    assert (done.status, done.err) == (0, "")
    try:
        yield mnt.path
    finally:
        assert run("umount", mnt.path).status == 0


def rename_error(root: Path) -> int | None:
    """What the rename of a directory of a lower is answered with."""
    try:
        (root / "dir").rename(root / "moved")
    except OSError as error:
        return error.errno
    assert (root / "moved" / "file").read_text() == "x" * 5000
    return None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("redirect_dir=on", None),
        ("metacopy=on", None),
        ("redirect_dir=off", errno.EXDEV),
        ("redirect_dir=follow", errno.EXDEV),
        ("redirect_dir=nofollow", errno.EXDEV),
        ("userxattr,redirect_dir=nofollow", errno.EXDEV),
    ],
)
def test_redirect_dir_decides_whether_directories_of_lowers_are_renamed(
    layers: Layers, mnt: Place, options: str, expected: int | None
) -> None:
    (layers.lowers[1] / "dir").mkdir()
    (layers.lowers[1] / "dir" / "file").write_text("x" * 5000)
    for engine in ("kernel", "pyfuse3"):
        with mounted(engine, layers, mnt, options) as root:
            assert rename_error(root) == expected


@pytest.mark.parametrize(("follow", "seen"), [("on", True), ("off", True), ("follow", True), ("nofollow", False)])
def test_redirect_dir_decides_whether_redirects_in_layers_count(layers: Layers, mnt: Place, follow: str, seen: bool) -> None:
    (layers.lowers[1] / "dir").mkdir()
    (layers.lowers[1] / "dir" / "file").touch()
    (layers.lowers[0] / "moved").mkdir()
    os.setxattr(layers.lowers[0] / "moved", "trusted.overlay.redirect", b"/dir")
    for engine in ("kernel", "pyfuse3"):
        with mounted(engine, layers, mnt, f"redirect_dir={follow}") as root:
            try:
                found = os.listdir(root / "moved")
            except PermissionError:  # nofollow: it is not even looked into
                found = []
            assert (found == ["file"]) == seen, engine


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("", None),
        (",rename_copy_limit=1M", None),
        (",rename_copy_limit=4K", errno.EXDEV),
        (",rename_copy_limit=0", errno.EXDEV),
    ],
)
def test_under_userxattr_a_directory_is_copied_for_a_rename_up_to_the_limit(
    layers: Layers, mnt: Place, limit: str, expected: int | None
) -> None:
    (layers.lowers[1] / "dir").mkdir()
    (layers.lowers[1] / "dir" / "file").write_text("x" * 5000)
    with mounted("pyfuse3", layers, mnt, f"userxattr{limit}") as root:
        assert rename_error(root) == expected


@pytest.mark.parametrize("options", ["metacopy=on", "metacopy=off", "userxattr"])
def test_metacopy_decides_whether_a_change_of_mode_copies_data(layers: Layers, mnt: Place, options: str) -> None:
    (layers.lowers[1] / "big").write_bytes(b"x" * 100_000)
    assert layers.upper is not None
    for engine in ("kernel", "pyfuse3"):
        with mounted(engine, layers, mnt, options) as root:
            (root / "big").chmod(0o600)
            assert (root / "big").read_bytes() == b"x" * 100_000
        blocks = (layers.upper / "big").stat().st_blocks  # a few for attributes
        assert (blocks < 100) == (options == "metacopy=on"), engine


@pytest.mark.parametrize("form", ["{0}:{1}::{2}", "datadir+"])
def test_data_only_layers_hold_the_data_of_metacopies_and_no_names(scratch: Path, layers: Layers, mnt: Place, form: str) -> None:
    data = scratch / "data"
    data.mkdir()
    (data / "real").write_text("the data\n")
    (layers.lowers[0] / "shown").touch()
    os.truncate(layers.lowers[0] / "shown", 9)
    os.setxattr(layers.lowers[0] / "shown", "trusted.overlay.metacopy", b"")
    os.setxattr(layers.lowers[0] / "shown", "trusted.overlay.redirect", b"/real")
    text = form.format(*layers.lowers, data) if "{" in form else ":".join(map(str, layers.lowers))
    more = "" if "{" in form else f",datadir+={data}"
    for engine in ("kernel", "pyfuse3"):
        with mounted(engine, layers, mnt, f"metacopy=on{more}", text) as root:
            assert (root / "shown").read_text() == "the data\n"
            assert not (root / "real").exists()


@pytest.mark.parametrize("word", ["volatile", "fsync=volatile"])
def test_after_a_volatile_mount_nobody_takes_the_upper_until_the_mark_is_deleted(layers: Layers, mnt: Place, word: str) -> None:
    assert layers.work is not None
    mark = layers.work / "work" / "incompat" / "volatile" / "dirty"
    assert ours(f"{texts(layers)},{word}", mnt).status == 0
    assert mark.is_file(), "it stays when the mount is gone, as the kernel's does"
    assert not kernel(texts(layers), mnt)
    for again in ("", ",volatile", ",fsync=0"):
        done = ours(texts(layers) + again, mnt)
        assert (done.status, len(done.lines)) == (1, 1)
        assert str(mark.parent) in done.err
    shutil.rmtree(mark.parent)
    assert ours(texts(layers), mnt).status == 0
    assert kernel(texts(layers), mnt)


@pytest.mark.parametrize("word", ["fsync=0", "volatile,fsync=0", "fsync=auto", "fsync=strict", "volatile,fsync=auto"])
def test_no_other_mount_leaves_a_mark(layers: Layers, mnt: Place, word: str) -> None:
    for _ in range(2):
        assert ours(f"{texts(layers)},{word}", mnt).status == 0
    assert layers.work is not None
    assert not (layers.work / "work" / "incompat").exists()


def test_a_volatile_mount_that_could_not_be_made_leaves_no_mark(layers: Layers, mnt: Place) -> None:
    with namespace() as ns:
        ns.must("mount", "-t", "tmpfs", "none", "/dev")
        ns.must("mknod", "/dev/null", "c", "1", "3")
        done = ns.run(*our_program(), "mount", "-o", f"{texts(layers)},volatile", mnt.path)
        assert (done.status, len(done.lines)) == (1, 1)
        assert "/dev/fuse" in done.err
    assert ours(texts(layers), mnt).status == 0


def test_a_mark_the_kernel_left_counts_here(layers: Layers, mnt: Place) -> None:
    assert kernel(texts(layers) + ",volatile", mnt)
    done = ours(texts(layers), mnt)
    assert (done.status, len(done.lines)) == (1, 1)
    assert f"{layers.work}/work/incompat/volatile" in done.err
