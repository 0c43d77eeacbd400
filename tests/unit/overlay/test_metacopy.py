"""Files whose data stay below when their attributes are copied up, and data-only layers: against the kernel, both ways."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.support.mounts import Layers, Mounts
from tests.support.tree import difference, snapshot
from tests.unit.overlay.world import PREFIX, View, World, mark, marked, put
from unionfs.linux import files
from unionfs.overlay.copy_up import DataDraft
from unionfs.overlay.features import Redirect
from unionfs.overlay.union import Change

BIG = bytes(range(256)) * 2000
KERNEL = "redirect_dir=on,metacopy=on,index=off,xino=off"


@pytest.fixture
def world(scratch: Path) -> Iterator[World]:
    world = furnish(scratch)
    yield world
    world.close_all()


def furnish(root: Path) -> World:
    root.mkdir(exist_ok=True)
    world = World(root)
    put(world.lowers[1] / "big", BIG)
    put(world.lowers[1] / "dir" / "file", BIG[:5000])
    put(world.lowers[0] / "dir" / "top", b"top")
    put(world.lowers[1] / "empty")
    put(world.lowers[1] / "linked", b"linked")
    os.link(world.lowers[1] / "linked", world.lowers[1] / "linked too")
    for lower in world.lowers:
        for path in lower.rglob("*"):
            os.utime(path, (10**9, 10**9))
    return world


def is_metacopy(path: Path) -> bool:
    return marked(path, "metacopy") is not None


@pytest.fixture
def view(world: World) -> View:
    return world.open(metacopy=True)


def test_a_change_of_attributes_copies_no_data(world: World, view: View) -> None:
    view.chmod(b"big", 0o600)
    assert is_metacopy(world.upper / "big")
    copy = (world.upper / "big").stat()
    assert (copy.st_size, copy.st_mode & 0o777) == (len(BIG), 0o600) and copy.st_blocks < 16
    assert view.read(b"big") == BIG
    assert marked(world.upper, "impure") == b"y"
    blocks = (world.lowers[1] / "big").stat().st_blocks
    assert view.stat(b"big").st_blocks == blocks
    world.close(view)
    view = world.open(metacopy=True)
    assert view.node(b"big") and view.stat(b"big").st_blocks == blocks
    assert view.read(b"big") == BIG and view.stat(b"big").st_mode & 0o777 == 0o600


def test_the_first_write_brings_the_data_and_takes_the_mark_away(world: World, view: View) -> None:
    view.chmod(b"big", 0o600)
    view.write(b"big", b"new", 7)
    assert not is_metacopy(world.upper / "big")
    assert view.read(b"big") == (world.upper / "big").read_bytes() == BIG[:7] + b"new" + BIG[10:]
    assert (world.lowers[1] / "big").read_bytes() == BIG


def test_opening_for_writing_brings_the_data_and_keeps_the_times(world: World, view: View) -> None:
    view.chmod(b"big", 0o600)
    view.union.open(view.ino(b"big"), os.O_RDWR)
    assert not is_metacopy(world.upper / "big") and view.read(b"big") == BIG
    assert view.stat(b"big").st_mtime == 10**9


def test_truncation_brings_only_what_is_left(world: World, view: View) -> None:
    view.chmod(b"big", 0o600)
    view.change(b"big", Change(size=10))
    assert not is_metacopy(world.upper / "big") and view.read(b"big") == BIG[:10]
    view.chmod(b"dir/file", 0o600)
    view.change(b"dir/file", Change(size=6000))
    assert view.read(b"dir/file") == BIG[:5000] + bytes(1000)


@pytest.mark.usefixtures("root")  # redirects are for trusted.* alone
def test_what_writing_disturbs_is_put_back(world: World) -> None:
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    os.setxattr(world.lowers[1] / "big", "security.capability", capability)
    view = world.open(metacopy=True)
    view.chmod(b"big", 0o755)
    view.union.open(view.ino(b"big"), os.O_WRONLY)
    assert os.getxattr(world.upper / "big", "security.capability") == capability


@pytest.mark.usefixtures("root")  # redirects are for trusted.* alone
def test_a_moved_or_linked_metacopy_says_where_its_data_are(world: World, view: View) -> None:
    view.chmod(b"dir/file", 0o600)
    view.rename(b"dir/file", b"moved")
    assert marked(world.upper / "moved", "redirect") == b"/dir/file"
    view.chmod(b"big", 0o600)
    view.link(b"big", b"dir/big too")
    view.unlink(b"big")
    view.rename(b"dir", b"elsewhere")
    for _ in range(2):
        assert view.read(b"moved") == BIG[:5000] and view.read(b"elsewhere/big too") == BIG
        world.close(view)
        view = world.open(metacopy=True)


def test_without_redirects_a_moved_metacopy_gets_its_data(world: World) -> None:
    view = world.open(metacopy=True, redirect=Redirect.FOLLOW)
    view.chmod(b"dir/file", 0o600)
    view.rename(b"dir/file", b"moved")
    assert not is_metacopy(world.upper / "moved") and view.read(b"moved") == BIG[:5000]


def test_a_metacopy_of_a_metacopy_finds_the_data_at_the_bottom(world: World, view: View) -> None:
    view.chmod(b"dir/file", 0o600)
    view.rename(b"dir/file", b"moved")
    world.close(view)
    world.lowers.insert(0, world.upper)
    world.upper = world.root / "upper2"
    world.upper.mkdir()
    view = world.open(metacopy=True)
    view.chmod(b"moved", 0o640)
    assert is_metacopy(world.upper / "moved") and view.read(b"moved") == BIG[:5000]
    world.close(view)
    view = world.open(metacopy=True)
    assert view.read(b"moved") == BIG[:5000]
    view.write(b"moved", b"x", 0)
    assert (world.upper / "moved").read_bytes() == b"x" + BIG[1:5000]


def test_what_a_broken_metacopy_has_of_its_own_is_not_left_behind_its_data(world: World) -> None:
    put(world.lowers[1] / "short", b"short")
    put(world.upper / "short", b"longer than that")
    mark(world.upper / "short", "metacopy", b"")
    view = world.open(metacopy=True)
    assert view.read(b"short") == b"short"
    view.write(b"short", b"S", 0)
    assert (world.upper / "short").read_bytes() == b"Short" + bytes(11)


@pytest.mark.parametrize("value", [b"", b"\0\4\0\0", b"\1\4\0\0", b"\0\5\0\0", b"\0" * 40])
def test_what_a_mark_says_besides_is_not_looked_at(world: World, value: bytes) -> None:
    """Nor by the kernel, but for verity (measured)."""
    put(world.lowers[0] / "odd")
    os.truncate(world.lowers[0] / "odd", 4)
    put(world.lowers[1] / "odd", b"data")
    mark(world.lowers[0] / "odd", "metacopy", value)
    assert world.open(metacopy=True).read(b"odd") == b"data"


@pytest.mark.parametrize("value", [b"\0", b"\0\4\0"])
def test_a_mark_that_is_none_is_eio(world: World, value: bytes) -> None:
    put(world.lowers[0] / "big", b"")
    os.truncate(world.lowers[0] / "big", 10)
    mark(world.lowers[0] / "big", "metacopy", value)
    with pytest.raises(OSError) as caught:
        world.open(metacopy=True).find(b"big")
    assert caught.value.errno == errno.EIO


def test_a_metacopy_without_data_is_eio_and_one_that_must_not_be_followed_eperm(world: World, view: View) -> None:
    view.chmod(b"big", 0o600)
    world.close(view)
    with pytest.raises(PermissionError):
        world.open(metacopy=False).find(b"big")
    world.close_all()
    (world.lowers[1] / "big").unlink()
    with pytest.raises(OSError) as caught:
        world.open(metacopy=True).find(b"big")
    assert caught.value.errno == errno.EIO


def test_a_metacopy_that_nothing_announces_is_not_shown_as_zeros(world: World) -> None:
    os.truncate(put(world.lowers[0] / "big"), len(BIG))
    mark(world.lowers[0] / "big", "metacopy", b"")
    with pytest.raises(PermissionError):
        world.open(metacopy=False).find(b"big")
    assert world.open(metacopy=True, writable=False).read(b"big") == BIG


def test_an_unlinked_metacopy_that_is_open_stays_readable_and_writable(world: World, view: View) -> None:
    view.chmod(b"big", 0o600)
    ino = view.ino(b"big")
    view.unlink(b"big")
    assert view.union.read(ino, 0, 1 << 20) == BIG
    view.union.write(ino, 0, b"x")
    assert view.union.read(ino, 0, 1 << 20) == b"x" + BIG[1:]


def test_a_kill_while_the_data_come_up_loses_nothing(world: World, view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    view.chmod(b"big", 0o600)

    def killed(source: int, target: int, size: int) -> None:
        os.pwrite(target, b"half", 0)
        raise OSError(errno.EINTR, "killed")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="killed"):
        patched.setattr(files, "copy_data", killed)
        view.write(b"big", b"x")
    assert view.read(b"big") == BIG
    world.close(view)
    assert world.open(metacopy=True).read(b"big") == BIG


@pytest.mark.parametrize("size", [None, 5000])
def test_data_that_do_not_fit_leave_the_metacopy_as_it_was(
        world: World, view: View, monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    view.chmod(b"big", 0o600)
    before, blocks = view.stat(b"big"), (world.upper / "big").stat().st_blocks

    def full(source: int, target: int, size: int) -> None:
        os.ftruncate(target, size)
        os.pwrite(target, BIG[:100_000], 0)
        os.fsync(target)
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="full"):
        patched.setattr(files, "copy_data", full)
        view.change(b"big", Change(size=size)) if size is not None else view.write(b"big", b"x")
    after = view.stat(b"big")
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns) and view.read(b"big") == BIG
    assert (world.upper / "big").stat().st_blocks == blocks, "the space is given back"
    view.write(b"big", b"x")
    assert view.read(b"big") == b"x" + BIG[1:]


def test_data_that_two_verbs_bring_up_are_brought_up_once(world: World) -> None:
    """The first in a thread, the second a rename, as the path is too long for a redirect."""
    deep = b"d" * 200 + b"/" + b"e" * 200
    put(world.lowers[1] / os.fsdecode(deep) / "file", BIG)
    view = world.open(metacopy=True)
    view.chmod(deep + b"/file", 0o600)
    ino = view.ino(deep + b"/file")
    draft = view.union.begin_copy_up(ino)
    assert draft is not None
    view.rename(deep + b"/file", deep + b"/moved")
    view.write(deep + b"/moved", b"new")
    draft.build()
    view.union.publish(ino, draft)
    assert view.read(deep + b"/moved") == b"new" + BIG[3:]


def test_data_are_brought_up_once_by_two_names_that_do_not_look_like_one_file(world: World, view: View) -> None:
    """They have no number in common when the mark that says to look for it is missing, as after a copy of upper without marks."""
    view.mkdir(b"new")
    view.chmod(b"big", 0o600)
    view.link(b"big", b"new/too")
    world.close(view)
    os.removexattr(world.upper / "new", PREFIX + "impure")
    view = world.open(metacopy=True)
    assert view.read(b"new/too") == BIG
    view.write(b"big", b"one")
    view.write(b"new/too", b"two", 3)
    assert view.read(b"big") == view.read(b"new/too") == b"onetwo" + BIG[6:]


def test_a_kill_while_a_metacopy_is_cut_leaves_it_whole(world: World, view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    view.chmod(b"big", 0o600)
    lengths: list[int] = []
    extent = files._copy_extent

    def seen(source: int, target: int, start: int, end: int) -> None:
        extent(source, target, start, end)
        lengths.append(os.fstat(target).st_size)

    monkeypatch.setattr(files, "_copy_extent", seen)
    monkeypatch.setattr(files, "clone", lambda source, target: False)
    view.change(b"big", Change(size=5000))
    assert lengths == [len(BIG)] and view.read(b"big") == BIG[:5000]


def test_a_file_unlinked_while_its_metacopy_is_made_keeps_its_data(view: View) -> None:
    ino = view.ino(b"big")
    draft = view.union.begin_copy_up(ino, data=False)
    assert draft is not None
    view.unlink(b"big")
    draft.build()
    view.union.publish(ino, draft)
    view.union.setattr(ino, Change(mode=0o600))
    assert view.union.read(ino, 0, 1 << 20) == BIG
    view.union.write(ino, 0, b"x")
    assert view.union.read(ino, 0, 1 << 20) == b"x" + BIG[1:]


def test_syncing_a_metacopy_gives_a_descriptor_and_keeps_the_data_below(view: View) -> None:
    view.chmod(b"big", 0o600)
    assert view.union.sync_fd(view.ino(b"big")) is None  # this world is volatile
    draft = view.union.begin_copy_up(view.ino(b"big"))
    assert isinstance(draft, DataDraft) and not draft.sync
    os.close(draft.source)
    os.close(draft.target)


def test_a_synced_metacopy_is_still_read_from_below(world: World) -> None:
    view = world.open(metacopy=True, volatile=False)
    view.chmod(b"big", 0o600)
    fd = view.union.sync_fd(view.ino(b"big"))
    assert fd is not None
    os.close(fd)
    assert view.read(b"big") == BIG


class _Side(Protocol):
    def chmod(self, path: bytes, mode: int) -> None: ...
    def rename(self, old: bytes, new: bytes) -> None: ...
    def link(self, old: bytes, new: bytes) -> object: ...
    def write(self, path: bytes, data: bytes, offset: int) -> object: ...
    def unlink(self, path: bytes) -> None: ...


class _Mounted:
    """The same verbs on a mount."""

    def __init__(self, root: bytes) -> None:
        self.root = root

    def at(self, path: bytes) -> bytes:
        return os.path.join(self.root, path)

    def chmod(self, path: bytes, mode: int) -> None:
        os.chmod(self.at(path), mode)

    def rename(self, old: bytes, new: bytes) -> None:
        os.rename(self.at(old), self.at(new))

    def link(self, old: bytes, new: bytes) -> None:
        os.link(self.at(old), self.at(new))

    def write(self, path: bytes, data: bytes, offset: int) -> None:
        fd = os.open(self.at(path), os.O_WRONLY)
        os.pwrite(fd, data, offset)
        os.close(fd)

    def unlink(self, path: bytes) -> None:
        os.unlink(self.at(path))


def _steps(side: _Side) -> None:
    side.chmod(b"big", 0o600)
    side.chmod(b"dir/file", 0o640)
    side.chmod(b"empty", 0o640)
    side.chmod(b"linked", 0o640)
    side.rename(b"dir/file", b"dir/renamed")
    side.rename(b"linked", b"dir/linked")
    side.link(b"big", b"dir/big")
    side.unlink(b"big")
    side.rename(b"dir", b"moved")
    side.rename(b"moved/renamed", b"out")
    side.write(b"moved/top", b"TOP", 1)
    side.write(b"moved/linked", b"x", 0)


@pytest.mark.overlayfs
@pytest.mark.root
@pytest.mark.usefixtures("root")  # redirects are for trusted.* alone
def test_the_kernel_reads_our_metacopies_and_we_the_kernels(scratch: Path, mounts: Mounts) -> None:
    ours, kernels = furnish(scratch / "ours"), furnish(scratch / "kernels")

    def layers(world: World) -> Layers:
        return Layers(tuple(world.lowers), world.upper, world.work)

    mount = mounts.kernel(layers(kernels), options=KERNEL)
    _steps(_Mounted(mount.path))
    wanted = snapshot(mount.path, hide_ghosts=True)
    assert mount.unmount() == []
    view = ours.open(metacopy=True)
    _steps(view)
    assert difference(view.snapshot(), wanted, ("ours", "the kernel's")) == ""
    ours.close(view)
    for path in ("moved/big", "out"):
        assert is_metacopy(ours.upper / path) and is_metacopy(kernels.upper / path)
    mount = mounts.kernel(layers(ours), options=KERNEL)
    assert difference(snapshot(mount.path, hide_ghosts=True), wanted, ("ours by the kernel", "the kernel's")) == ""
    assert mount.unmount() == []
    theirs = kernels.open(metacopy=True)
    assert difference(theirs.snapshot(), wanted, ("the kernel's by us", "the kernel's")) == ""
    kernels.close_all()


@pytest.mark.overlayfs
@pytest.mark.root
@pytest.mark.usefixtures("root")  # redirects are for trusted.* alone
@pytest.mark.parametrize("metacopy", ["on", "off"])
def test_data_only_layers_hold_data_and_no_names(scratch: Path, mounts: Mounts, metacopy: str) -> None:
    world = World(scratch, lowers=1)
    data = [scratch / "data0", scratch / "data1"]
    for number, directory in enumerate(data):
        put(directory / "objects" / f"{number}", b"%d" % number * 7000)
        put(directory / "objects" / "both", b"b%d" % number)
    for name, target, size in (("zero", "/objects/0", 7000), ("one", "/objects/1", 7000), ("both", "/objects/both", 2), ("none", "/no", 5)):
        put(world.lowers[0] / name)
        os.truncate(world.lowers[0] / name, size)
        mark(world.lowers[0] / name, "metacopy", b"")
        mark(world.lowers[0] / name, "redirect", target.encode())
    view = world.open(metacopy=metacopy == "on", data=data)
    assert view.names(b"") == [b"both", b"none", b"one", b"zero"]
    assert [view.read(name) for name in (b"zero", b"one", b"both")] == [b"0" * 7000, b"1" * 7000, b"b0"]
    with pytest.raises(OSError) as caught:
        view.read(b"none")
    assert caught.value.errno == errno.EIO and view.stat(b"none").st_size == 5
    view.chmod(b"zero", 0o600)
    view.rename(b"zero", b"renamed")
    view.write(b"one", b"X", 0)
    assert is_metacopy(world.upper / "renamed") == (metacopy == "on")
    assert view.read(b"renamed") == b"0" * 7000 and view.read(b"one") == b"X" + b"1" * 6999
    world.close(view)
    lowers = f"{world.lowers[0]}::{data[0]}::{data[1]}"
    options = KERNEL.replace("metacopy=on", f"metacopy={metacopy}")
    mount = mounts.kernel(Layers((Path(lowers),), world.upper, world.work), options=options)
    assert [(mount.target / name).read_bytes() for name in ("renamed", "one", "both")] == [b"0" * 7000, b"X" + b"1" * 6999, b"b0"]


@pytest.mark.overlayfs
@pytest.mark.root
def test_a_metacopy_in_upper_does_not_lead_straight_to_a_data_only_layer(scratch: Path, mounts: Mounts) -> None:
    """When a layer that was merged is made a data-only one, the upper's metacopies lose their data, here as there."""
    world = World(scratch, lowers=1)
    put(scratch / "data" / "big", b"data")
    put(world.upper / "direct", b"1234")
    mark(world.upper / "direct", "metacopy", b"")
    mark(world.upper / "direct", "redirect", b"/big")
    view = world.open(metacopy=True, data=[scratch / "data"])
    with pytest.raises(OSError) as caught:
        view.stat(b"direct")
    assert caught.value.errno == errno.EIO
    world.close(view)
    mount = mounts.kernel(Layers(tuple(world.lowers), world.upper, world.work, data=(scratch / "data",)), options=KERNEL)
    with pytest.raises(OSError) as caught:
        (mount.target / "direct").stat()
    assert caught.value.errno == errno.EIO
