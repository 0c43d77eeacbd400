"""One layer: only reached through its root, nothing followed out of it, whiteouts told from what they are not."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import system
from tests.support.mounts import Layers, Mounts
from tests.unit.overlay.world import PREFIX, USERXATTR, View, World, mark, put, whiteout
from unionfs.linux import xattrs
from unionfs.overlay import stack
from unionfs.overlay.layer import Layer
from unionfs.overlay.union import Change
from unionfs.overlay.whiteout import XattrNames

NAMES = XattrNames(USERXATTR)
CANARY = b"this is outside"


@pytest.fixture
def layer_at(scratch: Path) -> Iterator[Callable[..., Layer]]:
    made: list[Layer] = []

    def open_layer(path: Path, private: bool = True) -> Layer:
        layer = Layer(os.open(path, os.O_PATH | os.O_DIRECTORY), private=private, where=os.fsencode(path))
        made.append(layer)
        return layer

    yield open_layer
    for layer in made:
        layer.close()


# ---- a hostile layer ----

@pytest.fixture
def outside(scratch: Path) -> Path:
    """A directory beside the layers, with a canary nobody may reach through them."""
    directory = scratch / "outside"
    put(directory / "canary", CANARY)
    put(directory / "sub" / "canary", CANARY)
    return directory


@pytest.mark.parametrize("private", [True, False], ids=["a clone of the mount", "the mount itself"])
@pytest.mark.parametrize("path", [
    b"absolute", b"relative", b"absolute/sub", b"relative/sub", b"inside", b"inside/sub", b"directory/../absolute",
    b"self/directory", b"loop/x", b"proc",
])
def test_no_directory_is_opened_through_a_symlink(
    scratch: Path, outside: Path, layer_at: Callable[..., Layer], private: bool, path: bytes
) -> None:
    top = scratch / "layer"
    put(top / "directory" / "sub" / "file")
    for name, target in (("absolute", str(outside)), ("relative", "../outside"), ("inside", "directory"),
                         ("self", "."), ("loop", "loop"), ("proc", "/proc/self/cwd")):
        (top / name).symlink_to(target)
    with pytest.raises(OSError) as caught:
        layer_at(top, private).open_directory(path)
    assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)


@pytest.mark.parametrize("path", [b"..", b"../outside", b"directory/../../outside", b"/../outside"])
def test_dots_stop_at_the_root_of_the_layer(
    scratch: Path, outside: Path, layer_at: Callable[..., Layer], path: bytes
) -> None:
    top = scratch / "layer"
    (top / "directory").mkdir(parents=True)
    layer = layer_at(top)
    try:
        fd = layer.open_directory(path)
    except FileNotFoundError:
        return
    try:
        assert "canary" not in os.listdir(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


@pytest.mark.parametrize("private", [True, False], ids=["a clone of the mount", "the mount itself"])
@pytest.mark.parametrize("target", ["absolute", "relative", "magic"])
def test_no_file_is_opened_through_a_symlink(
    scratch: Path, outside: Path, layer_at: Callable[..., Layer], private: bool, target: str
) -> None:
    top = scratch / "layer"
    top.mkdir()
    targets = {"absolute": str(outside / "canary"), "relative": "../outside/canary", "magic": "/proc/self/exe"}
    (top / "link").symlink_to(targets[target])
    layer = layer_at(top, private)
    with pytest.raises(OSError) as caught:
        layer.open_file(layer.root_fd, b"link", os.O_RDONLY)
    assert caught.value.errno == errno.ELOOP
    assert stat.S_ISLNK(layer.stat(layer.root_fd, b"link").st_mode)


def _every_verb(view: View, path: bytes) -> None:
    """Whatever can be asked or changed at *path*; errors are the layer's own business."""
    union = view.union

    def on(action: Callable[[], object]) -> None:
        try:
            action()
        except OSError:
            pass

    on(lambda: view.names(path))
    on(lambda: view.read(path))
    on(lambda: view.xattrs(path))
    for name in (b"canary", b"sub", b"..", b"new"):
        on(lambda name=name: view.find(path + b"/" + name))  # type: ignore[misc]
    on(lambda: view.write(path, b"overwritten"))
    on(lambda: view.change(path, Change(size=0, mode=0o600, mtime_ns=1)))
    on(lambda: union.setxattr(view.ino(path), b"user.test", b"1"))
    on(lambda: view.make_file(path + b"/new"))
    on(lambda: view.mkdir(path + b"/newdir"))
    on(lambda: view.unlink(path + b"/canary"))
    on(lambda: view.rename(path, path + b"2"))
    on(lambda: view.unlink(path + b"2"))


