"""`unionfs refresh`: what was changed in the layers under a mount shows once the command has returned."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.commands.program import Done, Place, flags, run
from tests.support import requirements
from tests.support.mounts import Layers
from unionfs.cli.refresh import inner_path
from unionfs.errors import UsageError

needs_fuse = [
    pytest.mark.fuse,
    pytest.mark.skipif(requirements.missing_for_fuse() is not None, reason=str(requirements.missing_for_fuse())),
]


@pytest.fixture
def mnt(mnt: Place, layers: Layers) -> Place:
    """A directory with a union mounted on it."""
    assert run("mount", *flags(layers), mnt.path).status == 0
    return mnt


@pytest.mark.parametrize(
    ("path", "inside"),
    [(b".", b""), (b"", b""), (b"a/./b//c/", b"a/b/c"), (b"/mnt", b""), (b"/mnt/a", b"a"), (b"//mnt/a/", b"a"), (b"/link/x/../a", b"a"),
     (b"a/..", b""), (b"caf\xe9", b"caf\xe9")],
)
def test_a_path_is_read_as_one_in_the_mount(path: bytes, inside: bytes) -> None:
    assert inner_path(path, b"/mnt", b"/link") == inside


@pytest.mark.parametrize("path", [b"..", b"a/../../b", b"/", b"/mntx", b"/other/a", b"/mnt/../a"])
def test_a_path_elsewhere_is_refused(path: bytes) -> None:
    with pytest.raises(UsageError):
        inner_path(path, b"/mnt", b"/link")


class TestOnAMount:
    pytestmark = needs_fuse

    def test_after_a_refresh_the_change_shows(self, layers: Layers, mnt: Place) -> None:
        lower = layers.lowers[0]
        assert (mnt.path / "file").read_text() == "in lower0\n" and not (mnt.path / "new").exists()
        (lower / "file").write_text("something longer\n")
        (lower / "new").touch()
        assert run("refresh", mnt.path) == Done(0, "", "")
        assert (mnt.path / "file").read_text() == "something longer\n" and (mnt.path / "new").exists()

    @pytest.mark.parametrize("absolute", [False, True])
    def test_a_path_can_be_named(self, layers: Layers, mnt: Place, absolute: bool) -> None:
        lower = layers.lowers[0]
        for name in ("one", "two"):
            (lower / name).mkdir()
        assert run("refresh", mnt.path).status == 0
        for name in ("one", "two"):
            assert not (mnt.path / name / "file").exists()
            (lower / name / "file").touch()
        assert run("refresh", mnt.path, mnt.path / "one" if absolute else "one") == Done(0, "", "")
        assert (mnt.path / "one" / "file").exists() and not (mnt.path / "two" / "file").exists()

    def test_a_name_that_is_no_utf8(self, layers: Layers, mnt: Place) -> None:
        name = os.fsdecode(b"caf\xe9")
        (layers.lowers[0] / name).mkdir()
        assert run("refresh", mnt.path).status == 0 and list((mnt.path / name).iterdir()) == []
        (layers.lowers[0] / name / "file").touch()
        assert run("refresh", mnt.path, name).status == 0 and (mnt.path / name / "file").exists()

    def test_mistakes_are_told_in_one_line(self, scratch: Path, mnt: Place) -> None:
        assert run("refresh", scratch) == Done(1, "", f"unionfs: {scratch}: nothing is mounted here\n")
        assert run("refresh", mnt.path, "../x") == Done(2, "", "unionfs: ../x leads out of the mount\n")
        assert run("refresh", mnt.path, scratch) == Done(2, "", f"unionfs: {scratch} is not below {mnt.path}\n")

    def test_a_wrong_word_for_lowers_is_refused(self, scratch: Path, layers: Layers) -> None:
        done = run("mount", "-o", "lowers=lively", *flags(layers), scratch)
        assert done.status == 2 and done.lines == ["unionfs: option lowers=lively: the value must be static or live"]
