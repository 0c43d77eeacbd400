"""The real podman with ours as its mount program."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands.program import make_layers
from tests.podman.engine import CONTAINER, Engine, engine, make_image, missing, rootless_engine
from tests.support.mounts import Mounts

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.realwork,
    pytest.mark.timeout(120),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]


@pytest.fixture
def podman(scratch: Path) -> Iterator[Engine]:
    with engine(scratch) as made:
        made.must("import", str(make_image(scratch)), "base")
        yield made


@pytest.fixture
def rootless(scratch: Path) -> Iterator[Engine]:
    with rootless_engine(scratch) as made:
        made.must("import", str(make_image(scratch)), "base")
        yield made


#: What a container does to its root: a directory moved, things removed, replaced and linked.
CHANGES = """
mv /usr/share/data /usr/share/moved
rm /etc/group
echo new > /new
ln /new /new-too
rm -r /home && mkdir /home && echo x > /home/x
chmod 4711 /usr/share/suid
"""
LOOK = "cd / && find usr home new* -type f -exec stat -c '%n %F %a %u:%g %s' {} + | sort && cat usr/share/moved/deep/file home/x"


def test_a_container_changes_its_root_and_the_image_stays(podman: Engine) -> None:
    assert podman.run("base", CHANGES + LOOK).splitlines()[-2:] == ["deep", "x"]
    assert podman.run("base", "cat /usr/share/data/file; test ! -e /new; cat /etc/group") == "data\nroot:x:0:\n"


def test_diff_commit_and_the_new_image_agree(podman: Engine) -> None:
    before = podman.must("run", "--name", "changed", *CONTAINER, "base", "/bin/sh", "-ec", CHANGES + LOOK)
    changes = set(podman.must("diff", "changed").splitlines())
    assert changes >= {
        "D /etc/group", "A /new", "A /new-too", "C /home", "A /home/x", "D /usr/share/data", "A /usr/share/moved",
        "A /usr/share/moved/file", "A /usr/share/moved/deep", "A /usr/share/moved/deep/file", "C /usr/share/suid",
    }  # fmt: skip
    podman.must("commit", "changed", "two")
    podman.must("rm", "changed")
    assert podman.run("two", LOOK) == before


def test_a_build_of_many_steps_sees_what_the_steps_before_removed(podman: Engine, scratch: Path) -> None:
    (scratch / "Containerfile").write_text(
        "FROM base\n"
        "RUN echo a > /a && rm -r /usr/share/data\n"
        "RUN test ! -e /usr/share/data && mkdir /usr/share/data && echo b > /usr/share/data/b\n"
        "RUN rm /a && mv /usr/share /usr/lib\n"
        "COPY image/etc /etc/copied\n"
        "RUN ls -R /usr > /list && test ! -e /a\n")
    podman.must("build", "--isolation=chroot", "--layers", "-t", "built", "-f", str(scratch / "Containerfile"), str(scratch))
    assert podman.run("built", "cat /list; cat /etc/copied/group; cat /usr/lib/data/b") == (
        "/usr:\nlib\n\n/usr/lib:\ndata\nlink\nsuid\n\n/usr/lib/data:\nb\nroot:x:0:\nb\n")


def test_an_overlay_volume_keeps_its_source(podman: Engine, scratch: Path) -> None:
    volume = scratch / "volume"
    volume.mkdir()
    (volume / "file").write_text("v\n")
    out = podman.run("base", "echo x >> /v/file; cat /v/file; touch /v/more; ls /v", "-v", f"{volume}:/v:O")
    assert out == "v\nx\nfile\nmore\n"
    assert (volume / "file").read_text() == "v\n" and list(volume.iterdir()) == [volume / "file"]


def test_containers_share_an_image_and_are_left_without_a_trace(podman: Engine, scratch: Path) -> None:
    for number in range(3):
        assert podman.run("base", f"echo {number} > /file; cat /file") == f"{number}\n"
    assert " /mnt/graph/overlay/" not in podman.ns.must("cat", "/proc/mounts")
    assert [path.name for path in (podman.home / "graph/overlay").glob("*/merged/*")] == []


def test_owners_of_a_mapped_container_are_shown_as_it_knows_them(podman: Engine) -> None:
    mapping = ("--uidmap", "0:1:1001", "--uidmap", "1001:0:1", "--gidmap", "0:1:1001", "--gidmap", "1001:0:1")
    script = "stat -c '%u:%g' /etc/passwd; touch /mine; stat -c '%u:%g' /mine; chown 5:6 /mine; stat -c '%u:%g' /mine"
    out = podman.run("base", script, *mapping)
    assert out == "0:0\n0:0\n5:6\n"


def test_a_union_is_the_disk_of_a_podman_in_a_container(scratch: Path, mounts: Mounts) -> None:
    layers = make_layers(scratch)
    outer = mounts.ours(layers)
    with engine(scratch, outer.target) as podman:
        podman.must("import", str(make_image(scratch)), "base")
        before = podman.must("run", "--name", "changed", *CONTAINER, "base", "/bin/sh", "-ec", CHANGES + LOOK)
        podman.must("commit", "changed", "two")
        assert podman.run("two", LOOK) == before
        assert podman.run("two", "rm -r /usr/share/moved; mkdir /usr/share/moved; ls -A /usr/share/moved") == ""


#: What a container does each time it is started: look at what it did before, and go on.
WALK = """
mkdir -p /log; ls /log > /tmp/count; touch /log/$(cat /tmp/count | while read x; do echo -n i; done)i
test ! -d /usr/share/data || mv /usr/share/data /usr/share/moved
rm -f /etc/group
rm -rf /usr/share/moved/deep; mkdir /usr/share/moved/deep; cat /tmp/count > /usr/share/moved/deep/new
chmod 4711 /usr/share/suid; echo more >> /usr/share/link
find /log /usr /etc/group -type f -exec stat -c '%n %a %s' {} + 2>/dev/null | sort
cat /usr/share/link
"""


def test_a_storage_moves_between_us_fuse_overlayfs_and_the_kernel(podman: Engine, scratch: Path) -> None:
    ours = podman.program
    podman.must("create", "--name", "prepared", *CONTAINER, "base", "/bin/sh", "-ec", CHANGES)
    podman.must("start", "-a", "prepared")
    podman.must("commit", "prepared", "image")
    podman.must("rm", "prepared")
    look = podman.run("image", LOOK)
    podman.must("create", "--name", "walker", *CONTAINER, "base", "/bin/sh", "-ec", WALK)

    def walk(number: int) -> None:
        found = podman.must("start", "-a", "walker").splitlines()
        names = sorted(f"/log/{'i' * (count + 1)}" for count in range(number))
        assert [line.split()[0] for line in found if line.startswith("/log")] == names, found
        assert [line for line in found if not line.startswith("/")] == ["data", *["more"] * number]
        assert "/usr/share/suid 4711 1" in found and not any(line.startswith("/etc/group") for line in found)
        assert [line.split()[0] for line in found if "/data" in line] == [] and any("/usr/share/moved/file" in line for line in found)
        assert podman.run("image", LOOK) == look

    walk(1)
    for number, (program, target) in enumerate(
        [("fuse-overlayfs", "fuse-overlayfs"), (None, "kernel"), (ours, "kernel"), (None, "kernel"), ("fuse-overlayfs", "fuse-overlayfs"),
         (ours, "kernel")], 2):  # fmt: skip
        podman.move_to(shutil.which(program) if program == "fuse-overlayfs" else program, target)
        walk(number)


def test_rootless_podman_runs_commits_and_builds(rootless: Engine, scratch: Path) -> None:
    out = rootless.must("run", "--name", "changed", *CONTAINER, "base", "/bin/sh", "-ec", CHANGES + LOOK)
    assert "usr/share/suid regular file 4711 0:0 1" in out.splitlines()
    rootless.must("commit", "changed", "two")
    assert rootless.run("two", LOOK) == out


def test_keep_id_shows_the_user_as_himself_and_the_image_as_roots(rootless: Engine) -> None:
    script = "id -u; stat -c '%n %u:%g' /etc /etc/passwd; touch /tmp/mine; stat -c '%n %u:%g' /tmp/mine; touch /x 2>/dev/null || echo no"
    for who, owner, may in (((), "1000:1000", "no\n"), (("--user", "0"), "0:0", "")):
        out = rootless.must("run", "--rm", *CONTAINER, "--userns=keep-id", *who, "base", "/bin/sh", "-c", script)
        assert out == f"{owner.split(':')[0]}\n/etc 0:0\n/etc/passwd 0:0\n/tmp/mine {owner}\n{may}"
