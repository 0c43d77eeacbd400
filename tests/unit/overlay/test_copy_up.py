"""Copy-up: complete, atomic, and leaving nothing behind when it fails."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import acl
from tests.unit.overlay.world import (
    View,
    World,
    descriptors,
    mark,
    marked,
    no_descriptor_left,
    put,
    whiteout,
)
from unionfs.linux import files
from unionfs.overlay import copy_up
from unionfs.overlay.copy_up import decode_origin, encode_origin, remove_tree
from unionfs.overlay.descriptors import Descriptors
from unionfs.overlay.features import Sync
from unionfs.overlay.union import Change

OLD_NS = 1_234_567_890_123_456_789


@pytest.fixture
def lower(world: World) -> Path:
    return world.lowers[0]


def age(path: Path, ns: int = OLD_NS) -> None:
    os.utime(path, ns=(ns - 1, ns), follow_symlinks=False)


def touch_up(view: View, path: bytes) -> None:
    """The smallest change that brings an object up and leaves its content, mode and mtime alone."""
    view.union.setxattr(view.ino(path), b"user.touched", b"1")


# ---- what is kept ----

def test_a_file_keeps_content_mode_owner_and_nanosecond_times(world: World, lower: Path, root: None) -> None:
    put(lower / "file", b"content", 0o640)
    os.chown(lower / "file", 1234, 5678)
    age(lower / "file")
    touch_up(world.open(), b"file")
    copy = (world.upper / "file").stat()
    assert (world.upper / "file").read_bytes() == b"content"
    assert (stat.S_IMODE(copy.st_mode), copy.st_uid, copy.st_gid) == (0o640, 1234, 5678)
    assert (copy.st_mtime_ns, copy.st_atime_ns) == (OLD_NS, OLD_NS - 1)


@pytest.mark.parametrize("mode", [0o6755, 0o4711, 0o2755, 0o1777, 0o000])
def test_special_bits_of_the_mode_survive_the_change_of_owner(world: World, lower: Path, root: None, mode: int) -> None:
    put(lower / "file", b"x")
    os.chown(lower / "file", 1000, 1000)
    (lower / "file").chmod(mode)
    touch_up(world.open(), b"file")
    assert stat.S_IMODE((world.upper / "file").stat().st_mode) == mode


def test_xattrs_and_acls_come_along_and_marks_stay_behind(world: World, lower: Path, root: None) -> None:
    put(lower / "dir" / "file", b"x", 0o640)
    access = acl.encode(6, 4, 0, users={1000: 6}, mask=6)
    default = acl.encode(7, 5, 0, groups={50: 7}, mask=7)
    os.setxattr(lower / "dir" / "file", acl.ACCESS, access)
    os.setxattr(lower / "dir", acl.DEFAULT, default)
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    for name, value in (("user.plain", b"1"), ("trusted.other", b"2"), ("security.capability", capability),
                        ("trusted.overlay.overlay.nested", b"3"), ("trusted.overlay.redirect", b"no"),
                        ("trusted.overlay.unheard", b"no")):
        os.setxattr(lower / "dir" / "file", name, value)
    mark(lower / "dir", "opaque", b"y")
    touch_up(world.open(), b"dir/file")
    copy = world.upper / "dir" / "file"
    assert os.getxattr(copy, acl.ACCESS) == access
    assert os.getxattr(world.upper / "dir", acl.DEFAULT) == default
    names = {name for name in os.listxattr(copy) if name != "user.touched"}
    assert names == {"user.plain", "trusted.other", "security.capability", "trusted.overlay.overlay.nested",
                     "trusted.overlay.origin", acl.ACCESS}
    assert os.getxattr(copy, "security.capability") == capability
    assert marked(world.upper / "dir", "opaque") is None
    assert stat.S_IMODE(copy.stat().st_mode) == 0o660  # the mask shows as group bits


def test_what_is_built_in_work_inherits_no_acl_from_it(world: World, lower: Path, root: None) -> None:
    put(lower / "file", b"x", 0o600)
    os.setxattr(world.work, acl.DEFAULT, acl.encode(7, 7, 7, users={1000: 7}))
    touch_up(world.open(), b"file")
    assert acl.ACCESS not in os.listxattr(world.upper / "file")
    assert stat.S_IMODE((world.upper / "file").stat().st_mode) == 0o600


def test_a_symlink_keeps_target_owner_and_times(world: World, lower: Path, root: None) -> None:
    os.symlink(b"../any\xffwhere", os.fsencode(lower) + b"/link")
    os.lchown(lower / "link", 1000, 1001)
    age(lower / "link")
    view = world.open()
    view.change(b"link", Change(atime_ns=5))
    copy = (world.upper / "link").lstat()
    assert os.readlink(os.fsencode(world.upper / "link")) == b"../any\xffwhere"
    assert (copy.st_uid, copy.st_gid, copy.st_mtime_ns, copy.st_atime_ns) == (1000, 1001, OLD_NS, 5)


@pytest.mark.parametrize(
    ("kind", "device"),
    [(stat.S_IFCHR, os.makedev(1, 3)), (stat.S_IFBLK, os.makedev(259, 70000)), (stat.S_IFIFO, 0), (stat.S_IFSOCK, 0)],
    ids=["character device", "block device", "fifo", "socket"],
)
def test_a_special_file_keeps_its_kind_number_mode_and_times(
    world: World, lower: Path, root: None, kind: int, device: int
) -> None:
    os.mknod(lower / "special", kind | 0o622, device)
    os.chown(lower / "special", 3, 4)
    age(lower / "special")
    world.open().change(b"special", Change(atime_ns=7))
    copy = (world.upper / "special").lstat()
    assert (copy.st_mode, copy.st_rdev) == (kind | 0o622, device)
    assert (copy.st_uid, copy.st_gid, copy.st_mtime_ns) == (3, 4, OLD_NS)


def test_a_socket_is_copied_by_an_ordinary_user_too(
    world: World, lower: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        monkeypatch.chdir(lower)  # the path may be too long for a socket's name
        bound.bind("socket")
    world.open().chmod(b"socket", 0o600)
    assert stat.S_ISSOCK((world.upper / "socket").lstat().st_mode)


def allocated_extents(path: Path) -> list[tuple[int, int]]:
    found = []
    with path.open("rb") as stream:
        position, size = 0, os.fstat(stream.fileno()).st_size
        while position < size:
            try:
                start = os.lseek(stream.fileno(), position, os.SEEK_DATA)
            except OSError:
                break
            position = os.lseek(stream.fileno(), start, os.SEEK_HOLE)
            found.append((start, position))
    return found


@pytest.mark.parametrize("extents", [
    [], [(0, 4096)], [(1 << 20, (1 << 20) + 8192)], [(0, 4096), (1 << 20, (1 << 20) + 4096), (3 << 20, 4 << 20)],
], ids=["only a hole", "data then hole", "hole, data, hole", "several"])
def test_holes_stay_holes(world: World, lower: Path, extents: list[tuple[int, int]]) -> None:
    size = 4 << 20
    with (lower / "sparse").open("wb") as stream:
        stream.truncate(size)
        for start, end in extents:
            os.pwrite(stream.fileno(), os.urandom(end - start), start)
    assert allocated_extents(lower / "sparse") == extents
    touch_up(world.open(), b"sparse")
    copy = world.upper / "sparse"
    assert copy.read_bytes() == (lower / "sparse").read_bytes()
    assert allocated_extents(copy) == extents


def test_what_was_copied_up_is_changed_by_the_descriptor_it_was_built_with(
    world: World, lower: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(lower / "file", b"0123")
    view = world.open()
    view.chmod(b"file", 0o640)
    monkeypatch.setattr(Descriptors, "open_file", lambda *_: pytest.fail("opened once more"))
    view.write(b"file", b"x")
    assert view.read(b"file") == (world.upper / "file").read_bytes() == b"x123"
    assert (world.upper / "file").stat().st_mode & 0o777 == 0o640


def test_a_file_that_will_be_truncated_is_copied_no_further(
    world: World, lower: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(lower / "file", b"0123456789")
    asked = []
    copy_data = files.copy_data

    def watched(source: int, target: int, size: int) -> None:
        asked.append(size)
        copy_data(source, target, size)

    monkeypatch.setattr(files, "copy_data", watched)
    view = world.open()
    view.change(b"file", Change(size=4))
    assert (view.read(b"file"), asked) == (b"0123", [4])


def test_truncating_to_more_gives_zeros(world: World, lower: Path) -> None:
    put(lower / "file", b"0123")
    view = world.open()
    view.change(b"file", Change(size=8))
    assert view.read(b"file") == b"0123\0\0\0\0"


def test_parents_come_up_first_and_keep_mode_owner_and_times(world: World, lower: Path, root: None) -> None:
    put(lower / "a" / "b" / "file", b"x")
    for path, mode, owner in ((lower / "a" / "b", 0o2750, 1000), (lower / "a", 0o1777, 1001)):
        os.chown(path, owner, owner)
        path.chmod(mode)
        age(path, OLD_NS + owner)
    before = world.upper.stat().st_mtime_ns
    view = world.open()
    touch_up(view, b"a/b/file")
    for path, mode, owner in ((world.upper / "a" / "b", 0o2750, 1000), (world.upper / "a", 0o1777, 1001)):
        copy = path.stat()
        assert (stat.S_IMODE(copy.st_mode), copy.st_uid) == (mode, owner)
        assert copy.st_mtime_ns == OLD_NS + owner, "copy-up into a directory does not change its times"
    assert world.upper.stat().st_mtime_ns == before


def test_a_directory_comes_up_alone(world: World, lower: Path) -> None:
    put(lower / "dir" / "file", b"x")
    view = world.open()
    view.chmod(b"dir", 0o700)
    assert os.listdir(world.upper / "dir") == []
    assert view.names(b"dir") == [b"file"]


def test_a_copy_tells_its_origin_and_its_parent_is_impure(world: World, lower: Path, root: None) -> None:
    put(lower / "dir" / "file", b"x")
    view = world.open()
    touch_up(view, b"dir/file")
    layer = view.union.stack.lowers[0]
    value = marked(world.upper / "dir" / "file", "origin")
    assert value is not None
    found = decode_origin(value, (layer,))
    assert found is not None and found.st_ino == (lower / "dir" / "file").stat().st_ino
    assert marked(world.upper / "dir", "impure") == b"y"
    assert marked(world.upper, "impure") == b"y"


def test_origin_is_written_as_the_kernel_writes_it(world: World, lower: Path, root: None) -> None:
    put(lower / "file", b"x")
    touch_up(world.open(), b"file")
    value = marked(world.upper / "file", "origin")
    assert value is not None
    assert value[:2] == b"\0\xfb" and value[2] == len(value)


def test_a_copy_of_one_of_several_links_is_an_object_of_its_own(world: World, lower: Path) -> None:
    put(lower / "one", b"x")
    os.link(lower / "one", lower / "two")
    view = world.open()
    view.write(b"one", b"y")
    assert (view.read(b"one"), view.read(b"two")) == (b"y", b"x")
    assert marked(world.upper / "one", "origin") is None


# ---- on disk before it is visible ----

@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """fsync and rename in the order they happen."""
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def watched_fsync(fd: int) -> None:
        done.append("fsync")
        fsync(fd)

    def watched_rename(old: bytes, new: bytes, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        done.append("rename")
        rename(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "rename", watched_rename)
    return done


def test_data_is_on_disk_before_it_replaces_the_old(world: World, lower: Path, steps: list[str]) -> None:
    put(lower / "file", b"x")
    touch_up(world.open(volatile=False), b"file")
    assert steps == ["fsync", "rename"]


def test_a_volatile_mount_syncs_nothing(world: World, lower: Path, steps: list[str]) -> None:
    put(lower / "file", b"x")
    touch_up(world.open(volatile=True), b"file")
    assert steps == ["rename"]


@pytest.mark.parametrize("size", [0, 1])
def test_strict_has_a_file_its_directories_and_their_names_on_disk(world: World, lower: Path, steps: list[str], size: int) -> None:
    put(lower / "a" / "b" / "file", b"x" * size)
    view = world.open(sync=Sync.STRICT)
    touch_up(view, b"a/b/file")
    one_object = ["fsync", "rename", "fsync"]  # itself, its place, the directory it is in
    assert steps == one_object * 3
    touch_up(view, b"a/b/file")
    assert steps == one_object * 3, "what is up already needs nothing"


def test_without_strict_directories_and_empty_files_wait_for_nothing(world: World, lower: Path, steps: list[str]) -> None:
    put(lower / "a" / "file", b"")
    touch_up(world.open(sync=Sync.AUTO), b"a/file")
    assert steps == ["rename", "rename"]


def test_strict_syncs_the_name_of_what_cannot_be_synced_itself(world: World, lower: Path, steps: list[str]) -> None:
    (lower / "link").symlink_to("nowhere")
    view = world.open(sync=Sync.STRICT)
    draft = view.union.begin_copy_up(view.ino(b"link"))
    assert draft is not None
    draft.build()
    view.union.publish(view.ino(b"link"), draft)
    assert steps == ["rename", "fsync"]


def test_a_draft_is_invisible_until_it_is_published(world: World, lower: Path) -> None:
    put(lower / "file", b"old")
    view = world.open()
    ino = view.ino(b"file")
    draft = view.union.begin_copy_up(ino)
    assert draft is not None
    draft.build()
    assert os.listdir(world.upper) == []
    assert len(os.listdir(world.building)) == 1
    view.union.publish(ino, draft)
    assert os.listdir(world.building) == []
    assert (world.upper / "file").read_bytes() == b"old"
    assert view.union.begin_copy_up(ino) is None


def test_of_two_drafts_the_second_is_thrown_away(world: World, lower: Path) -> None:
    put(lower / "file", b"old")
    view = world.open()
    ino = view.ino(b"file")
    first, second = view.union.begin_copy_up(ino), view.union.begin_copy_up(ino)
    assert first is not None and second is not None
    first.build()
    second.build()
    view.union.publish(ino, first)
    view.write(b"file", b"new")
    view.union.publish(ino, second)
    assert view.read(b"file") == b"new"
    assert os.listdir(world.building) == []


def test_drafts_keep_nothing_open(world: World, lower: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(lower / "file", b"old")
    with no_descriptor_left():
        view = world.open()
        ino = view.ino(b"file")
        drafts = [view.union.begin_copy_up(ino) for _ in range(3)]
        for draft in drafts:
            assert draft is not None
            draft.build()
        with monkeypatch.context() as patched:
            patched.setattr(files, "renameat2", lambda *_: os.close(-1))
            with pytest.raises(OSError, match="Bad file descriptor"):
                view.union.publish(ino, drafts.pop())  # type: ignore[arg-type]
        for draft in drafts:
            assert draft is not None
            view.union.publish(ino, draft)
        world.close(view)
    assert (world.upper / "file").read_bytes() == b"old"


def test_a_draft_of_a_forgotten_node_is_thrown_away(world: World, lower: Path) -> None:
    put(lower / "file", b"old")
    view = world.open()
    ino = view.ino(b"file")
    draft = view.union.begin_copy_up(ino)
    assert draft is not None
    draft.build()
    view.forget()
    view.union.publish(ino, draft)
    assert os.listdir(world.building) == []
    assert view.read(b"file") == b"old"


def test_a_draft_of_a_file_that_was_removed_meanwhile_serves_whoever_has_it_open(world: World, lower: Path) -> None:
    put(lower / "file", b"old")
    view = world.open()
    ino = view.ino(b"file")
    draft = view.union.begin_copy_up(ino)
    assert draft is not None
    draft.build()
    view.unlink(b"file")
    view.union.publish(ino, draft)
    view.union.write(ino, 0, b"NEW")
    assert view.union.read(ino, 0, 10) == b"NEW"
    assert view.names() == []
    view.forget()
    assert os.listdir(world.building) == []


def test_a_draft_of_a_file_that_was_renamed_meanwhile_arrives_at_the_new_name(world: World, lower: Path) -> None:
    put(lower / "file", b"old")
    view = world.open()
    ino = view.ino(b"file")
    draft = view.union.begin_copy_up(ino)
    assert draft is not None
    draft.build()
    view.rename(b"file", b"moved")
    view.union.publish(ino, draft)
    assert view.names() == [b"moved"]
    assert os.listdir(world.building) == []


# ---- failures ----

class Failing:
    """One thing of a copy-up that goes wrong."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch

    def __call__(self, place: object, name: str, code: int) -> None:
        def fail(*_: object, **__: object) -> None:
            raise OSError(code, os.strerror(code))

        self._patch.setattr(place, name, fail)