def test_a_layer_full_of_symlinks_gives_nobody_a_way_out(world: World, outside: Path) -> None:
    top, base = world.lowers
    before = {path: path.read_bytes() for path in outside.rglob("canary")}
    for name, target in {"absolute": str(outside), "relative": "../outside", "up": "..", "canary": str(outside / "canary"),
                         "root": "/", "cwd": "/proc/self/cwd"}.items():
        (top / name).symlink_to(target)
    # the same names as directories below, so that a careless merge would follow the link on top
    for name in ("absolute", "relative", "up"):
        put(base / name / "sub" / "below")
        put(base / name / "canary", b"inside")
    view = world.open()
    assert view.readlink(b"absolute") == os.fsencode(outside)
    with pytest.raises(NotADirectoryError):
        view.names(b"absolute")
    for shown in view.names():
        _every_verb(view, shown)
    assert {path: path.read_bytes() for path in outside.rglob("canary")} == before
    assert sorted(path.name for path in outside.iterdir()) == ["canary", "sub"]
    assert all(path.lstat().st_mode & 0o777 == 0o644 for path in before)


def test_a_directory_swapped_for_a_symlink_behind_our_back_is_not_followed(world: World, outside: Path) -> None:
    put(world.lowers[0] / "directory" / "sub" / "file", b"inside")
    view = world.open()
    assert view.names(b"directory") == [b"sub"]
    (world.lowers[0] / "directory").rename(world.lowers[0] / "away")
    (world.lowers[0] / "directory").symlink_to(outside)
    with pytest.raises(OSError, match="."):
        view.names(b"directory/sub")
    assert stat.S_ISLNK(view.stat(b"directory").st_mode)  # a symlink of the union, for its user to follow in the union


# ---- what a listing says ----

def scanned(layer: Layer) -> dict[bytes, int]:
    return dict(layer.scan(layer.root_fd, NAMES))


def test_a_listing_tells_the_types(scratch: Path, layer_at: Callable[..., Layer]) -> None:
    top = scratch / "layer"
    put(top / "file")
    (top / "directory").mkdir()
    (top / "link").symlink_to("directory")
    os.mkfifo(top / "fifo")
    put(top / "caf\udce9")
    assert scanned(layer_at(top)) == {
        b"file": stat.S_IFREG, b"directory": stat.S_IFDIR, b"link": stat.S_IFLNK, b"fifo": stat.S_IFIFO,
        b"caf\xe9": stat.S_IFREG,
    }


def test_a_whiteout_is_a_device_0_0_and_other_devices_are_not(
    root: None, scratch: Path, layer_at: Callable[..., Layer]
) -> None:
    top = scratch / "layer"
    whiteout(top / "gone")
    os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(top / "block", stat.S_IFBLK | 0o600, os.makedev(0, 0))
    assert scanned(layer_at(top)) == {b"gone": 0, b"null": stat.S_IFCHR, b"block": stat.S_IFBLK}


@pytest.mark.root
@pytest.mark.overlayfs
def test_what_an_overlay_below_lists_and_does_not_find_is_passed_over(
    scratch: Path, mounts: Mounts, layer_at: Callable[..., Layer]
) -> None:
    """The kernel's overlayfs lists whiteouts of directories that it does not merge."""
    top, base = scratch / "top", scratch / "base"
    put(top / "directory" / "file")
    whiteout(top / "directory" / "gone")
    put(top / "directory" / "gone too")
    mark(top / "directory" / "gone too", "whiteout")
    mark(top / "directory", "opaque", b"x")
    os.setxattr(top / "directory", f"{PREFIX}overlay.opaque", b"x")  # so that the overlay shows the mark, too
    base.mkdir()
    mount = mounts.kernel(Layers((top, base)))
    assert sorted(os.listdir(mount.target / "directory")) == ["file", "gone", "gone too"]
    layer = layer_at(mount.target)
    fd = layer.open_directory(b"directory")
    assert list(layer.scan(fd, NAMES)) == [(b"file", stat.S_IFREG)]
    os.close(fd)


