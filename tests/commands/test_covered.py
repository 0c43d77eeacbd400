"""The server never touches its own mount, even when that covers what it is made of: its interpreter, /etc, /dev, /run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.commands.namespace import namespace
from tests.commands.program import flags, wait_for
from tests.support import requirements
from tests.support.mounts import Layers, our_program

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(requirements.missing_for_fuse() is not None, reason=str(requirements.missing_for_fuse())),
]

PYTHON = str(Path(sys.base_prefix).resolve())
COVERED = sorted({"/usr", "/etc", "/dev", "/run", "/var", "/tmp", PYTHON, str(Path(__file__).parents[2])})
CHANGE = 'ls -a "$1" >/dev/null && echo x >"$1"/unionfs-test && cat "$1"/unionfs-test && rm "$1"/unionfs-test'




@pytest.mark.parametrize("target", COVERED)
def test_a_union_over_a_system_directory_serves_it(scratch: Path, layers: Layers, target: str) -> None:
    over = ["--lower", target, "--upper", str(layers.upper), "--work", str(layers.work)]
    log = scratch / "log"
    with namespace() as ns:
        ns.must(*our_program(), "mount", *over, "--log", log, target)
        assert ns.mounted_at(target)[-1] == "fuse.unionfs"
        ns.must("sh", "-c", CHANGE, "sh", target)
        assert ns.run("ls", "-lR", "/etc/default").status == 0
        ns.must("sh", "-c", "date; echo hello >/dev/null")
        ns.must(sys.executable, "-c", "import json, ssl")
        ns.must("umount", "-l", target)  # umount(8) itself may come from it
        assert "fuse.unionfs" not in ns.mounted_at(target)
    assert not {"WARNING", "ERROR", "CRITICAL"} & set(log.read_text().split())


@pytest.mark.parametrize("target", ["/usr", "/dev", "/etc", PYTHON])
def test_a_signal_ends_a_server_whose_own_files_it_covers(scratch: Path, layers: Layers, target: str) -> None:
    over = ["--lower", target, "--upper", str(layers.upper), "--work", str(layers.work)]
    with namespace() as ns:
        ns.must(*our_program(), "mount", *over, "--log", scratch / "log", target)
        found = json.loads(ns.must(*our_program(), "list", "--json"))
        server = next(mount["pid"] for mount in found if mount["target"] == target and mount["upper"] == str(layers.upper))
        ns.must("kill", "-TERM", str(server))
        wait_for(lambda: "fuse.unionfs" not in ns.mounted_at(target))
        assert "stopping on signal 15" in (scratch / "log").read_text()


def test_the_whole_system_as_a_lower_with_the_mount_inside_it(scratch: Path, layers: Layers) -> None:
    target = scratch / "mnt"
    target.mkdir()
    over = ["--lower", "/", "--upper", str(layers.upper), "--work", str(layers.work)]
    with namespace() as ns:
        ns.must(*our_program(), "mount", *over, target)
        inside = Path(str(target) + str(scratch))
        assert ns.must("cat", inside / "lower0" / "file") == "in lower0\n"
        assert ns.must("ls", "-A", inside / "mnt") == ""  # the union itself is not entered
        assert ns.must("ls", "-A", inside / "upper") == ns.must("ls", "-A", inside / "work") == ""
        ns.must("sh", "-c", 'echo x >"$1"/new', "sh", inside)
        assert layers.upper is not None
        assert sorted(path.name for path in layers.upper.rglob("new")) == ["new"]
        ns.must(*our_program(), "umount", target)


def test_a_live_upper_may_be_another_union_s_lower(scratch: Path, layers: Layers) -> None:
    second = scratch / "second"
    for name in ("second", "second/upper", "second/work", "one", "two"):
        (scratch / name).mkdir()
    with namespace() as ns:
        ns.must(*our_program(), "mount", *flags(layers), scratch / "one")
        ns.must("sh", "-c", 'echo x >"$1"/new', "sh", scratch / "one")
        above = Layers((layers.upper or scratch,), second / "upper", second / "work")
        ns.must(*our_program(), "mount", *flags(above), scratch / "two")
        assert ns.must("cat", scratch / "two" / "new") == "x\n"
        stacked = Layers((scratch / "two",))
        ns.must(*our_program(), "mount", *flags(stacked), scratch / "two")  # over its own lower, itself a union
        assert ns.must("cat", scratch / "two" / "new") == "x\n"
        for name in ("two", "two", "one"):
            ns.must(*our_program(), "umount", scratch / name)