@pytest.fixture
def failing() -> Iterator[Failing]:
    with pytest.MonkeyPatch.context() as patch:
        yield Failing(patch)


@pytest.mark.parametrize(
    ("place", "name", "code"),
    [
        pytest.param(os, "fsync", errno.EIO, id="fsync"),
        pytest.param(files, "copy_data", errno.ENOSPC, id="data"),
        pytest.param(os, "chown", errno.EPERM, id="owner"),
        pytest.param(os, "chmod", errno.EPERM, id="mode"),
        pytest.param(os, "rename", errno.EIO, id="rename"),
        pytest.param(files, "utimens", errno.EPERM, id="times"),
        pytest.param(copy_up, "copy_xattrs", errno.ENOSPC, id="xattrs"),
    ],
)
def test_a_failed_copy_up_leaves_the_old_file_and_nothing_in_work(
    world: World, lower: Path, lowers_untouched: Callable[[], None], place: object, name: str, code: int
) -> None:
    put(lower / "file", b"old content")
    put(lower / "other")
    lowers_untouched()
    view = world.open(volatile=False)
    touch_up(view, b"other")  # what is kept for file handles is open from now on
    ino = view.ino(b"file")
    before = descriptors()
    with pytest.MonkeyPatch.context() as patch:
        Failing(patch)(place, name, code)
        with pytest.raises(OSError) as caught:
            view.union.write(ino, 0, b"new")
    assert caught.value.errno == code
    assert descriptors() <= before
    assert os.listdir(world.building) == []
    assert os.listdir(world.upper) == ["other"]
    assert view.read(b"file") == b"old content"
    view.write(b"file", b"NEW")
    assert view.read(b"file") == b"NEW content"


