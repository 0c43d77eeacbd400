"""``.wh.`` files and fuse-overlayfs's other marks: read under whfiles, written where the upper can hold no device."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.overlay.world import USERXATTR, World, is_whiteout, marked, put, whiteout
from unionfs.linux import files
from unionfs.overlay import stack as stack_module
from unionfs.overlay.diff import changes
from unionfs.overlay.features import Features


@pytest.fixture
def top(world: World) -> Path:
    return world.lowers[0]


@pytest.fixture
def base(world: World) -> Path:
    return world.lowers[1]


@pytest.fixture
def without_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uppers that cannot hold a device 0:0."""
    monkeypatch.setattr(stack_module, "can_make_devices", lambda _fd: False)


@pytest.fixture(params=["devices", "files", "attributes"])
def written(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every kind of upper."""
    if request.param != "devices":
        monkeypatch.setattr(stack_module, "can_make_devices", lambda _fd: False)
    if request.param == "attributes":
        monkeypatch.setattr(stack_module, "can_make_whiteout_files", lambda _fd: False)
        without = files.renameat2

        def renameat2(old_dir: int, old: bytes, new_dir: int, new: bytes, flags: int = 0) -> None:
            if flags & files.RENAME_WHITEOUT:
                raise OSError(errno.EINVAL, "no devices")
            without(old_dir, old, new_dir, new, flags)

        monkeypatch.setattr(files, "renameat2", renameat2)
    return str(request.param)


def on_disk(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


class TestReading:
    def test_a_file_hides_its_name_in_the_layers_below(self, world: World, top: Path, base: Path) -> None:
        put(base / "dir" / "gone", b"x")
        put(base / "dir" / "kept", b"x")
        put(top / "dir" / ".wh.gone")
        view = world.open(whfiles=True)
        assert view.names(b"dir") == [b"kept"]
        assert view.find(b"dir/gone") is None
        assert view.find(b"dir/.wh.gone") is None

    def test_it_does_not_hide_what_its_own_layer_has(self, world: World, top: Path, base: Path) -> None:
        put(base / "dir" / "below")
        put(top / "dir" / "own")
        put(top / ".wh.dir")
        put(base / "file", b"below")
        put(top / "file", b"own")
        put(top / ".wh.file")
        view = world.open(whfiles=True)
        assert view.names(b"dir") == [b"own"]
        assert view.read(b"file") == b"own"

    def test_off_they_are_files_like_any(self, world: World, top: Path, base: Path) -> None:
        put(base / "file", b"x")
        put(top / ".wh.file", b"y")
        put(top / "dir" / ".wh..wh..opq")
        put(base / "dir" / "below")
        view = world.open()
        assert view.names() == [b".wh.file", b"dir", b"file"]
        assert view.names(b"dir") == [b".wh..wh..opq", b"below"]
        assert view.read(b".wh.file") == b"y"
        view.make_file(b".wh.new")

    @pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", ".wh..wh.", ".wh..wh.plnk", ".wh." + "n" * 251])
    def test_no_name_with_the_prefix_is_shown(self, world: World, top: Path, base: Path, name: str) -> None:
        put(base / "file")
        put(top / name)
        view = world.open(whfiles=True)
        assert view.names() == [b"file"]
        assert view.find(os.fsencode(name)) is None

    def test_a_directory_or_a_device_with_the_prefix_hides_too(self, world: World, top: Path, base: Path, root: None) -> None:
        put(base / "one")
        put(base / "other")
        (top / ".wh.one").mkdir()
        whiteout(top / ".wh.other")
        assert world.open(whfiles=True).names() == []

    def test_an_opaque_file_makes_its_directory_opaque(self, world: World, top: Path, base: Path) -> None:
        put(base / "dir" / "below")
        put(top / "dir" / "own")
        put(top / "dir" / ".wh..wh..opq")
        assert world.open(whfiles=True).names(b"dir") == [b"own"]

    def test_so_does_the_device_that_fuse_overlayfs_leaves(self, world: World, top: Path, base: Path, root: None) -> None:
        put(base / "dir" / "below")
        put(top / "dir" / "own")
        whiteout(top / "dir" / ".wh..opq")
        assert world.open(whfiles=True).names(b"dir") == [b"own"]

    def test_a_file_of_that_name_hides_a_name(self, world: World, top: Path, base: Path) -> None:
        put(base / "dir" / "below")
        put(base / "dir" / ".opq")
        put(top / "dir" / ".wh..opq")
        assert world.open(whfiles=True).names(b"dir") == [b"below"]

    @pytest.mark.parametrize("attribute", ["user.fuseoverlayfs.opaque", "user.overlay.opaque"])
    def test_so_do_the_attributes_that_fuse_overlayfs_writes(self, world: World, top: Path, base: Path, attribute: str) -> None:
        put(base / "dir" / "below")
        put(top / "dir" / "own")
        os.setxattr(top / "dir", attribute, b"y")
        assert world.open(whfiles=True).names(b"dir") == [b"own"]

    def test_the_other_namespace_does_not_count_without_whfiles(self, world: World, top: Path, base: Path, root: None) -> None:
        put(base / "dir" / "below")
        put(top / "dir" / "own")
        for attribute in ("user.fuseoverlayfs.opaque", "user.overlay.opaque"):
            os.setxattr(top / "dir", attribute, b"y")
        view = world.open(userxattr=False)
        assert view.names(b"dir") == [b"below", b"own"]
        assert view.xattrs(b"dir") == {b"user.fuseoverlayfs.opaque": b"y", b"user.overlay.opaque": b"y"}

    def test_an_opaque_root_hides_the_layers_below(self, world: World, top: Path, base: Path) -> None:
        put(base / "below")
        put(top / "own")
        put(top / ".wh..wh..opq")
        assert world.open(whfiles=True).names() == [b"own"]

    def test_an_opaque_root_of_upper_hides_all_lowers(self, world: World, base: Path) -> None:
        put(base / "below")
        put(world.upper / "own")
        put(world.upper / ".wh..wh..opq")
        assert world.open(whfiles=True).names() == [b"own"]

    def test_marks_of_all_programs_are_no_attributes_of_a_file(self, world: World, top: Path) -> None:
        put(top / "file")
        for name in ("user.fuseoverlayfs.origin", "user.overlay.origin", "user.mime"):
            os.setxattr(top / "file", name, b"v")
        view = world.open(whfiles=True)
        assert view.xattrs(b"file") == {b"user.mime": b"v"}
        view.write(b"file", b"x")
        assert b"user.fuseoverlayfs.origin" not in {os.fsencode(name) for name in os.listxattr(world.upper / "file")}

    def test_a_user_can_set_them_all_the_same(self, world: World) -> None:
        view = world.open(whfiles=True)
        view.mkdir(b"dir")
        for name in (b"user.fuseoverlayfs.opaque", b"user.overlay.opaque"):
            view.union.setxattr(view.ino(b"dir"), name, b"y")
            assert view.union.getxattr(view.ino(b"dir"), name) == b"y"
        assert set(view.xattrs(b"dir")) == {b"user.fuseoverlayfs.opaque", b"user.overlay.opaque"}
        assert not {"user.fuseoverlayfs.opaque", "user.overlay.opaque"} & set(os.listxattr(world.upper / "dir"))


class TestReservedNames:
    def test_making_one_is_refused(self, world: World) -> None:
        put(world.upper / "file")
        view = world.open(whfiles=True)
        attempts: list[Callable[[], object]] = [
            lambda: view.make_file(b".wh.x"),
            lambda: view.mkdir(b".wh.x"),
            lambda: view.symlink(b"x", b".wh."),
            lambda: view.mknod(b".wh.x", stat.S_IFIFO | 0o600),
            lambda: view.link(b"file", b".wh.x"),
            lambda: view.rename(b"file", b".wh.x"),
            lambda: view.rename(b"file", b".wh.x", files.RENAME_EXCHANGE),
        ]
        for attempt in attempts:
            with pytest.raises(OSError) as caught:
                attempt()
            assert caught.value.errno == errno.EINVAL
        assert on_disk(world.upper) == ["file"]

    def test_removing_one_finds_nothing(self, world: World, top: Path) -> None:
        put(top / ".wh.x")
        view = world.open(whfiles=True)
        with pytest.raises(FileNotFoundError):
            view.unlink(b".wh.x")


def filled(world: World, top: Path) -> None:
    """Lower content under names that upper hides by files."""
    for name in ("file", "dir/below", "other"):
        put(top / name, b"lower")
    for name in (".wh.file", ".wh.dir", ".wh.other"):
        put(world.upper / name)


class TestChanging:
    def test_what_is_made_over_a_whiteout_file_is_seen_and_the_file_goes(
        self, world: World, top: Path, written: str, lowers_untouched: Callable[[], None]
    ) -> None:
        filled(world, top)
        lowers_untouched()
        view = world.open(whfiles=True)
        assert view.names() == []
        view.make_file(b"file", b"new")
        view.mkdir(b"dir")
        view.symlink(b"target", b"other")
        for after in (view, world.reopen_with(view, whfiles=True)):
            assert after.names() == [b"dir", b"file", b"other"]
            assert after.names(b"dir") == []
            assert after.read(b"file") == b"new"
        assert on_disk(world.upper) == ["dir", "file", "other"]

    def test_deletions_stay_deletions(self, world: World, top: Path, written: str) -> None:
        filled(world, top)
        view = world.open(whfiles=True)
        view.make_file(b"file", b"new")
        view.mkdir(b"dir")
        view.make_file(b"dir/own")
        view.unlink(b"file")
        view.unlink(b"dir/own")
        view.rmdir(b"dir")
        assert world.reopen_with(view, whfiles=True).names() == []

    def test_whiteouts_take_the_form_of_the_upper(self, world: World, top: Path, written: str) -> None:
        put(top / "file")
        put(top / "dir" / "below")
        view = world.open(whfiles=True)
        view.unlink(b"file")
        view.unlink(b"dir/below")
        view.rmdir(b"dir")
        if written == "files":
            assert on_disk(world.upper) == [".wh.dir", ".wh.file"]
        elif written == "devices":
            assert all(is_whiteout(world.upper / name) for name in ("dir", "file"))
        else:
            assert marked(world.upper, "opaque") == b"x"
            assert marked(world.upper / "dir", "whiteout") == marked(world.upper / "file", "whiteout") == b"y"
        assert world.reopen_with(view, whfiles=True).names() == []

    def test_moving_onto_a_hidden_name(self, world: World, top: Path, written: str) -> None:
        filled(world, top)
        put(top / "moved", b"m")
        put(world.upper / "newdir" / "x")
        view = world.open(whfiles=True)
        view.rename(b"moved", b"file")
        view.rename(b"newdir", b"dir")
        for after in (view, world.reopen_with(view, whfiles=True)):
            assert after.names() == [b"dir", b"file"]
            assert after.names(b"dir") == [b"x"]
            assert after.read(b"file") == b"m"
        assert not [name for name in on_disk(world.upper) if name in (".wh.file", ".wh.dir")]

    def test_moving_what_is_below_leaves_a_whiteout(self, world: World, top: Path, written: str) -> None:
        put(top / "file", b"f")
        put(top / "there", b"t")
        view = world.open(whfiles=True)
        view.rename(b"file", b"new")
        view.rename(b"new", b"there")
        after = world.reopen_with(view, whfiles=True)
        assert after.names() == [b"there"]
        assert after.read(b"there") == b"f"
        after.unlink(b"there")
        assert world.reopen_with(after, whfiles=True).names() == []

    def test_exchanging_with_an_object_that_has_a_file_beside_it(self, world: World, top: Path, written: str) -> None:
        put(top / "dir" / "below")
        put(world.upper / "dir" / "own")
        put(world.upper / ".wh.dir")
        put(world.upper / "file", b"f")
        view = world.open(whfiles=True)
        view.rename(b"dir", b"file", files.RENAME_EXCHANGE)
        after = world.reopen_with(view, whfiles=True)
        assert after.read(b"dir") == b"f"
        assert after.names(b"file") == [b"own"]

    @pytest.mark.parametrize("userxattr", [False, True])
    def test_moving_a_directory_of_a_lower(self, world: World, top: Path, base: Path, written: str, userxattr: bool, root: None) -> None:
        """By redirect or copied up whole; what was deleted in it stays so, and so does its old name."""
        for name in ("one", "two", "below/one", "below/two"):
            put(base / "dir" / name, name.encode())
        put(top / "dir" / ".wh.one")
        put(world.upper / "dir" / ".wh.two")
        put(world.upper / "dir" / "below" / ".wh.one")
        view = world.open(whfiles=True, userxattr=userxattr, copy_limit=1 << 20)
        view.rename(b"dir", b"new")
        view.mkdir(b"dir")
        world.close(view)
        for _ in range(2):
            view = world.open(whfiles=True, userxattr=userxattr, copy_limit=1 << 20)
            assert view.names() == [b"dir", b"new"]
            assert view.names(b"dir") == []
            assert view.names(b"new") == [b"below"]
            assert view.names(b"new/below") == [b"two"]
            assert view.read(b"new/below/two") == b"below/two"
            view.write(b"new/below/two", b"below/two")
            world.close(view)

    def test_removing_an_object_that_has_a_file_beside_it(self, world: World, top: Path, written: str) -> None:
        put(top / "dir" / "below")
        (world.upper / "dir").mkdir()
        put(world.upper / ".wh.dir")
        put(top / "file")
        put(world.upper / "file")
        put(world.upper / ".wh.file")
        view = world.open(whfiles=True)
        view.unlink(b"file")
        view.rmdir(b"dir")
        view.mkdir(b"dir")
        assert world.reopen_with(view, whfiles=True).names() == [b"dir"]
        assert on_disk(world.upper / "dir") == []
        assert marked(world.upper / "dir", "opaque") == b"y"

    def test_a_directory_of_marks_alone_is_empty(self, world: World, top: Path, written: str) -> None:
        put(top / "one" / "below")
        for name in ("one", "two"):
            put(world.upper / name / ".wh.below")
            put(world.upper / name / ".wh..wh..opq")
        put(world.upper / "three" / "x")
        view = world.open(whfiles=True)
        assert view.names(b"one") == []
        view.rename(b"three", b"two")
        view.rmdir(b"one")
        after = world.reopen_with(view, whfiles=True)
        assert after.names() == [b"two"]
        assert after.names(b"two") == [b"x"]

    def test_a_whiteout_directory_goes_with_its_content(self, world: World, top: Path, written: str) -> None:
        put(top / "file", b"lower")
        put(world.upper / ".wh.file" / "inside")
        view = world.open(whfiles=True)
        view.make_file(b"file", b"new")
        assert on_disk(world.upper) == ["file"]
        assert on_disk(world.building) == []


class TestWithoutDevices:
    pytestmark = pytest.mark.usefixtures("without_devices")

    def test_whiteout_files_count_though_nobody_asked(self, world: World, top: Path) -> None:
        put(top / "file")
        view = world.open()
        assert view.union.stack.features.whfiles
        view.unlink(b"file")
        assert world.reopen(view).names() == []

    def test_a_name_too_long_for_a_whiteout_file_stays(self, world: World, top: Path) -> None:
        name = b"n" * 252
        put(top / os.fsdecode(name))
        view = world.open()
        with pytest.raises(OSError) as caught:
            view.unlink(name)
        assert caught.value.errno == errno.ENAMETOOLONG
        assert view.names() == [name]

    def test_a_removal_that_fails_leaves_no_whiteout(self, world: World, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        put(top / "file")
        put(world.upper / "file")
        view = world.open()

        def fail(*_arguments: object, **_more: object) -> None:
            raise OSError(errno.EIO, "as planned")

        with monkeypatch.context() as patched:
            real = os.unlink
            patched.setattr(os, "unlink", lambda name, **more: fail() if name == b"file" else real(name, **more))
            with pytest.raises(OSError):
                view.unlink(b"file")
        assert on_disk(world.upper) == ["file"]

    def test_a_device_that_came_with_the_upper_is_replaced_when_its_name_changes(self, world: World, top: Path, root: None) -> None:
        put(top / "file")
        whiteout(world.upper / "file")
        view = world.open()
        view.make_file(b"file", b"new")
        assert view.read(b"file") == b"new"
        assert on_disk(world.upper) == ["file"]


class TestUpperOnOverlayfs:
    def test_the_probe_notices(self, world: World, top: Path, overlayfs: Callable[[], Path]) -> None:
        put(top / "file")
        inside = overlayfs()
        world.upper, world.work = inside / "upper", inside / "work"
        world.upper.mkdir()
        world.work.mkdir()
        view = world.open()
        view.unlink(b"file")
        assert on_disk(world.upper) == [".wh.file"]
        assert world.reopen(view).names() == []


def test_changes_shows_whiteout_files_as_deletions(world: World, top: Path) -> None:
    put(top / "file")
    put(top / "dir" / "below")
    put(top / "merged" / "below")
    put(world.upper / ".wh.file")
    put(world.upper / "dir" / "own")
    put(world.upper / ".wh.dir")
    put(world.upper / "merged" / ".wh..wh..opq")
    lowers, upper, _ = world.stack_arguments()
    assert upper is not None
    found = [(change.kind.value, change.path) for change in changes(upper, lowers, Features(whfiles=True, userxattr=USERXATTR))]
    assert found == [
        ("C", b"/dir"), ("D", b"/dir/below"), ("A", b"/dir/own"), ("D", b"/file"), ("C", b"/merged"), ("D", b"/merged/below"),
    ]