@pytest.mark.root
@pytest.mark.overlayfs
def test_what_an_overlay_below_lists_and_does_not_find_can_be_made(world: World, mounts: Mounts) -> None:
    top, base = world.lowers
    put(base / "directory" / "file")
    mark(put(base / "directory" / "gone"), "whiteout")
    (base.parent / "empty").mkdir()
    mount = mounts.kernel(Layers((base, base.parent / "empty")))
    world.lowers[:] = [top, mount.target]
    view = world.open()
    assert view.names(b"directory") == [b"file", b"gone"]
    assert view.find(b"directory/gone") is None
    view.make_file(b"directory/gone", b"new")
    assert view.names(b"directory") == [b"file", b"gone"]
    assert view.read(b"directory/gone") == b"new"
    world.close_all()


def test_an_xattr_whiteout_counts_only_in_a_directory_marked_x(scratch: Path, layer_at: Callable[..., Layer]) -> None:
    top = scratch / "layer"
    mark(put(top / "gone"), "whiteout", b"")
    mark(put(top / "full", b"content"), "whiteout", b"")
    put(top / "plain")
    layer = layer_at(top)
    assert scanned(layer) == dict.fromkeys((b"gone", b"full", b"plain"), stat.S_IFREG)
    mark(top, "opaque", b"x")
    assert scanned(layer) == {b"gone": 0, b"full": stat.S_IFREG, b"plain": stat.S_IFREG}


@pytest.mark.parametrize(("value", "expected"), [(b"y", True), (b"x", False), (b"", False), (b"yes", False), (b"Y", False)])
def test_a_directory_is_opaque_by_exactly_one_y(
    scratch: Path, layer_at: Callable[..., Layer], value: bytes, expected: bool
) -> None:
    (scratch / "layer" / "directory").mkdir(parents=True)
    mark(scratch / "layer" / "directory", "opaque", value)
    layer = layer_at(scratch / "layer")
    assert layer.is_opaque(layer.root_fd, b"directory", NAMES) is expected


def test_the_mark_of_the_other_namespace_makes_nothing_opaque(
    root: None, scratch: Path, layer_at: Callable[..., Layer]
) -> None:
    (scratch / "layer" / "directory").mkdir(parents=True)
    os.setxattr(scratch / "layer" / "directory", "user.overlay.opaque", b"y")
    layer = layer_at(scratch / "layer")
    assert not layer.is_opaque(layer.root_fd, b"directory", XattrNames(False))
    assert layer.is_opaque(layer.root_fd, b"directory", XattrNames(True))


def test_a_trap_is_listed_empty(scratch: Path, layer_at: Callable[..., Layer]) -> None:
    put(scratch / "layer" / "file")
    layer = layer_at(scratch / "layer")
    st = (scratch / "layer").stat()
    layer.traps = frozenset({(st.st_dev, st.st_ino)})
    assert scanned(layer) == {}


# ---- mounts in a layer ----

@pytest.fixture
def mounted_in_lower(world: World, tmpfs: Callable[..., Path]) -> Path:
    """lower0/mountpoint: a directory with a file in it, over which a tmpfs with a canary is mounted."""
    put(world.lowers[0] / "mountpoint" / "under", b"under the mount")
    point = tmpfs("lower0/mountpoint", "")
    put(point / "canary", CANARY)
    os.setxattr(point, "trusted.canary", b"outside")
    return point


def test_as_root_what_is_mounted_in_a_layer_is_not_there(world: World, mounted_in_lower: Path) -> None:
    view = world.open()
    assert view.names(b"mountpoint") == [b"under"]
    assert view.read(b"mountpoint/under") == b"under the mount"
    assert view.xattrs(b"mountpoint") == {}


