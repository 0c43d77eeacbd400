"""`unionfs fsck`: what it says and how it ends."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.commands.program import Done, flags, place, run
from tests.support import requirements
from tests.support.mounts import Layers

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(requirements.missing_for_fuse() is not None, reason=str(requirements.missing_for_fuse())),
    pytest.mark.skipif(os.geteuid() != 0, reason="whiteouts and trusted.* attributes: needs root"),
]

CLEAN, REPAIRED, LEFT, FAILED, USAGE = 0, 1, 4, 8, 16


def damaged(layers: Layers) -> Path:
    """A redirect that leads nowhere, with a name that is not easy to print."""
    assert layers.upper is not None
    directory = layers.upper / "moved\n"
    directory.mkdir()
    os.setxattr(directory, "trusted.overlay.redirect", b"/gone")
    os.setxattr(layers.upper, "trusted.overlay.impure", b"y")
    return directory


def test_a_good_upper_is_passed_in_silence(layers: Layers) -> None:
    done = run("fsck", *flags(layers))
    assert (done.status, done.out, done.err) == (CLEAN, "", "")


def test_each_ending_has_the_exit_code_of_fsck(layers: Layers) -> None:
    directory = damaged(layers)
    told = f"{layers.upper}/moved\\n: redirect to /gone, which is in no lower directory"
    done = run("fsck", *flags(layers))
    assert (done.status, done.out, done.err) == (LEFT, f"{told}\n", "")
    done = run("fsck", "--repair", *flags(layers))
    assert (done.status, done.out) == (REPAIRED, f"{told} (repaired)\n")
    assert os.listxattr(directory) == ["trusted.overlay.opaque"]
    assert run("fsck", "--repair", *flags(layers)).status == CLEAN

    os.setxattr(directory, "user.fuseoverlayfs.opaque", b"y")
    os.removexattr(directory, "trusted.overlay.opaque")
    assert run("fsck", "--repair", *flags(layers)).status == LEFT
    assert run("fsck", "--repair", *flags(layers), "-o", "whfiles").status == CLEAN


def test_what_cannot_be_done_is_one_line(layers: Layers, scratch: Path) -> None:
    for arguments, status in (
        (["--lower", "/", "--nonsense"], USAGE),
        (["--lower", "/"], USAGE),
        (flags(layers)[2:], USAGE),
        ([*flags(layers), "-o", "nonsense"], USAGE),
        ([*flags(Layers((scratch / "absent",), layers.upper, layers.work))], FAILED),
    ):
        done = run("fsck", *arguments)
        assert (done.status, done.out, len(done.lines)) == (status, "", 1), arguments


def test_an_upper_that_has_no_work_directory_any_more(layers: Layers) -> None:
    assert layers.work is not None
    layers.work.rmdir()
    without = flags(layers)[:-2]
    assert run("fsck", *without) == Done(CLEAN, "", "")
    damaged(layers)
    assert run("fsck", *without).status == LEFT
    assert run("fsck", "--repair", *without).status == REPAIRED
    assert run("fsck", *without).status == CLEAN
    done = run("fsck", *without, "-o", "index=on")
    assert (done.status, len(done.lines)) == (USAGE, 1) and "work directory" in done.err
    assert not layers.work.exists()


def test_what_a_mount_with_the_same_options_cannot_read_is_told(layers: Layers, scratch: Path) -> None:
    with place(scratch) as mnt:
        assert run("mount", "-o", "metacopy=on", *flags(layers), mnt.path).status == 0
        (mnt.path / "file").chmod(0o600)
        assert run("umount", mnt.path).status == 0
        assert run("fsck", "-o", "metacopy=on", *flags(layers)).status == CLEAN
        done = run("fsck", *flags(layers))
        assert (done.status, len(done.out.splitlines())) == (LEFT, 1)
        assert done.out.startswith(f"{layers.upper}/file: ") and "mount with metacopy=on" in done.out
        for engine in ("pyfuse3", "kernel"):
            assert run("mount", f"--engine={engine}", *flags(layers), mnt.path).status == 0
            with pytest.raises(PermissionError):
                (mnt.path / "file").read_text()
            assert run("umount", mnt.path).status == 0


def test_nothing_is_repaired_while_the_kernel_has_the_upper(layers: Layers, scratch: Path) -> None:
    with place(scratch) as mnt:
        assert run("mount", "--engine=kernel", *flags(layers), mnt.path).status == 0
        done = run("fsck", "--repair", *flags(layers))
        assert (done.status, done.out, len(done.lines)) == (8, "", 1)
        assert "in use by another mount" in done.err
        assert run("umount", mnt.path).status == 0
        assert run("fsck", "--repair", *flags(layers)).status == 0


def test_a_live_mount_may_be_checked_but_not_repaired(layers: Layers, scratch: Path) -> None:
    with place(scratch) as mnt:
        assert run("mount", *flags(layers), mnt.path).status == 0
        (mnt.path / "file").write_text("changed")
        assert run("fsck", *flags(layers)).status == CLEAN
        done = run("fsck", "--repair", *flags(layers))
        assert done.status == FAILED and len(done.lines) == 1 and "in use" in done.err


def test_json_says_what_was_done(layers: Layers) -> None:
    damaged(layers)
    found = json.loads(run("fsck", "--json", *flags(layers)).out)
    assert [(finding["kind"], finding["repairable"], finding["repaired"], finding["harmless"]) for finding in found] == [
        ("redirect", True, False, False)
    ]
    assert [finding["repaired"] for finding in json.loads(run("fsck", "--json", "--repair", *flags(layers)).out)] == [True]
