"""File system calls by descriptor: what they do, and what the fallbacks leave the same."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unionfs.linux import files, xattrs

PAGE = 4096


@pytest.fixture
def here(scratch: Path) -> Iterator[int]:
    """A descriptor of an empty directory."""
    fd = os.open(scratch, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def write(here: int, name: bytes, data: bytes = b"") -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=here)
    os.write(fd, data)
    os.close(fd)


def code_of(action: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as caught:
        action()
    return caught.value.errno


# ---- names ----

def test_openat2_keeps_in_the_root_and_closes_on_exec(here: int, scratch: Path) -> None:
    write(here, b"file", b"x")
    os.symlink("/etc/passwd", "absolute", dir_fd=here)
    fd = files.openat2(here, b"/file", os.O_RDONLY, files.RESOLVE_IN_ROOT)
    assert os.read(fd, 10) == b"x"
    assert not os.get_inheritable(fd)
    os.close(fd)
    assert code_of(lambda: files.openat2(here, b"absolute", os.O_RDONLY, files.RESOLVE_NO_SYMLINKS)) == errno.ELOOP
    assert code_of(lambda: files.openat2(here, b"absolute", os.O_RDONLY, files.RESOLVE_IN_ROOT)) == errno.ENOENT
    assert code_of(lambda: files.openat2(here, b"../x", os.O_RDONLY, files.RESOLVE_BENEATH)) == errno.EXDEV


def test_an_error_names_the_path(here: int) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        files.openat2(here, b"nothing", os.O_RDONLY, 0)


def test_renameat2_knows_its_flags(here: int) -> None:
    write(here, b"a", b"a")
    write(here, b"b", b"b")
    assert code_of(lambda: files.renameat2(here, b"a", here, b"b", files.RENAME_NOREPLACE)) == errno.EEXIST
    files.renameat2(here, b"a", here, b"b", files.RENAME_EXCHANGE)
    fd = os.open("a", os.O_RDONLY, dir_fd=here)
    assert os.read(fd, 1) == b"b"
    os.close(fd)
    files.renameat2(here, b"a", here, b"b")
    assert os.listdir(f"/proc/self/fd/{here}") == ["b"]


def test_rename_whiteout_leaves_one(here: int) -> None:
    write(here, b"a")
    files.renameat2(here, b"a", here, b"b", files.RENAME_WHITEOUT)
    left = os.stat("a", dir_fd=here)
    assert stat.S_ISCHR(left.st_mode) and left.st_rdev == 0


def test_a_path_at_a_descriptor_means_the_name_or_the_object_itself(here: int, scratch: Path) -> None:
    os.symlink("/nowhere", "link", dir_fd=here)
    assert stat.S_ISLNK(os.lstat(files.path_at(here, b"link")).st_mode)
    assert os.stat(files.path_at(here, b"")).st_ino == scratch.stat().st_ino
    assert [files.is_descriptor(files.path_at(here, name)) for name in (b"", b"link")] == [True, False]


def test_an_unlinked_object_is_opened_again(here: int) -> None:
    write(here, b"file", b"still here")
    fd = os.open("file", os.O_PATH, dir_fd=here)
    os.unlink("file", dir_fd=here)
    again = files.reopen(fd, os.O_RDWR)
    assert os.read(again, 100) == b"still here"
    assert not os.get_inheritable(again)
    os.close(again)
    os.close(fd)


# ---- attributes ----

@pytest.mark.parametrize("name", [b"file", b"link", b"fifo", b""])
@pytest.mark.parametrize("times", [(1, 2), (None, 3), (4, None), (10**18 + 999_999_999, 0), (-1, -(10**9) - 1)])
def test_times_are_set_to_the_nanosecond_and_links_are_not_followed(
    here: int, name: bytes, times: tuple[int | None, int | None]
) -> None:
    write(here, b"file")
    os.symlink("file", "link", dir_fd=here)
    os.mkfifo("fifo", dir_fd=here)
    path = files.path_at(here, name)
    follow = files.is_descriptor(path)
    files.utimens(path, 7 * 10**9, 8 * 10**9)
    files.utimens(path, *times)
    st = os.stat(path, follow_symlinks=follow)
    wanted = tuple(old if new is None else new for old, new in zip((7 * 10**9, 8 * 10**9), times, strict=True))
    assert (st.st_atime_ns, st.st_mtime_ns) == wanted
    if name == b"link":
        assert os.stat("file", dir_fd=here).st_mtime_ns not in wanted


def test_xattrs_of_a_name_and_of_a_descriptor(here: int) -> None:
    write(here, b"file")
    for path in (files.path_at(here, b"file"), files.path_at(here, b"")):
        assert xattrs.find(path, b"user.a") is None
        assert code_of(lambda path=path: xattrs.get(path, b"user.a")) == errno.ENODATA  # type: ignore[misc]
        xattrs.put(path, b"user.a", b"\0\xff")
        assert (xattrs.get(path, b"user.a"), xattrs.names(path)) == (b"\0\xff", [b"user.a"])
        xattrs.drop(path, b"user.a")
        assert xattrs.names(path) == []


def test_xattrs_of_a_symlink_are_not_those_of_its_target(here: int) -> None:
    write(here, b"file")
    os.symlink("file", "link", dir_fd=here)
    xattrs.put(files.path_at(here, b"file"), b"user.a", b"1")
    assert xattrs.names(files.path_at(here, b"link")) == []
    assert xattrs.find(files.path_at(here, b"link"), b"user.a") is None


def test_a_filesystem_without_xattrs_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "none here")

    monkeypatch.setattr(os, "listxattr", fail)
    monkeypatch.setattr(os, "getxattr", fail)
    assert xattrs.names(b"/") == []
    assert xattrs.find(b"/", b"user.a") is None


# ---- handles ----

def test_a_handle_finds_its_object_under_any_name(here: int, scratch: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: only CAP_DAC_READ_SEARCH opens by handle")
    write(here, b"file", b"x")
    kind, handle = files.file_handle(here, b"file")
    os.rename("file", "moved", src_dir_fd=here, dst_dir_fd=here)
    mount = os.open(scratch, os.O_RDONLY)
    fd = files.open_by_handle(mount, kind, handle)
    assert os.fstat(fd).st_ino == (scratch / "moved").stat().st_ino
    os.close(fd)
    (scratch / "moved").unlink()
    assert code_of(lambda: files.open_by_handle(mount, kind, handle)) == errno.ESTALE
    os.close(mount)


def test_a_symlink_has_a_handle_of_its_own(here: int) -> None:
    write(here, b"file")
    os.symlink("file", "link", dir_fd=here)
    assert files.file_handle(here, b"file") != files.file_handle(here, b"link")


def test_filesystems_have_a_uuid_or_zeros(here: int, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fd = os.open(scratch, os.O_RDONLY)
    uuid = files.filesystem_uuid(fd)
    assert len(uuid) == 16 and uuid == files.filesystem_uuid(fd)
    proc = os.open("/proc", os.O_RDONLY)
    assert files.filesystem_uuid(proc) == bytes(16)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOTTY, "no")

    monkeypatch.setattr(fcntl, "ioctl", fail)
    assert files.filesystem_uuid(fd) == bytes(16)
    os.close(fd)
    os.close(proc)


# ---- copying data ----

WAYS = ["as it is", "without reflink", "only read and write"]


def limit_to(way: str, patch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not here")

    if way != "as it is":
        patch.setattr(fcntl, "ioctl", fail)
    if way == "only read and write":
        patch.setattr(os, "copy_file_range", fail)


@settings(max_examples=30, deadline=None)
@given(
    extents=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 6)), max_size=6),
    tail=st.integers(0, PAGE),
    wanted=st.floats(0, 1),
    way=st.sampled_from(WAYS),
)
def test_a_copy_has_the_same_bytes_and_holes(
    session_scratch: Path, extents: list[tuple[int, int]], tail: int, wanted: float, way: str
) -> None:
    """*extents*: pages of data as (first, count); the file ends *tail* bytes behind page 40; a part of it is wanted."""
    size = 40 * PAGE + tail
    flags = os.O_RDWR | os.O_TMPFILE
    source, target = (os.open(session_scratch, flags, 0o600) for _ in range(2))
    try:
        os.ftruncate(source, size)
        for first, count in extents:
            os.pwrite(source, os.urandom(count * PAGE)[: max(0, size - first * PAGE)], first * PAGE)
        length = int(size * wanted)
        with pytest.MonkeyPatch.context() as patch:
            limit_to(way, patch)
            files.copy_data(source, target, length)
        assert os.fstat(target).st_size == length
        assert os.pread(target, size, 0) == os.pread(source, length, 0)
        pages = {page for first, count in extents for page in range(first, first + count)}
        assert os.fstat(target).st_blocks * 512 <= (len(pages) + 2) * PAGE, "holes were filled"
    finally:
        os.close(source)
        os.close(target)


def test_a_file_that_shrank_meanwhile_ends_in_a_hole(here: int, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_to("only read and write", monkeypatch)
    write(here, b"source", b"short")
    source = os.open("source", os.O_RDONLY, dir_fd=here)
    target = os.open("target", os.O_RDWR | os.O_CREAT, 0o600, dir_fd=here)
    monkeypatch.setattr(os, "lseek", lambda _fd, at, how: at if how == os.SEEK_DATA else 100)
    files.copy_data(source, target, 100)
    assert os.pread(target, 200, 0) == b"short" + bytes(95)
    os.close(source)
    os.close(target)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_reflink_that_fails_for_want_of_space_is_an_error(
    here: int, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, "no")

    monkeypatch.setattr(fcntl, "ioctl", fail)
    assert code_of(lambda: files.clone(here, here)) == code


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS])
def test_a_filesystem_without_reflink_says_so(here: int, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, "no")

    monkeypatch.setattr(fcntl, "ioctl", fail)
    assert files.clone(here, here) is False
