"""Runs workloads on every filesystem side by side: interleaved rounds, pinned and unpinned, with nothing left behind.

A workload is a function that gets a `Turn`: one filesystem, freshly mounted over the workload's lower
directories, with an empty upper. All that touches the mount is a child process with a deadline (see guard.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import guard, results, scores, sides
from bench.tree import Layers

MODES = ("pinned", "unpinned")
ONE = ("command", 1)
CLIENTS = Path(__file__).with_name("clients.py")
USAGE = 2  # exit status of a command line that ours does not understand


@dataclass(frozen=True)
class Size:
    """How much work there is. The defaults are the published benches, `QUICK` is for a look and for the tests."""

    files: int = 2400
    appended: int = 1000
    big_mib: int = 256
    lookups: int = 20000
    nodes: int = 200_000
    tracked: int = 310
    updates: int = 1000
    database_mib: int = 20
    random_reads: int = 20000
    random_writes: int = 20000
    deadline: float = 180
    quick: bool = False


QUICK = Size(
    files=240,
    appended=60,
    big_mib=16,
    lookups=1000,
    nodes=2000,
    tracked=60,
    updates=50,
    database_mib=2,
    random_reads=500,
    random_writes=500,
    deadline=60,
    quick=True,
)


@dataclass(frozen=True)
class Workload:
    """One question. `prepare` fills the lower directories, `measure` answers on one mounted filesystem."""

    name: str
    prepare: Callable[[Layers, Size], list[str]]
    measure: Callable[[Turn], None]
    native: bool = True
    kernel: bool = True
    cold: bool = False  # starts with empty caches below the mount
    volatile: bool = False  # mounted without fsync where the filesystem knows that
    needs: str = ""  # the program it runs that not every machine has
    unable: tuple[str, ...] = ()  # filesystems that are known to fail
    rounds: int | None = None


@dataclass
class Turn:
    """One filesystem under one workload. Figures go to `figures` by (measure, unit)."""

    side: sides.Side
    size: Size
    names: list[str]  # what `prepare` returned
    view: Path
    scratch: Path
    mount_seconds: float = 0
    counting: bool = False
    figures: dict[tuple[str, str], float] = field(default_factory=dict)
    requests: dict[str, results.Count] = field(default_factory=dict)

    def do(self, *argv: str, output: bool = False) -> tuple[float, str]:
        """Run a command in the view; (seconds, its output)."""
        target = self.view if self.side.fuse else None
        return guard.run(argv, target, self.size.deadline, cwd=self.view, env=sides.environment(), output=output)

    def time(self, measure: str, *argv: str, output: bool = False, per: tuple[str, int] = ONE) -> None:
        """Note how long a command takes; `per` is what its requests are divided by: the name of a thing, how many."""
        with self.counted(measure, per):
            seconds, _ = self.do(*argv, output=output)
        self.note(measure, "s", seconds)

    def ask(self, measures: dict[str, str], *client: str, per: tuple[str, int] = ONE) -> None:
        """Note the figures that a function of clients.py prints, one for each measure and its unit."""
        with self.counted(next(iter(measures)), per):
            _, said = self.do(sys.executable, "-I", "-S", str(CLIENTS), *client, output=True)
        for (measure, unit), figure in zip(measures.items(), said.split(), strict=True):
            self.note(measure, unit, float(figure))

    def note(self, measure: str, unit: str, figure: float) -> None:
        self.figures[measure, unit] = figure

    def servers(self) -> list[int]:
        return servers_of(self.view) if self.side.fuse else []

    def server_kib(self) -> int:
        """Resident memory of all server processes of this mount."""
        return sum(resident_kib(pid) for pid in self.servers())

    @contextlib.contextmanager
    def counted(self, measure: str, per: tuple[str, int] = ONE) -> Iterator[None]:
        """In the counting round, note the requests our server got during the body."""
        before = self.stats() if self.counting else {}
        yield
        if self.counting:
            after = self.stats()
            kinds = {kind: after[kind] - before.get(kind, 0) for kind in after}
            self.requests[measure] = results.Count({kind: count for kind, count in kinds.items() if count}, *per)

    def stats(self) -> dict[str, int]:
        argv = [*self.side.program, "stats", str(self.view), "--json"]
        _, said = guard.run(argv, self.view, 30, env=sides.environment(), output=True)
        requests: dict[str, int] = json.loads(said)["requests"]
        return requests


def servers_of(target: Path) -> list[int]:
    """The processes whose command line names `target` and that have /dev/fuse open."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.fsencode(target) not in (process / "cmdline").read_bytes().split(b"\0"):
                continue
            if any(os.readlink(fd) == "/dev/fuse" for fd in (process / "fd").iterdir()):
                found.append(int(process.name))
    return found


def resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def drop_caches(what: int) -> None:
    """2 frees dentries and inodes, 3 the page cache as well. Only what is clean can go."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text(f"{what}\n")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def end_servers(pids: Sequence[int]) -> None:
    """Wait for unmounted servers to exit; the next figure must not share the CPU with them."""
    deadline = time.monotonic() + 10
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    for pid in filter(is_running, pids):
        os.kill(pid, signal.SIGKILL)


def unmount(target: Path) -> None:
    """Unmount whatever is on `target`, by force when it is busy or hung."""
    pids = servers_of(target)
    tries = 0
    while guard.is_mounted(target):
        tries += 1
        if tries > 3:
            guard.abort(target)
        command = ["umount", str(target)] if tries <= 5 else ["umount", "-l", str(target)]
        with contextlib.suppress(guard.Failed, guard.Hung):
            guard.run(command, target, 20)
            continue
        time.sleep(0.2)
    end_servers(pids)


@contextlib.contextmanager
def mounted(side: sides.Side, stack: sides.Stack) -> Iterator[float]:
    """Mount `side`; yields the seconds from the command's start until a stat of the mount has answered."""
    assert side.mount is not None
    try:
        started = time.perf_counter()
        guard.run(side.mount(side.program, stack), stack.target, 30, env=sides.environment())
        with guard.watchdog(stack.target, 30):
            os.stat(stack.target)
        took = time.perf_counter() - started
        if not guard.is_mounted(stack.target):
            raise guard.Failed(f"{side.name} said it mounted and did not")
        yield took
    finally:
        unmount(stack.target)


def copy_of(layers: Layers, target: Path) -> None:
    """The merged tree as a plain directory."""
    for layer in (layers.base, layers.top):
        guard.run(["cp", "-a", f"{layer}/.", str(target)], seconds=300)


@contextlib.contextmanager
def one_round(side: sides.Side, workload: Workload, layers: Layers, names: list[str], size: Size) -> Iterator[Turn]:
    scratch = Path(tempfile.mkdtemp(prefix="turn.", dir=layers.base.parent))
    try:
        for name in ("upper", "work", "view"):
            (scratch / name).mkdir()
        turn = Turn(side, size, names, scratch / "view", scratch)
        if side.mount is None:
            copy_of(layers, turn.view)
        os.sync()
        if workload.cold and not size.quick:
            drop_caches(3)
        if side.mount is None:
            yield turn
        else:
            stack = sides.Stack((layers.top, layers.base), scratch / "upper", scratch / "work", turn.view, workload.volatile)
            with mounted(side, stack) as turn.mount_seconds:
                yield turn
    finally:
        empty(scratch)


def empty(directory: Path) -> None:
    """Free the data of a finished round, and leave its files until the bench ends.

    ext4 does not give out an inode again for a minute after it was deleted, and looks at each such inode whenever it
    makes a file (recently_deleted): an untar after the removal of an earlier one took 0.75 s instead of 0.1 s.
    """
    for place, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(place, name)
            if stat.S_ISREG(os.lstat(path).st_mode):
                os.truncate(path, 0)


@contextlib.contextmanager
def placed(mode: str) -> Iterator[None]:
    """Pinned: this process, and so every server and client it starts, on one CPU."""
    allowed = os.sched_getaffinity(0)
    if mode == "pinned":
        os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@dataclass(frozen=True)
