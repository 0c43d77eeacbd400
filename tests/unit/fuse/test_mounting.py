"""Making a mount: one that is refused is told in one line, and leaves nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from unionfs.errors import MountError
from unionfs.fuse import mounting
from unionfs.fuse.mounting import Settings
from unionfs.linux import mounts


def test_without_dev_fuse_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> int:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(os, "open", missing)
    with pytest.raises(MountError, match=r"^cannot open /dev/fuse: No such file or directory$"):
        mounting.create_mount(Settings())


def test_a_mount_the_kernel_refuses_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.path.exists("/dev/fuse") or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no usable /dev/fuse")

    def refuse(*_: object) -> int:
        raise OSError(1, "Operation not permitted", "fuse")

    monkeypatch.setattr(mounts, "fs_mount", refuse)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(MountError, match=r"^cannot mount: Operation not permitted \(fuse\)$"):
        mounting.create_mount(Settings())
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_fusermount_there_is_one_line(monkeypatch: pytest.MonkeyPatch, scratch: Path) -> None:
    monkeypatch.setenv("PATH", str(scratch))
    with pytest.raises(MountError, match="^cannot run fusermount3: No such file"):
        mounting.mount_with_fusermount(Settings(), os.fsencode(scratch))


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    ("script", "message"),
    [("echo first >&2; echo 'fusermount3: mount failed: no' >&2; exit 1", "fusermount3: mount failed: no"),
     ("exit 1", "fusermount3 failed on "), ("exit 0", "fusermount3 passed no descriptor")],
    ids=["with a reason", "without one", "without a descriptor"],
)
def test_what_fusermount_says_is_what_the_user_reads(
    monkeypatch: pytest.MonkeyPatch, scratch: Path, script: str, message: str
) -> None:
    program = scratch / "fusermount3"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scratch}:{os.environ['PATH']}")
    with pytest.raises(MountError) as caught:
        mounting.mount_with_fusermount(Settings(), os.fsencode(scratch))
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_fusermount_is_told_the_options_with_commas_escaped(monkeypatch: pytest.MonkeyPatch, scratch: Path) -> None:
    program = scratch / "fusermount3"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {scratch}/said\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scratch}:{os.environ['PATH']}")
    settings = Settings(fsname="a,b\\c", allow_other=False, read_only=True, mount_attrs=frozenset({"ro", "nosuid"}))
    with pytest.raises(MountError):
        mounting.mount_with_fusermount(settings, b"/the/target")
    flag, options, dashes, target = (scratch / "said").read_text().splitlines()
    assert (flag, dashes, target) == ("-o", "--", "/the/target")
    assert options == "default_permissions,subtype=unionfs,fsname=a\\,b\\\\c,ro,nosuid"