@pytest.mark.parametrize("kind", ["directory", "symlink", "fifo"])
def test_a_failed_copy_up_of_anything_leaves_nothing_in_work(
    world: World, lower: Path, failing: Failing, kind: str
) -> None:
    it = lower / "it"
    if kind == "directory":
        it.mkdir()
    elif kind == "symlink":
        it.symlink_to("x")
    else:
        os.mkfifo(it)
    view = world.open()
    failing(files, "utimens", errno.EPERM)
    with pytest.raises(PermissionError):
        view.change(b"it", Change(mtime_ns=1))
    assert os.listdir(world.building) == [] == os.listdir(world.upper)


@pytest.fixture
def tiny(world: World, tmpfs: Callable[..., Path]) -> World:
    """The upper has room for 256 KiB."""
    disk = tmpfs("tiny", "size=256k")
    world.upper, world.work = disk / "upper", disk / "work"
    world.upper.mkdir(mode=0o755)
    world.work.mkdir(mode=0o755)
    return world


def test_without_space_the_old_file_stays_and_nothing_is_left_in_work(tiny: World) -> None:
    content = os.urandom(1 << 20)
    put(tiny.lowers[0] / "dir" / "big", content)
    put(tiny.lowers[0] / "dir" / "small", b"small")
    view = tiny.open()
    with pytest.raises(OSError) as caught:
        view.write(b"dir/big", b"x")
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tiny.building) == []
    assert view.read(b"dir/big") == content
    view.write(b"dir/small", b"SMALL")
    assert view.read(b"dir/small") == b"SMALL"
    tiny.close(view)