class Plan:
    """What was asked for on the command line."""

    sides: list[sides.Side]
    modes: list[str]
    rounds: int
    size: Size
    scratch: Path


def run_workload(workload: Workload, plan: Plan, found: results.Results) -> None:
    """All rounds of one workload: each round visits every mode and filesystem, the filesystems in turning order."""
    if workload.needs and shutil.which(workload.needs) is None:
        print(f"bench: {workload.needs} is not installed, {workload.name} is left out (see bench/peers)", file=sys.stderr)
        return
    chosen = [side for side in plan.sides if takes_part(side, workload)]
    area = Path(tempfile.mkdtemp(prefix=f"{workload.name.replace(' ', '-')}.", dir=plan.scratch))
    layers = Layers(area / "top", area / "base")
    layers.top.mkdir()
    layers.base.mkdir()
    try:
        names = workload.prepare(layers, plan.size)
    except guard.Failed as error:
        found.failures.append(f"{workload.name}: {error}")
        return
    broken: set[tuple[str, str]] = set()
    for number in range(min(plan.rounds, workload.rounds or plan.rounds)):
        for mode in plan.modes:
            first = number % len(chosen)
            for side in chosen[first:] + chosen[:first]:
                if (side.name, mode) not in broken:
                    with catch(found, broken, workload, mode, side), placed(mode):
                        measure_once(workload, plan, found, mode, side, layers, names)
    for side in chosen:
        if side.ours and not plan.size.quick and not any(name == side.name for name, _ in broken):
            with catch(found, broken, workload, "counting", side):
                count_once(workload, plan, found, side, layers, names)


def takes_part(side: sides.Side, workload: Workload) -> bool:
    if side.fuse:
        return side.name not in workload.unable
    return workload.kernel if side.mount else workload.native


@contextlib.contextmanager
def catch(found: results.Results, broken: set[tuple[str, str]], workload: Workload, mode: str, side: sides.Side) -> Iterator[None]:
    """A filesystem that fails or hangs is reported and left out of the workload's later rounds."""
    try:
        yield
    except (guard.Hung, guard.Failed) as error:
        broken.add((side.name, mode))
        found.failures.append(f"{workload.name}, {mode}, {side.name}: {error}")
        print(found.failures[-1], file=sys.stderr, flush=True)


def measure_once(
    workload: Workload,
    plan: Plan,
    found: results.Results,
    mode: str,
    side: sides.Side,
    layers: Layers,
    names: list[str],
) -> None:
    """A timed round. A look counts at once: that the asking for counts disturbs the times matters little there."""
    with one_round(side, workload, layers, names, plan.size) as turn:
        turn.counting = side.ours and plan.size.quick
        workload.measure(turn)
    for (measure, unit), figure in turn.figures.items():
        found.add(results.Row(workload.name, measure, unit, mode), side.name, figure)
    note_counts(workload, found, turn)


def count_once(workload: Workload, plan: Plan, found: results.Results, side: sides.Side, layers: Layers, names: list[str]) -> None:
    """One more round that is not timed."""
    with one_round(side, workload, layers, names, plan.size) as turn:
        turn.counting = True
        workload.measure(turn)
    note_counts(workload, found, turn)


def note_counts(workload: Workload, found: results.Results, turn: Turn) -> None:
    for measure, count in turn.requests.items():
        found.requests.setdefault((workload.name, measure), {})[turn.side.name] = count


def usable(side: sides.Side, scratch: Path) -> tuple[bool, str]:
    """Whether this version of ours knows the side's options (its usage error, exit 2, says no); what it said."""
    area = Path(tempfile.mkdtemp(prefix="probe.", dir=scratch))
    for name in ("top", "base", "upper", "work", "view"):
        (area / name).mkdir()
    stack = sides.Stack((area / "top", area / "base"), area / "upper", area / "work", area / "view", False)
    assert side.mount is not None
    try:
        _, said = guard.run(side.mount(side.program, stack), stack.target, 30, env=sides.environment())
    except guard.Failed as error:
        return error.status != USAGE, str(error)
    finally:
        unmount(stack.target)
    return True, said


