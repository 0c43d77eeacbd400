"""The benches run, fill their tables and leave nothing behind; what their figures are is no question of a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.goals import GOALS

ROOT = Path(__file__).resolve().parents[2]
ALWAYS_THERE = {"native", "kernel overlayfs", "unionfs pyfuse3"}
FUSE_ONLY = {"memory"}
NOT_NATIVE = {"mount", "memory"}
MEASURES = {
    ("walk", "first find"),
    ("walk", "second find"),
    ("walk", "third find"),
    ("grep", "third grep -r"),
    ("list-long", "third ls -lR"),
    ("git-status", "third git status"),
    ("git-status", "git status without locks"),
    ("python", "third import"),
    ("compiler", "third cc"),
    ("read-small", "first cat of all"),
    ("read-small", "third cat of all"),
    ("untar", "tar x"),
    ("two untars", "two tar x at once"),
    ("rm-tree", "rm -rf"),
    ("copy-up", "append to lower files"),
    ("copy-up volatile", "append to lower files"),
    ("sqlite", "updates of one row"),
    ("seq-read", "first read"),
    ("seq-read", "second read"),
    ("seq-write", "write and fsync"),
    ("random-io", "4k random read, cold"),
    ("random-io", "4k random read, warm"),
    ("random-io", "4k random write"),
    ("lookup", "missing name"),
    ("lookup", "file"),
    ("lookup", "missing name during fsync"),
    ("lookup", "longest wait during fsync"),
    ("mount", "until it answers"),
    ("memory", "after mount"),
    ("memory", "growth for each node"),
    ("memory", "growth given back"),
}

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.overlayfs]


def bench(script: str, scratch: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *script.split(), "--quick", "--scratch", str(scratch), *options],
        cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(scratch / "no-cache")},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def expected_sides(workload: str) -> set[str]:
    left_out = {"native"} if workload in NOT_NATIVE else set()
    return ALWAYS_THERE - left_out - ({"kernel overlayfs"} if workload in FUSE_ONLY else set())


def mounts_below(directory: Path) -> list[str]:
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if point.startswith(f"{directory}/")]


@pytest.mark.slow
@pytest.mark.timeout(160)
def test_the_quick_bench_fills_every_line_of_its_table_and_leaves_nothing_behind(scratch: Path) -> None:
    area, out = scratch / "area", scratch / "out"
    area.mkdir()
    # Our default engine and the reference; what else there is of ours and of others goes the same way.
    done = bench("-m bench", area, "--out", str(out), "--sides", "native,kernel,unionfs channel,pyfuse3")
    assert done.returncode == 0, done.stderr
    results = json.loads((out / "results.json").read_text())
    figures = results["figures"]
    assert {(figure["workload"], figure["measure"]) for figure in figures} == MEASURES
    for workload, measure in MEASURES:
        sides = {figure["side"] for figure in figures if (figure["workload"], figure["measure"]) == (workload, measure)}
        assert sides >= expected_sides(workload)
        assert f"| {workload}: {measure} |" in (out / "results.md").read_text()
    assert all(ElementTree.parse(out / name).getroot().tag.endswith("svg") for name in ("results.svg", "goals.svg"))
    judged = {(goal["workload"], goal["measure"]) for goal in results["goals"]}
    assert judged == {(goal.workload, goal.measure) for goal in GOALS} <= MEASURES
    counted = {(count["workload"], count["measure"]) for count in results["requests"]}
    assert counted >= {(goal.workload, goal.measure) for goal in GOALS if goal.requests is not None}
    assert mounts_below(area) == []
    assert list(area.iterdir()) == []


@pytest.mark.timeout(60)
def test_one_question_runs_alone(scratch: Path) -> None:
    done = bench("bench/mount_latency.py", scratch, "--sides", "kernel,pyfuse3")
    assert done.returncode == 0, done.stderr
    assert "| mount: until it answers | ms |" in done.stdout


@pytest.mark.timeout(60)
def test_a_mode_of_ours_that_this_version_does_not_know_is_left_out(scratch: Path) -> None:
    asked = """
from bench import harness, mount_latency, sides
sides.OURS = {"unionfs unheard": ("-o", "io=unheard"), "unionfs pyfuse3": ("--engine=pyfuse3",)}
harness.main(*mount_latency.WORKLOADS)
"""
    argv = [sys.executable, "-c", asked, "--quick", "--scratch", str(scratch), "--sides", "unheard,pyfuse3"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    assert "bench: unionfs unheard is left out: " in done.stderr
    assert "unionfs unheard" not in done.stdout
    assert "| unionfs pyfuse3 |" in done.stdout


@pytest.mark.timeout(60)
def test_a_filesystem_that_cannot_be_mounted_is_named_and_the_others_are_measured(scratch: Path) -> None:
    (scratch / "no-cache/unionfs-bench/bin").mkdir(parents=True)
    impostor = scratch / "no-cache/unionfs-bench/bin/fuse-overlayfs"
    impostor.write_text("#!/bin/sh\necho version 2 of nothing; exit 3\n")
    impostor.chmod(0o755)
    done = bench("bench/untar.py", scratch, "--sides", "native,fuse-overlayfs 2")
    assert done.returncode == 1
    assert "untar, pinned, fuse-overlayfs 2:" in done.stderr
    assert "| untar: tar x | s | 0" in done.stdout
    assert mounts_below(scratch) == []


@pytest.mark.timeout(60)
def test_a_hung_command_is_ended_by_aborting_its_mount(scratch: Path) -> None:
    """A stopped server answers nobody; its client cannot even be killed."""
    asked = """
import os, signal, sys
from pathlib import Path
from bench import guard, harness, sides
scratch = Path(sys.argv[1])
for name in ("lower", "upper", "work", "view"):
    (scratch / name).mkdir()
(ours,) = [side for side in sides.all_sides() if side.name == "unionfs pyfuse3"]
stack = sides.Stack((scratch / "lower",), scratch / "upper", scratch / "work", scratch / "view", False)
with guard.fusectl(), harness.mounted(ours, stack):
    for pid in harness.servers_of(stack.target):
        os.kill(pid, signal.SIGSTOP)
    try:
        guard.run(["stat", "view/nobody-asked-for-this"], stack.target, 1, cwd=scratch)
    except guard.Hung as hung:
        print(hung)
    for pid in harness.servers_of(stack.target):
        os.kill(pid, signal.SIGCONT)
"""
    done = subprocess.run(
        [sys.executable, "-c", asked, str(scratch)], cwd=ROOT, capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.stdout, done.returncode) == ("stat took longer than 1 s\n", 0), done.stderr
    assert mounts_below(scratch) == []
