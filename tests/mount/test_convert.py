"""An upper that was converted shows the same tree to the program it was converted for."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.commands.program import flags, run
from tests.support import requirements
from tests.support.chaos import Disk, fill, stir
from tests.support.mounts import Layers, Mount, Mounts
from tests.support.tree import Snapshot, difference, fingerprint, snapshot

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(requirements.missing_for_fuse() is not None, reason=str(requirements.missing_for_fuse())),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts, whiteouts and trusted.* attributes: needs root"),
]

EVERYTHING = "redirect_dir=on,metacopy=on,index=off,xino=off"
TARGETS = ("kernel", "userxattr", "fuse-overlayfs", "oci")
#: How the upper is read after each conversion, as options of convert and of our mounts.
READ_AS = {"kernel": "metacopy=on", "userxattr": "userxattr", "fuse-overlayfs": "whfiles", "oci": "whfiles"}


@pytest.fixture
def layers(scratch: Path) -> Layers:
    lowers = tuple(scratch / f"lower{number}" for number in range(2))
    for path in (*lowers, scratch / "upper", scratch / "work"):
        path.mkdir(mode=0o755)
    return Layers(lowers, scratch / "upper", scratch / "work")


def stirred(mounts: Mounts, layers: Layers, seed: int, writer: str) -> None:
    """Fill the lowers, and change their union with everything on."""
    rng = random.Random(seed)
    for lower in layers.lowers:
        fill(lower, rng)
    mount = mounts.kernel(layers, options=EVERYTHING) if writer == "kernel" else mounts.ours(layers, "-o", "metacopy=on")
    assert stir(Disk(mount.target), rng, 80) > 5
    assert mount.unmount() == []


def shown(mount: Mount) -> Snapshot:
    found = snapshot(mount.path)
    assert mount.unmount() == []
    return found


def without_links(found: Snapshot) -> Snapshot:
    """fuse-overlayfs counts the links of what it has copied itself."""
    return {path: replace(entry, nlink=None) for path, entry in found.items()}


def by_ours(mounts: Mounts, layers: Layers, options: str) -> Snapshot:
    return shown(mounts.ours(layers, "-o", options))


def by_its_program(mounts: Mounts, layers: Layers, encoding: str) -> Mount:
    """A mount by who reads *encoding*; nobody mounts an OCI layer, but fuse-overlayfs can."""
    if encoding == "kernel":
        return mounts.kernel(layers, options=EVERYTHING)
    if encoding == "userxattr":
        return mounts.kernel(layers, options="userxattr,index=off,xino=off")
    return mounts.fuse_overlayfs(layers)


def assert_shows(before: Snapshot, mounts: Mounts, layers: Layers, target: str) -> None:
    """The tree *before* is what ours and the program of *target* show."""
    assert difference(before, by_ours(mounts, layers, READ_AS[target]), ("before", "after, ours")) == ""
    mount = by_its_program(mounts, layers, target)
    after = shown(mount)
    if mount.kind == "fuse-overlayfs":
        before, after = without_links(before), without_links(after)
    assert difference(before, after, ("before", f"after, {mount.kind}")) == ""


def convert(layers: Layers, target: str, *options: str) -> None:
    lowers = [word for lower in layers.lowers for word in ("--lower", str(lower))]
    done = run("convert", str(layers.upper), *lowers, "--to", target, *options)
    assert (done.status, done.out, done.err) == (0, "", "")


def test_fuse_overlayfs_sees_what_it_could_not_see_before(mounts: Mounts, layers: Layers) -> None:
    lower = layers.lowers[0]
    (lower / "dir").mkdir()
    (lower / "dir" / "inside").write_text("inside")
    (lower / "file").write_text("content")
    mount = mounts.ours(layers, "-o", "metacopy=on")
    (mount.target / "dir").rename(mount.target / "moved")
    (mount.target / "file").chmod(0o600)
    assert mount.unmount() == []

    mount = mounts.fuse_overlayfs(layers)
    assert (os.listdir(mount.target / "moved"), (mount.target / "file").read_bytes()) == ([], bytes(7))
    assert mount.unmount() == []
    convert(layers, "fuse-overlayfs")
    mount = mounts.fuse_overlayfs(layers)
    assert ((mount.target / "moved" / "inside").read_text(), (mount.target / "file").read_text()) == ("inside", "content")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("writer", ["ours", "kernel"])
@pytest.mark.parametrize("seed", range(2))
def test_what_was_written_with_everything_on_is_read_by_each_target(
    mounts: Mounts, layers: Layers, seed: int, writer: str, target: str
) -> None:
    stirred(mounts, layers, seed, writer)
    before = by_ours(mounts, layers, READ_AS["kernel"])
    lowers = [fingerprint(lower) for lower in layers.lowers]
    convert(layers, target, *(["--work", str(layers.work)] if seed % 2 else []))
    assert [fingerprint(lower) for lower in layers.lowers] == lowers
    assert layers.upper is not None
    assert not list(layers.upper.parent.glob(".*"))
    assert_shows(before, mounts, layers, target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", ["userxattr", "fuse-overlayfs", "oci"])
def test_what_any_program_has_written_is_read_by_each_target(mounts: Mounts, layers: Layers, source: str, target: str) -> None:
    rng = random.Random(f"{source} {target}")
    for lower in layers.lowers:
        fill(lower, rng)
    mount = mounts.ours(layers, "-o", "whfiles") if source == "oci" else by_its_program(mounts, layers, source)
    stir(Disk(mount.target), rng, 60)
    assert mount.unmount() == []
    if source == "oci":
        convert(layers, "oci", "-o", "whfiles")
    before = by_ours(mounts, layers, READ_AS[source])
    convert(layers, target, "-o", READ_AS[source])
    assert_shows(before, mounts, layers, target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("writer", ["ours", "kernel"])
def test_hard_links_of_a_lower_stay_one_file(mounts: Mounts, layers: Layers, writer: str, target: str) -> None:
    lower = layers.lowers[1]
    (lower / "dir" / "sub").mkdir(parents=True)
    for first, others in (("one", ("dir/two", "dir/sub/three")), ("dir/four", ("five",)), ("six", ("dir/seven",))):
        (lower / first).write_text(first)
        for other in others:
            os.link(lower / first, lower / other)
    index = "index=on,redirect_dir=on,metacopy=on,xino=off"
    mount = mounts.kernel(layers, options=index) if writer == "kernel" else mounts.ours(layers, "-o", "index=on,metacopy=on")
    (mount.target / "one").write_text("changed by one name")
    (mount.target / "dir" / "four").chmod(0o600)
    (mount.target / "dir").rename(mount.target / "moved")
    (mount.target / "six").unlink()
    before = shown(mount)
    assert before[b"moved/sub/three"].nlink == 3
    told = run("fsck", "-o", "index=on,metacopy=on", *flags(layers))
    assert (told.status, told.err) == (0, "")

    if target != "kernel":
        refused = run("convert", str(layers.upper), "--lower", str(layers.lowers[0]), "--lower", str(lower), "--to", target)
        assert refused.status == 1 and "index=on" in refused.err
    convert(layers, target, "-o", "index=on,metacopy=on", "--work", str(layers.work))
    if target == "kernel":
        assert difference(before, by_ours(mounts, layers, "index=on,metacopy=on"), ("before", "after")) == ""
    else:
        assert layers.work is not None
        assert os.listdir(layers.work / "index") == []
        assert_shows(before, mounts, layers, target)
