"""The mount program: as container engines call it, as mount(8) does, and from fstab."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.commands.namespace import namespace
from tests.commands.program import Place, environment, listed, named, run, texts, wait_for
from tests.support import requirements, system
from tests.support.mounts import Layers
from unionfs import __version__

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(requirements.missing_for_fuse() is not None, reason=str(requirements.missing_for_fuse())),
]


@pytest.fixture
def helper(scratch: Path) -> list[str]:
    """The program under the name mount(8) looks for."""
    return named(scratch, "mount.fuse.unionfs")


def content(mnt: Place) -> str:
    return (mnt.path / "file").read_text()


def options_of(mnt: Place) -> tuple[list[str], list[str]]:
    """Flags of the mount and of its superblock."""
    fields = next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {mnt.path} " in line).split()
    return fields[5].split(","), fields[-1].split(",")


@pytest.mark.parametrize("name", ["fuse-overlayfs", "mount.fuse.unionfs", "mount.fuse.anything"])
def test_as_fuse_overlayfs_is_called(scratch: Path, layers: Layers, mnt: Place, name: str) -> None:
    done = run("-o", texts(layers) + ",,volatile", mnt.path, command=named(scratch, name))
    assert (done.status, done.err) == (0, "")
    assert content(mnt) == "in lower0\n"


def test_under_its_own_name_an_o_without_a_command_selects_it(layers: Layers, mnt: Place) -> None:
    assert run("-o", texts(layers), mnt.path).status == 0
    assert content(mnt) == "in lower0\n"


@pytest.mark.parametrize("order", ["SOURCE TARGET -o OPTS", "-o OPTS SOURCE TARGET", "SOURCE TARGET -s -n -v -i -t fuse.unionfs -o OPTS"])
def test_as_mount_calls_its_helpers(layers: Layers, mnt: Place, helper: list[str], order: str) -> None:
    known = {"SOURCE": "anything", "TARGET": str(mnt.path), "OPTS": "rw,noatime," + texts(layers)}
    done = run(*(known.get(word, word) for word in order.split()), command=helper)
    assert (done.status, done.err) == (0, "")
    assert content(mnt) == "in lower0\n"
    assert "noatime" in options_of(mnt)[0]


def test_source_stands_for_a_missing_lowerdir_and_is_what_the_mount_shows(layers: Layers, mnt: Place, helper: list[str]) -> None:
    source = str(layers.lowers[0])
    assert run(source, mnt.path, "-o", f"upperdir={layers.upper},workdir={layers.work}", command=helper).status == 0
    assert content(mnt) == "in lower0\n"
    assert f" fuse.unionfs {source} " in Path("/proc/self/mountinfo").read_text()


def test_f_mounts_nothing_but_looks_at_the_options(layers: Layers, mnt: Place, helper: list[str]) -> None:
    assert run("src", mnt.path, "-f", "-o", texts(layers), command=helper).status == 0
    assert not mnt.is_mounted()
    assert run("src", mnt.path, "-f", "-o", texts(layers) + ",plugins=x", command=helper).status == 1


@pytest.mark.parametrize(("option", "expected"), [("", False), (",whfiles", False), (",nowhfiles", True), (",whfiles=0", True)])
def test_whiteout_files_count_unless_told_otherwise(scratch: Path, layers: Layers, mnt: Place, option: str, expected: bool) -> None:
    (layers.lowers[0] / ".wh.x").touch()
    assert run("-o", texts(layers) + option, mnt.path, command=named(scratch, "fuse-overlayfs")).status == 0
    assert (mnt.path / ".wh.x").exists() is expected
    assert ("whfiles" in listed(mnt.path)["options"]) is not expected


def test_an_unheard_of_option_is_a_warning(layers: Layers, mnt: Place, helper: list[str]) -> None:
    done = run("src", mnt.path, "-o", texts(layers) + ",frobnicate=1,sync", command=helper)
    assert done.status == 0
    assert sorted(done.lines) == [
        "unionfs: warning: option frobnicate=1 is not known here",
        "unionfs: warning: option sync has no effect: writes are not synchronous",
    ]
    assert content(mnt) == "in lower0\n"


@pytest.mark.parametrize(("form", "usage", "failure"), [("mount", 1, 32), ("engine", 1, 1)])
def test_exit_codes_tell_usage_from_failure(
    scratch: Path, layers: Layers, mnt: Place, helper: list[str], form: str, usage: int, failure: int
) -> None:
    operands = ["src", str(mnt.path)] if form == "mount" else [str(mnt.path)]
    for text, status in (
        ("lowerdir=", usage),
        ("upperdir=/u" if form == "engine" else "lowerdir=/l,upperdir=/u", usage),
        (f"lowerdir={scratch}/absent", failure),
        (texts(layers) + ",verity=require", usage),
    ):
        done = run(*operands, "-o", text, command=helper)
        assert (done.status, len(done.lines)) == (status, 1), text
        assert done.err.startswith("unionfs: ")
    assert not mnt.is_mounted()


def test_an_empty_environment_suffices(layers: Layers, mnt: Place, helper: list[str]) -> None:
    assert run("src", mnt.path, "-o", texts(layers), command=helper, env={}).status == 0
    assert content(mnt) == "in lower0\n"


def test_remount_makes_a_live_mount_read_only_and_writable_again(layers: Layers, mnt: Place, helper: list[str]) -> None:
    assert run("src", mnt.path, "-o", texts(layers) + ",noatime,nosuid", command=helper).status == 0
    server = mnt.server
    assert run("src", mnt.path, "-o", "remount,ro", command=helper).status == 0
    with pytest.raises(OSError, match="Read-only"):
        (mnt.path / "new").touch()
    flags_now, of_superblock = options_of(mnt)
    assert {"ro", "noatime", "nosuid"} <= set(flags_now) and "ro" in of_superblock
    assert run("src", mnt.path, "-o", "remount,rw,suid,relatime,nodev", command=helper).status == 0
    (mnt.path / "new").touch()
    assert set(options_of(mnt)[0]) == {"rw", "nodev", "relatime"}
    assert mnt.server == server


def test_a_mount_without_an_upper_cannot_be_made_writable(layers: Layers, mnt: Place, helper: list[str]) -> None:
    assert run("src", mnt.path, "-o", texts(Layers(layers.lowers)), command=helper).status == 0
    done = run("src", mnt.path, "-o", "remount,rw", command=helper)
    assert (done.status, done.lines) == (32, [f"unionfs: {mnt.path} cannot be made writable: it was mounted without an upper directory"])
    assert run("src", mnt.path, "-o", "remount,ro,nodev", command=helper).status == 0
    assert "nodev" in options_of(mnt)[0]


def test_there_is_nothing_to_remount_where_nothing_is_mounted(mnt: Place, helper: list[str]) -> None:
    done = run("src", mnt.path, "-o", "remount,ro", command=helper)
    assert (done.status, len(done.lines)) == (32, 1)


def test_in_the_engine_s_form_f_stays_in_the_foreground(scratch: Path, layers: Layers, mnt: Place) -> None:
    command = [*named(scratch, "fuse-overlayfs"), "-f", "-o", texts(layers), str(mnt.path)]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL) as server:
        wait_for(lambda: listed(mnt.path).get("state") == "live")
        assert server.poll() is None
        system.unmount(mnt.path)
        assert server.wait(20) == 0


def test_a_line_of_fstab(scratch: Path, layers: Layers, mnt: Place, helper: list[str]) -> None:
    """mount(8) with everything it does on the way: its helper is found in /sbin, options merged, the line unescaped."""
    spaced = scratch / "a lower, spaced"
    spaced.mkdir()
    (spaced / "file").write_text("spaced\n")
    lower = str(spaced).replace(" ", "\\040")
    options = f'noauto,user,noatime,x-test=1,comment=hi,_netdev,nofail,lowerdir="{lower}",upperdir={layers.upper},workdir={layers.work}'
    (scratch / "fstab").write_text(f"union {mnt.path} fuse.unionfs {options} 0 0\n")
    with namespace() as ns:
        ns.add_file(scratch, "/etc", scratch / "fstab")
        ns.add_file(scratch, "/sbin", Path(helper[0]))
        ns.must("mount", mnt.path)
        assert ns.must("cat", mnt.path / "file") == "spaced\n"
        assert ns.must("findmnt", "-n", "-o", "SOURCE,FSTYPE", mnt.path).split() == ["union", "fuse.unionfs"]
        assert "noatime" in ns.must("findmnt", "-n", "-o", "OPTIONS", mnt.path)
        ns.must("mount", "-a", "-O", "_netdev")  # it is mounted already, and noauto
        assert ns.mounted_at(mnt.path) == ["fuse.unionfs"]
        ns.must("mount", "-o", "remount,ro", mnt.path)
        assert ns.run("touch", mnt.path / "new").status != 0
        ns.must("mount", "-o", "remount,rw", mnt.path)
        ns.must("touch", mnt.path / "new")
        ns.must("umount", mnt.path)
        assert ns.mounted_at(mnt.path) == []
        done = ns.run("mount", mnt.path, "-o", "plugins=x")
        assert (done.status, ns.mounted_at(mnt.path)) == (1, [])
    assert layers.upper is not None and (layers.upper / "new").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting the kernel's overlayfs needs root")
def test_a_line_of_fstab_for_the_kernel(scratch: Path, layers: Layers, mnt: Place, helper: list[str]) -> None:
    (scratch / "fstab").write_text(f"union {mnt.path} fuse.unionfs noatime,engine=kernel,{texts(layers)} 0 0\n")
    with namespace() as ns:
        ns.add_file(scratch, "/etc", scratch / "fstab")
        ns.add_file(scratch, "/sbin", Path(helper[0]))
        ns.must("mount", mnt.path)
        ns.must("mount", "-a")
        assert ns.mounted_at(mnt.path) == ["overlay"], "it is mounted already"
        assert ns.must("findmnt", "-n", "-o", "SOURCE", mnt.path) == "union\n"
        assert "noatime" in ns.must("findmnt", "-n", "-o", "OPTIONS", mnt.path)
        ns.must("mount", "-o", "remount,ro", mnt.path)
        assert ns.run("touch", mnt.path / "new").status != 0
        ns.must("mount", "-o", "remount,rw", mnt.path)
        ns.must("touch", mnt.path / "new")
        ns.must("umount", mnt.path)
    assert layers.upper is not None and (layers.upper / "new").exists()


def test_the_version_is_told_under_the_name_it_was_called_by(scratch: Path) -> None:
    assert run("--version", command=named(scratch, "fuse-overlayfs")).out == f"fuse-overlayfs: version {__version__}\n"
    assert run("-V", command=named(scratch, "mount.fuse.unionfs")).out == f"mount.fuse.unionfs: version {__version__}\n"
    assert run("--version").out == run("-V").out == f"unionfs: version {__version__}\n"


def test_its_help_shows_both_forms_and_the_options(scratch: Path) -> None:
    text = run("--help", command=named(scratch, "mount.fuse.unionfs")).out
    assert "mount.fuse.unionfs SOURCE TARGET" in text and "lowerdir=TOP:BASE" in text
