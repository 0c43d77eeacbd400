"""Options about owners as container engines and users without ids pass them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands.namespace import USER, Namespace, namespace
from tests.commands.program import Place, environment, make_layers, named, run, texts
from tests.support import requirements
from tests.support.mounts import Layers, our_program

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(requirements.missing_for_fuse() is not None, reason=str(requirements.missing_for_fuse())),
]

#: What podman --userns=keep-id passes to its mount program for user 1001.
KEEP_ID = ":0:1:1001:1001:0:1:1002:1002:64535"


def test_the_mount_program_takes_the_mapping_of_podman_keep_id(scratch: Path, mnt: Place) -> None:
    layers = make_layers(scratch)
    for name, ident in (("file", 0), ("only-lower0", 1001)):
        os.chown(layers.lowers[0] / name, ident, ident)
    os.chown(layers.lowers[0], 1000, 1000)
    options = f"{texts(layers)},uidmapping={KEEP_ID},gidmapping={KEEP_ID},xattr_permissions=0"
    done = run("-o", options, mnt.path, command=named(scratch, "fuse-overlayfs"))
    assert (done.status, done.err) == (0, "")
    assert {entry.name: entry.stat().st_uid for entry in os.scandir(mnt.path)} == {"file": 1, "only-lower0": 0}
    (mnt.path / "new").touch()
    os.chown(mnt.path / "file", 1500, 1)
    assert layers.upper is not None
    found = {entry.name: (entry.stat().st_uid, entry.stat().st_gid) for entry in os.scandir(layers.upper)}
    assert found == {"new": (1001, 1001), "file": (1500, 0)}


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("uidmapping=0:1", "the value must be STORED:SHOWN:COUNT, each a number, once or more, with colons between"),
        ("gidmapping=0:1:5:2:9:1", "stored id 2 is in two ranges"),
        ("squash_to_uid=nobody", "the value must be the number of a user or group"),
        ("xattr_permissions=3", "the value must be 0, 1 or 2"),
    ],
)
def test_an_option_that_means_nothing_is_one_line(scratch: Path, mnt: Place, option: str, complaint: str) -> None:
    done = run("mount", "-o", f"{texts(make_layers(scratch))},{option}", mnt.path)
    assert (done.status, done.lines) == (2, [f"unionfs: option {option}: {complaint}"])


# ---- users without ids ----

#: In a user namespace of one id only root is somebody. ``theirs`` belongs to somebody who has no id there.
_SCRIPT = """
set -e
cd "$1"
shift
"$@" mnt
trap 'umount mnt' EXIT
touch mnt/new
mkdir mnt/directory
mkfifo mnt/pipe
ln -s x mnt/link
chown 0:0 mnt/file mnt/new
chown -h 0:0 mnt/link
chmod 4711 mnt/new
echo more >> mnt/file
stat -c '%n %A %u:%g' mnt/directory mnt/file mnt/link mnt/new mnt/pipe mnt/theirs
echo more >> mnt/theirs
cat mnt/theirs
"""


@pytest.fixture
def home(scratch: Path) -> Iterator[tuple[Namespace, Layers]]:
    """A namespace in which a user can use fuse, and layers of his."""
    layers = make_layers(scratch)
    for name in ("mnt", "runtime"):
        (scratch / name).mkdir()
    for path in (scratch / "mnt", scratch / "runtime", layers.lowers[0], layers.upper, layers.work):
        assert path is not None
        os.chown(path, USER, USER)
    os.chown(layers.lowers[0] / "file", USER, USER)
    (layers.lowers[0] / "theirs").write_text("theirs\n")
    (scratch / "script").write_text(_SCRIPT)
    with namespace() as ns:
        ns.let_users_run_the_program(scratch)
        ns.let_users_use_fuse(scratch)
        yield ns, layers


def as_namespace_root(ns: Namespace, layers: Layers, scratch: Path, option: str) -> tuple[list[str], str]:
    """Lines of what the script says, run by a user who is root in a namespace of his own, and its errors."""
    mount = [*our_program(), "mount", "-o", f"{texts(layers)},userxattr,{option}"]
    done = ns.run("unshare", "-Urm", "sh", scratch / "script", scratch, *mount, user=USER,
                  env=environment(XDG_RUNTIME_DIR=str(scratch / "runtime")))  # fmt: skip
    return done.out.splitlines(), done.err


MADE = ["mnt/directory drwxr-xr-x 0:0", "mnt/file -rw-r--r-- 0:0", "mnt/link lrwxrwxrwx 0:0", "mnt/new -rws--x--x 0:0",
        "mnt/pipe prw-r--r-- 0:0"]  # fmt: skip


@pytest.mark.parametrize("option", ["squash_to_root", "squash_to_uid=0,squash_to_gid=0"])
def test_who_has_one_id_can_change_what_is_anybodys_where_owners_are_squashed(
    scratch: Path, home: tuple[Namespace, Layers], option: str
) -> None:
    lines, errors = as_namespace_root(*home, scratch, option)
    assert (lines, errors) == ([*MADE, "mnt/theirs -rw-r--r-- 0:0", "theirs", "more"], "")
    upper = home[1].upper
    assert upper is not None and {entry.stat(follow_symlinks=False).st_uid for entry in os.scandir(upper)} == {USER}


def test_who_has_one_id_keeps_owners_and_modes_in_attributes(scratch: Path, home: tuple[Namespace, Layers]) -> None:
    lines, errors = as_namespace_root(*home, scratch, "xattr_permissions=2")
    assert lines == [*MADE, "mnt/theirs -rw-r--r-- 65534:65534"] and "mnt/theirs" in errors
    upper = home[1].upper
    assert upper is not None
    attributes = {name: os.getxattr(upper / name, "user.containers.override_stat") for name in ("directory", "new", "pipe", ".")}
    assert attributes == {"directory": b"0:0:755", "new": b"0:0:4711", "pipe": b"0:0:644:pipe", ".": b"0:0:755"}
    assert {stat.S_IMODE((upper / name).stat().st_mode) for name in attributes} == {0o755}