@pytest.fixture
def no_clones(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for an ordinary user: no private clone of a mount."""
    monkeypatch.setattr(stack, "_clone", lambda _fd, _attrs: None)


class TestWithoutClones:
    """A mount point is an empty directory, and the filesystem mounted on it is never asked anything: it may be our own."""

    def test_it_is_listed_as_an_empty_directory(self, world: World, mounted_in_lower: Path, no_clones: None) -> None:
        view = world.open()
        assert view.names() == [b"mountpoint"]
        assert view.names(b"mountpoint") == []
        assert view.find(b"mountpoint/canary") is None

    def test_its_attributes_are_complete(self, world: World, mounted_in_lower: Path, no_clones: None) -> None:
        st = world.open().stat(b"mountpoint")
        assert stat.S_ISDIR(st.st_mode)
        above = world.lowers[0].stat()
        assert (st.st_uid, st.st_gid, st.st_mtime_ns) == (above.st_uid, above.st_gid, above.st_mtime_ns)
        assert (st.st_blksize, st.st_blocks, st.st_rdev) == (above.st_blksize, above.st_blocks, 0)

    def test_its_xattrs_are_not_those_of_the_mounted(self, world: World, mounted_in_lower: Path, no_clones: None) -> None:
        """It may say that it has none, or that it can have none."""
        view = world.open()
        ino = view.ino(b"mountpoint")
        with pytest.raises(OSError) as caught:
            view.union.getxattr(ino, b"trusted.canary")
        assert caught.value.errno in (errno.ENODATA, errno.EOPNOTSUPP)
        try:
            assert view.union.listxattr(ino) == []
        except OSError as exc:
            assert exc.errno == errno.EOPNOTSUPP

    def test_its_copy_in_upper_has_nothing_of_the_mounted(
        self, world: World, mounted_in_lower: Path, no_clones: None
    ) -> None:
        view = world.open()
        view.make_file(b"mountpoint/new", b"new")
        assert view.names(b"mountpoint") == [b"new"]
        assert "trusted.canary" not in os.listxattr(world.upper / "mountpoint")
        assert not (mounted_in_lower / "new").exists()

    def test_it_merges_as_if_it_were_empty(self, world: World, mounted_in_lower: Path, no_clones: None) -> None:
        put(world.lowers[1] / "mountpoint" / "below", b"below")
        os.setxattr(mounted_in_lower, PREFIX + "opaque", b"y")
        view = world.open()
        assert view.names(b"mountpoint") == [b"below"]

    def test_a_mounted_file_is_not_opened(self, world: World, scratch: Path, no_clones: None, root: None) -> None:
        put(world.lowers[0] / "file", b"under the mount")
        put(scratch / "canary", CANARY)
        system.mount(str(scratch / "canary"), world.lowers[0] / "file", "", 0x1000)
        try:
            view = world.open()
            with pytest.raises(OSError, match="."):
                view.read(b"file")
        finally:
            world.close_all()
            system.unmount(world.lowers[0] / "file", system.MNT_DETACH)


def test_what_can_have_no_acl_has_none(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel fails every permission check by another user on any answer but "none"."""
    put(world.lowers[0] / "file", b"x")
    view = world.open()
    ino = view.ino(b"file")

    def unsupported(path: bytes, name: bytes) -> bytes:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(xattrs, "get", unsupported)
    for name in (b"system.posix_acl_access", b"system.posix_acl_default"):
        with pytest.raises(OSError) as caught:
            view.union.getxattr(ino, name)
        assert caught.value.errno == errno.ENODATA
    with pytest.raises(OSError) as caught:
        view.union.getxattr(ino, b"user.other")
    assert caught.value.errno == errno.EOPNOTSUPP


def test_directories_are_reached_whose_path_is_longer_than_the_kernel_takes_at_once(world: World) -> None:
    fd = os.open(world.lowers[1], os.O_RDONLY)
    for _ in range(45):
        os.mkdir(b"n" * 200, dir_fd=fd)
        below = os.open(b"n" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open(b"file", os.O_WRONLY | os.O_CREAT, dir_fd=fd))
    os.close(fd)
    view = world.open()
    deepest = b"/".join([b"n" * 200] * 45)
    view.write(deepest + b"/file", b"changed")
    view.rename(deepest + b"/file", deepest + b"/moved")
    assert view.names(deepest) == [b"moved"]
    view = world.reopen(view)
    assert view.read(deepest + b"/moved") == b"changed"
