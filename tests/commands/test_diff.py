"""`unionfs diff`, by mount and by directory."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.commands.program import Done, Place, environment, flags, make_layers, place, run
from tests.support import requirements
from tests.support.mounts import Layers

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(requirements.missing_for_fuse() is not None, reason=str(requirements.missing_for_fuse())),
]

CHANGED = "C /file\nD /only-lower0\nA /w\u00fcrst\n"


@pytest.fixture
def mnt(mnt: Place, layers: Layers) -> Place:
    """A union in which a file was changed, one deleted and one made."""
    assert run("mount", *flags(layers), mnt.path).status == 0
    (mnt.path / "file").write_text("changed")
    (mnt.path / "only-lower0").unlink()
    (mnt.path / "w\u00fcrst").touch()
    return mnt


def test_a_live_mount_or_its_upper_is_compared_with_its_own_lowers(layers: Layers, mnt: Place) -> None:
    assert run("diff", mnt.path) == Done(0, CHANGED, "")
    assert layers.upper is not None
    assert run("diff", layers.upper) == Done(0, CHANGED, "")


def test_an_upper_without_a_mount_is_compared_with_the_lowers_given(layers: Layers, mnt: Place) -> None:
    assert layers.upper is not None
    assert run("umount", mnt.path).status == 0
    assert run("diff", layers.upper, "--lower", layers.lowers[0]) == Done(0, CHANGED, "")
    done = run("diff", layers.upper)
    assert (done.status, done.out) == (0, CHANGED) and len(done.lines) == 1 and "--lower" in done.err


def test_json_and_lines_hold_any_name(mnt: Place) -> None:
    with open(os.fsencode(mnt.path) + b"/\xff\n", "w"):
        pass
    assert "A /\\xff\\n\n" in run("diff", mnt.path).out
    found = json.loads(run("diff", mnt.path, "--json").out)
    assert {"kind": "D", "path": "/only-lower0"} in found
    assert b"/\xff\n" in [change["path"].encode("utf-8", "surrogateescape") for change in found]


def test_names_come_out_whatever_the_locale_says(mnt: Place) -> None:
    env = environment(LC_ALL="en_US.ISO-8859-1", PYTHONUTF8="0", PYTHONIOENCODING="ascii")
    assert run("diff", mnt.path, env=env) == Done(0, CHANGED, "")


def test_whiteout_files_are_deletions_where_they_count(scratch: Path) -> None:
    layers = make_layers(scratch)
    assert layers.upper is not None
    (layers.upper / ".wh.file").touch()
    with place(scratch, "wh") as mnt:
        assert run("mount", "-o", "whfiles", *flags(layers), mnt.path).status == 0
        assert run("diff", mnt.path) == Done(0, "D /file\n", "")
    assert run("diff", layers.upper, "--lower", layers.lowers[0]) == Done(0, "A /.wh.file\n", "")
    assert run("diff", "--whfiles", layers.upper, "--lower", layers.lowers[0]) == Done(0, "D /file\n", "")


def test_where_nothing_can_change_it_says_so(scratch: Path, layers: Layers) -> None:
    with place(scratch, "ro") as mnt:
        assert run("mount", *flags(Layers(layers.lowers)), mnt.path).status == 0
        done = run("diff", mnt.path)
        assert done.status == 1 and len(done.lines) == 1 and "no upper" in done.err
    done = run("diff", scratch / "absent")
    assert done.status == 1 and len(done.lines) == 1 and "No such file" in done.err


@pytest.mark.parametrize("engine", ["pyfuse3", "kernel"])
@pytest.mark.skipif(os.geteuid() != 0, reason="index=on needs file handles: root")
def test_with_an_index_every_name_of_a_changed_file_is_told(scratch: Path, layers: Layers, engine: str) -> None:
    lower = layers.lowers[0]
    (lower / "dir").mkdir()
    os.link(lower / "file", lower / "dir" / "link")
    with place(scratch) as mnt:
        assert run("mount", "-o", "index=on", "--engine", engine, *flags(layers), mnt.path).status == 0
        with open(mnt.path / "file", "a") as file:
            file.write("more\n")
        assert run("diff", mnt.path) == Done(0, "C /dir/link\nC /file\n", "")
        assert run("umount", mnt.path).status == 0
    assert layers.upper is not None and layers.work is not None
    assert run("diff", layers.upper, "--lower", lower, "--work", layers.work) == Done(0, "C /dir/link\nC /file\n", "")
    assert run("diff", layers.upper, "--lower", lower) == Done(0, "C /file\n", "")


@pytest.mark.skipif(os.geteuid() != 0, reason="index=on needs file handles: root")
def test_with_an_index_files_without_data_of_their_own_are_no_obstacle(scratch: Path, layers: Layers) -> None:
    lower = layers.lowers[0]
    os.link(lower / "file", lower / "link")
    with place(scratch) as mnt:
        assert run("mount", "-o", "index=on,metacopy=on", *flags(layers), mnt.path).status == 0
        for name in ("file", "only-lower0"):
            (mnt.path / name).chmod(0o600)
        assert run("diff", mnt.path) == Done(0, "C /file\nC /link\nC /only-lower0\n", "")
        assert run("umount", mnt.path).status == 0