def machine(chosen: Sequence[sides.Side]) -> dict[str, str]:
    model = Path("/proc/cpuinfo").read_text().partition("model name\t: ")[2].partition("\n")[0]
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "kernel": os.uname().release,
        "CPUs": f"{len(os.sched_getaffinity(0))} x {model or os.uname().machine}",
        "load at the start": f"{os.getloadavg()[0]:.2f}",
    }
    if shutil.which("fio"):
        facts["fio"] = subprocess.run(["fio", "--version"], capture_output=True, text=True, timeout=30, check=False).stdout.strip()
    return facts | {side.name: side.version() for side in chosen if side.fuse}


def parse(argv: Sequence[str] | None, description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small trees, one pinned round: a look, not a measurement")
    parser.add_argument("--rounds", type=int, help="rounds of each workload (default 5, quick 1)")
    parser.add_argument("--modes", help="pinned,unpinned (default both, quick pinned)")
    parser.add_argument("--sides", help="only the filesystems whose names contain one of these, comma-separated")
    parser.add_argument("--nodes", type=int, help="files of the memory bench (default 200000, quick 2000)")
    parser.add_argument("--scratch", type=Path, default=Path("/var/tmp"), help="where the trees are made (default /var/tmp)")
    parser.add_argument("--out", type=Path, help="directory for results.json, results.md, results.svg and goals.svg")
    return parser.parse_args(argv)


def planned(options: argparse.Namespace, scratch: Path) -> Plan:
    size = QUICK if options.quick else Size()
    if options.nodes:
        size = Size(**{**size.__dict__, "nodes": options.nodes})
    wanted = options.sides.split(",") if options.sides else [""]
    chosen = [side for side in sides.all_sides() if any(want in side.name for want in wanted)]
    modes = options.modes.split(",") if options.modes else list(MODES[:1] if options.quick else MODES)
    if not chosen or any(mode not in MODES for mode in modes):
        sys.exit(f"bench: --sides of {[side.name for side in sides.all_sides()]}, --modes of {list(MODES)}")
    return Plan(available(chosen, scratch), modes, options.rounds or (1 if options.quick else 5), size, scratch)


def available(chosen: Sequence[sides.Side], scratch: Path) -> list[sides.Side]:
    """Those that are installed and whose options are known; says why others are not, and what ours warn of."""
    found = []
    for side in chosen:
        if not sides.is_present(side):
            print(f"bench: {side.name} is not installed and left out (see bench/peers)", file=sys.stderr)
            continue
        known, said = usable(side, scratch) if side.ours else (True, "")
        if said:
            print(f"bench: {side.name}{'' if known else ' is left out'}: {said}", file=sys.stderr)
        if known:
            found.append(side)
    return found


def main(*workloads: Workload, argv: Sequence[str] | None = None, description: str | None = None) -> None:
    """What `python bench/QUESTION.py` does; prints the Markdown and exits 1 if any filesystem failed."""
    options = parse(argv, description)
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        sys.exit("bench: needs root and /dev/fuse")
    # So that a terminated bench cleans up as an interrupted one does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    scratch = Path(tempfile.mkdtemp(prefix="unionfs-bench.", dir=options.scratch))
    try:
        plan = planned(options, scratch)
        found = results.Results(machine(plan.sides), [side.name for side in plan.sides], [side.name for side in plan.sides if side.ours])
        with guard.fusectl():
            for workload in workloads:
                print(f"bench: {workload.name}", file=sys.stderr, flush=True)
                run_workload(workload, plan, found)
    finally:
        shutil.rmtree(scratch)
    write(found, options.out)
    sys.exit(1 if found.failures else 0)


def write(found: results.Results, out: Path | None) -> None:
    text = results.as_markdown(found) + scores.as_markdown(found)
    print(text)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "results.json").write_text(scores.as_json(found))
        (out / "results.md").write_text(text)
        (out / "results.svg").write_text(results.as_svg(found))
        (out / "goals.svg").write_text(scores.as_svg(found))