def test_without_space_a_write_is_short_and_the_next_one_fails(tiny: World) -> None:
    view = tiny.open()
    ino = view.make_file(b"file").ino
    data = os.urandom(1 << 20)
    written = view.union.write(ino, 0, data)
    assert 0 < written < len(data)
    with pytest.raises(OSError) as caught:
        view.union.write(ino, written, data[written:])
    assert caught.value.errno == errno.ENOSPC
    assert view.read(b"file") == data[:written]
    tiny.close(view)


def test_without_inodes_nothing_changes(world: World, tmpfs: Callable[..., Path]) -> None:
    disk = tmpfs("tiny", "nr_inodes=5")  # the root, upper, work, work/work: one is left
    world.upper, world.work = disk / "upper", disk / "work"
    world.upper.mkdir()
    world.work.mkdir()
    put(world.lowers[0] / "dir" / "file", b"old")
    view = world.open()
    with pytest.raises(OSError) as caught:
        view.write(b"dir/file", b"new")
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(world.building) == []
    assert view.read(b"dir/file") == b"old"
    assert view.names(b"dir") == [b"file"]
    world.close(view)


# ---- ways of copying data, and filesystems that lack them ----

def test_data_is_shared_where_the_filesystem_can(world: World, lower: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FICLONE is asked first, of the whole file."""
    put(lower / "file", b"content")
    asked = []

    def ioctl(fd: int, request: int, argument: object = 0, mutate: bool = True) -> int:
        if request == files._FICLONE:
            assert isinstance(argument, int)
            asked.append(request)
            os.pwrite(fd, os.pread(argument, 100, 0), 0)
            return 0
        raise OSError(errno.ENOTTY, "not here")

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    monkeypatch.setattr(os, "copy_file_range", lambda *_: pytest.fail("copied what could be shared"))
    touch_up(world.open(), b"file")
    assert asked == [files._FICLONE]
    assert (world.upper / "file").read_bytes() == b"content"


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_copy_file_range_data_is_read_and_written(
    world: World, lower: Path, failing: Failing, code: int
) -> None:
    content = os.urandom(3 << 20)
    put(lower / "file", content)
    failing(fcntl, "ioctl", errno.EOPNOTSUPP)
    failing(os, "copy_file_range", code)
    touch_up(world.open(), b"file")
    assert (world.upper / "file").read_bytes() == content


def test_a_copy_file_range_that_says_nothing_was_copied_is_not_believed(
    world: World, lower: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(lower / "file", b"content")
    monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
    touch_up(world.open(), b"file")
    assert (world.upper / "file").read_bytes() == b"content"


def test_a_full_disk_found_by_copy_file_range_is_an_error_and_not_a_fallback(
    world: World, lower: Path, failing: Failing
) -> None:
    put(lower / "file", b"content")
    failing(os, "copy_file_range", errno.ENOSPC)
    view = world.open()
    with pytest.raises(OSError) as caught:
        touch_up(view, b"file")
    assert caught.value.errno == errno.ENOSPC


def test_without_file_handles_the_origin_is_written_as_unknown(world: World, lower: Path, failing: Failing) -> None:
    put(lower / "dir" / "file", b"x")
    failing(files, "file_handle", errno.EOPNOTSUPP)
    view = world.open()
    ino = view.ino(b"dir/file")
    view.write(b"dir/file", b"y")
    assert marked(world.upper / "dir" / "file", "origin") == b""
    assert view.ino(b"dir/file") == ino


@pytest.mark.parametrize("kind", ["symlink", "fifo"])
def test_with_userxattr_what_cannot_hold_an_origin_is_copied_without_one(world: World, lower: Path, kind: str) -> None:
    """user.* attributes exist on files and directories only."""
    if kind == "symlink":
        (lower / "it").symlink_to("target")
    else:
        os.mkfifo(lower / "it")
    view = world.open(userxattr=True)
    view.change(b"it", Change(mtime_ns=5))
    assert (world.upper / "it").lstat().st_mtime_ns == 5
    view.rename(b"it", b"moved")
    view.link(b"moved", b"link")
    assert view.names() == [b"link", b"moved"]


def test_without_the_right_to_open_handles_a_moved_copy_shows_its_own_number(
    world: World, lower: Path, failing: Failing
) -> None:
    put(lower / "dir" / "file", b"x")
    view = world.open()
    view.write(b"dir/file", b"y")
    view.rename(b"dir/file", b"moved")
    failing(files, "open_by_handle", errno.EPERM)
    view = world.reopen(view)
    assert view.read(b"moved") == b"y"
    assert view.ino(b"moved") == (world.upper / "moved").stat().st_ino


@pytest.mark.parametrize(
    "value",
    [b"", b"x", bytes(30), b"\0\xfb\x20" + bytes(30), b"\x01\xfb\x15" + bytes(18), b"\0\xfb\xff" + b"\xff" * 252],
    ids=["empty", "short", "no magic", "wrong length", "another version", "a handle of nothing"],
)
def test_a_broken_origin_is_no_error(world: World, lower: Path, value: bytes) -> None:
    put(lower / "file", b"x")
    view = world.open()
    assert decode_origin(value, view.union.stack.lowers) is None
    touch_up(view, b"file")
    mark(world.upper / "file", "origin", value)
    view = world.reopen(view)
    assert view.read(b"file") == b"x"


def test_an_origin_finds_its_object_on_the_filesystem_it_is_from(
    world: World, root: None, tmpfs: Callable[..., Path]
) -> None:
    other = tmpfs("other")
    put(other / "file", b"x")
    put(world.lowers[1] / "file", b"y")
    world.lowers = [other, world.lowers[1]]
    view = world.open()
    layers = view.union.stack.lowers
    for layer, path in zip(layers, world.lowers, strict=True):
        found = decode_origin(encode_origin(layer, layer.root_fd, b"file"), layers)
        wanted = (path / "file").stat()
        assert found is not None and (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino)
    world.close(view)


# ---- clearing away ----

def test_a_tree_is_removed_with_whatever_is_in_it(scratch: Path) -> None:
    top = scratch / "tree"
    put(top / "a" / "b" / "file")
    (top / "a" / "link").symlink_to("/")
    whiteout(top / "gone")
    put(scratch / "beside")
    fd = os.open(scratch, os.O_RDONLY)
    try:
        with no_descriptor_left():
            remove_tree(fd, b"tree")
            remove_tree(fd, b"tree")
    finally:
        os.close(fd)
    assert os.listdir(scratch) == ["beside"]


def test_an_attribute_that_upper_cannot_hold_is_left_out_unless_it_protects(
    world: World, lower: Path, monkeypatch: pytest.MonkeyPatch, root: None
) -> None:
    put(lower / "file", b"x")
    os.setxattr(lower / "file", "user.note", b"1")
    refused = {b"user.note"}
    setxattr = os.setxattr

    def refusing(path: bytes, name: bytes, value: bytes, flags: int = 0, *, follow_symlinks: bool = True) -> None:
        if name in refused:
            raise OSError(errno.EOPNOTSUPP, "not here")
        setxattr(path, name, value, flags, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(os, "setxattr", refusing)
    view = world.open()
    view.chmod(b"file", 0o600)
    assert "user.note" not in os.listxattr(world.upper / "file")

    os.setxattr(put(lower / "guarded", b"x"), acl.ACCESS, acl.encode(6, 0, 0, users={5: 4}))
    refused.add(acl.ACCESS.encode())
    view = world.reopen(view)
    with pytest.raises(OSError) as caught:
        view.chmod(b"guarded", 0o600)
    assert caught.value.errno == errno.EOPNOTSUPP
    assert os.listdir(world.building) == []
