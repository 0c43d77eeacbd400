"""What an upper changes, read from plain directories."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from unionfs.errors import LayerError
from unionfs.overlay.diff import Change, Kind, changes

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="whiteouts' marks need root")]


class Stack:
    """Directories to fill: `upper`, and lowers by name, `top` above `base`."""

    def __init__(self, base: Path) -> None:
        self.base = base
        for name in ("upper", "top", "base"):
            (base / name).mkdir()

    def file(self, path: str, text: str = "x") -> Path:
        found = self.base / path
        found.parent.mkdir(parents=True, exist_ok=True)
        found.write_text(text)
        return found

    def directory(self, path: str, *, opaque: bool = False) -> Path:
        found = self.base / path
        found.mkdir(parents=True, exist_ok=True)
        if opaque:
            os.setxattr(found, "trusted.overlay.opaque", b"y")
        return found

    def whiteout(self, path: str) -> None:
        found = self.base / path
        found.parent.mkdir(parents=True, exist_ok=True)
        os.mknod(found, stat.S_IFCHR, 0)

    def changes(self, *lowers: str) -> list[str]:
        names = lowers or ("top", "base")
        found = changes(os.fsencode(self.base / "upper"), [os.fsencode(self.base / name) for name in names])
        return [f"{change.kind.value} {os.fsdecode(change.path)}" for change in found]

    def without_lowers(self) -> list[str]:
        return [f"{change.kind.value} {os.fsdecode(change.path)}" for change in changes(os.fsencode(self.base / "upper"), [])]


@pytest.fixture
def stack(scratch: Path) -> Stack:
    return Stack(scratch)


def test_an_empty_upper_changes_nothing(stack: Stack) -> None:
    stack.file("top/a")
    assert stack.changes() == []


def test_what_is_below_is_changed_what_is_not_is_added(stack: Stack) -> None:
    stack.file("base/dir/old")
    stack.file("top/link")
    for path in ("upper/dir/old", "upper/dir/new", "upper/made/inside", "upper/link"):
        stack.file(path)
    assert stack.changes() == ["C /dir", "A /dir/new", "C /dir/old", "C /link", "A /made", "A /made/inside"]


def test_a_whiteout_deletes_what_is_below_and_nothing_else(stack: Stack) -> None:
    stack.file("base/dir/file")
    stack.file("top/file")
    for path in ("upper/dir", "upper/file", "upper/never-there"):
        stack.whiteout(path)
    assert stack.changes() == ["D /dir", "D /file"]


def test_what_a_lower_s_own_whiteout_hides_was_never_there(stack: Stack) -> None:
    stack.file("base/file")
    stack.file("base/again")
    stack.whiteout("top/file")
    stack.whiteout("top/again")
    stack.whiteout("upper/file")
    stack.file("upper/again")
    assert stack.changes() == ["A /again"]
    assert stack.changes("base") == ["C /again", "D /file"]


def test_an_opaque_directory_deletes_what_it_hides_and_does_not_have_itself(stack: Stack) -> None:
    for path in ("base/dir/one", "top/dir/two", "base/dir/sub/deep", "base/dir/sub/kept", "base/dir/gone/x"):
        stack.file(path)
    stack.directory("upper/dir", opaque=True)
    for path in ("upper/dir/two", "upper/dir/new", "upper/dir/sub/kept"):
        stack.file(path)
    assert stack.changes() == [
        "C /dir", "D /dir/gone", "A /dir/new", "D /dir/one", "C /dir/sub", "D /dir/sub/deep", "C /dir/sub/kept", "C /dir/two"
    ]  # fmt: skip


def test_what_an_opaque_lower_hides_was_never_there(stack: Stack) -> None:
    stack.file("base/dir/old")
    stack.directory("top/dir", opaque=True)
    stack.file("upper/dir/old")
    assert stack.changes() == ["C /dir", "A /dir/old"]


@pytest.mark.parametrize(
    ("below", "above", "expected"),
    [
        ("file", "directory", ["C /x", "A /x/inside"]),
        ("directory", "file", ["C /x"]),
    ],
)
def test_a_change_of_type_is_a_change(stack: Stack, below: str, above: str, expected: list[str]) -> None:
    make: dict[str, Callable[[str], object]] = {"file": stack.file, "directory": lambda path: stack.file(path + "/inside")}
    make[below]("base/x")
    make[above]("upper/x")
    assert stack.changes() == expected


def test_without_lowers_the_mark_of_copy_up_tells_changed_from_new(stack: Stack) -> None:
    os.setxattr(stack.file("upper/dir/copied"), "trusted.overlay.origin", b"")
    os.setxattr(stack.base / "upper" / "dir", "trusted.overlay.origin", b"")
    stack.file("upper/dir/new")
    stack.whiteout("upper/gone")
    assert stack.without_lowers() == ["C /dir", "C /dir/copied", "A /dir/new", "D /gone"]


def test_names_are_bytes_and_symlinks_are_not_followed(stack: Stack) -> None:
    os.mkdir(os.fsencode(stack.base) + b"/upper/\xff\n")
    (stack.base / "upper" / "link").symlink_to("/")
    found = changes(os.fsencode(stack.base / "upper"), [os.fsencode(stack.base / "base")])
    assert found == [Change(Kind.ADDED, b"/link"), Change(Kind.ADDED, b"/\xff\n")]


def test_a_tree_deeper_than_python_s_stack_is_walked(stack: Stack) -> None:
    depth = 1200
    chain = [os.path.join(stack.base, "upper", *["d"] * number) for number in range(1, depth + 1)]
    for path in chain:
        os.mkdir(path)
    try:
        assert len(stack.changes()) == depth
    finally:
        for path in reversed(chain):
            os.rmdir(path)  # shutil.rmtree would not get so deep


def test_the_directories_are_left_as_they_are(stack: Stack) -> None:
    stack.file("base/a")
    stack.file("upper/a")
    before = sorted((path, path.lstat()) for path in stack.base.rglob("*"))
    stack.changes()
    assert sorted((path, path.lstat()) for path in stack.base.rglob("*")) == before


def test_a_layer_that_is_not_there_is_an_error(stack: Stack) -> None:
    with pytest.raises(LayerError, match="absent"):
        stack.changes("absent")
