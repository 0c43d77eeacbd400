"""What each row of the benches should reach: the table that scores.py judges a run by. Limits only; no figures."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT, BETTER = "default", "better mode"  # our first side; the faster of all ours
PASSTHROUGH = "unionfs io=passthrough"


@dataclass(frozen=True)
class Goal:
    """Upper limits of one measure; None where there is none.

    Ratios are of medians: to the kernel's overlayfs, and to the fastest FUSE filesystem that is not ours. `requests` is
    for each unit that the workload counts by, those of the kinds in `besides` left out and `extra` (for each command)
    allowed on top. `most` and `least` are absolute, in the measure's unit.
    """

    workload: str
    measure: str
    side: str = DEFAULT
    kernel: float | None = None
    kernel_unpinned: bool = True  # whether the limit holds unpinned as well
    unpinned: float | None = None
    pinned: float | None = None
    requests: float | None = None
    besides: tuple[str, ...] = ()
    extra: float = 0
    most: float | None = None
    least: float | None = None

    def peer(self, mode: str) -> float | None:
        return self.pinned if mode == "pinned" else self.unpinned

    def against_kernel(self, mode: str) -> float | None:
        return self.kernel if mode == "pinned" or self.kernel_unpinned else None


def data(workload: str, measure: str) -> tuple[Goal, Goal, Goal]:
    """Sequential and random data: as the kernel with passthrough, near it by default, and no peer faster."""
    return (
        Goal(workload, measure, kernel=1.6),
        Goal(workload, measure, PASSTHROUGH, kernel=1.1),
        Goal(workload, measure, BETTER, unpinned=1.0, pinned=1.0),
    )


GOALS = (
    Goal("read-small", "third cat of all", kernel=1.1, unpinned=0.3, pinned=0.7, requests=0, extra=1),
    Goal("grep", "third grep -r", kernel=1.1, unpinned=0.4, pinned=0.9, requests=0, extra=1),
    Goal("walk", "third find", kernel=1.1, unpinned=0.8, pinned=1.0, requests=0, extra=1),
    Goal("list-long", "third ls -lR", kernel=1.8, unpinned=0.5, pinned=1.0, requests=2),
    Goal("git-status", "third git status", kernel=1.2, unpinned=1.0, pinned=1.0, requests=9),
    Goal("git-status", "git status without locks", kernel=1.2, unpinned=1.0, pinned=1.0, requests=0),
    Goal("python", "third import", kernel=1.1, unpinned=1.0, pinned=1.0, requests=1, extra=1),
    Goal("compiler", "third cc", kernel=1.1, unpinned=1.0, pinned=1.0, requests=0),
    Goal("walk", "first find", kernel=2, unpinned=0.7, pinned=1.1, requests=3),
    Goal("read-small", "first cat of all", kernel=1.3, unpinned=0.9, pinned=1.0, requests=1),
    Goal("untar", "tar x", kernel=4.5, kernel_unpinned=False, unpinned=1.15, pinned=1.15, requests=8, besides=("write",)),
    Goal("untar", "tar x", BETTER, unpinned=1.0, pinned=1.0),
    Goal("two untars", "two tar x at once", unpinned=1.2, pinned=1.1),
    Goal("rm-tree", "rm -rf", kernel=4, unpinned=1.0, pinned=1.2, requests=3),
    Goal("copy-up", "append to lower files", kernel=1.5),
    Goal("copy-up volatile", "append to lower files", unpinned=1.2, pinned=1.2),
    Goal("sqlite", "updates of one row", unpinned=0.8, pinned=1.0),
    *data("seq-write", "write and fsync"),
    *data("seq-read", "second read"),
    *data("seq-read", "first read"),
    *data("random-io", "4k random read, cold"),
    *data("random-io", "4k random read, warm"),
    *data("random-io", "4k random write"),
    Goal("lookup", "missing name", unpinned=1.5, pinned=1.9, requests=1),
    Goal("mount", "until it answers", most=80),
    Goal("memory", "after mount", most=45),
    Goal("memory", "growth for each node", most=0.6),
    Goal("memory", "growth given back", least=75),
)
