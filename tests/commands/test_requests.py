"""How many requests everyday programs cost, by what the server counts."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.commands.program import Place, flags, run
from tests.support import requirements
from tests.support.mounts import Layers
from unionfs.linux.xattrs import selinux_is_on

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(requirements.missing_for_fuse() is not None, reason=str(requirements.missing_for_fuse())),
]

DIRECTORIES = 6
FILES = 20


def counts(mnt: Place) -> Counter[str]:
    return Counter(json.loads(run("stats", "--json", mnt.path).out)["requests"])


def cost(mnt: Place, *command: str | Path) -> Counter[str]:
    """What the server was asked while *command* ran."""
    before = counts(mnt)
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True, timeout=30)
    return counts(mnt) - before


@pytest.fixture
def layers(layers: Layers) -> Layers:
    for number in range(DIRECTORIES):
        directory = layers.lowers[0] / f"d{number}"
        directory.mkdir()
        for file in range(FILES):
            (directory / f"f{file}").write_text("x")
    return layers


@pytest.mark.skipif(selinux_is_on(), reason="with SELinux each object has a label, which ls asks for")
def test_a_long_listing_asks_for_labels_once_and_twice_for_each_directory_at_most(layers: Layers, mnt: Place) -> None:
    assert run("mount", *flags(layers), mnt.path).status == 0
    runs = [cost(mnt, "ls", "-lR", mnt.path) for _ in range(4)]
    # the ACLs of the directories, those of the root for each of the two ways ls looks at it, and whether there are labels
    assert all(found["getxattr"] <= 2 * (DIRECTORIES + 2) + 1 for found in runs[1:]), runs
    assert all(found.total() - found["statfs"] <= 2 * (DIRECTORIES + 2) + 1 for found in runs[2:]), runs


@pytest.mark.root
@pytest.mark.parametrize(("options", "asked"), [([], 1), (["-o", "nosuid"], 0)])
def test_running_a_program_asks_for_its_capabilities_alone_and_for_none_without_suid(
    layers: Layers, mnt: Place, options: list[str], asked: int
) -> None:
    found = shutil.which("true")
    assert found is not None
    shutil.copy(found, layers.lowers[0] / "true")
    assert run("mount", *options, *flags(layers), mnt.path).status == 0
    for _ in range(2):
        cost(mnt, mnt.path / "true")
    assert cost(mnt, mnt.path / "true") == Counter(getxattr=asked)
