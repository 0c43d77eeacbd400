"""The plan of a run: pure, so nothing here needs a privilege."""

from __future__ import annotations

from dataclasses import replace

import pytest

from unionfs.errors import UsageError
from unionfs.runtime.plan import (
    AttachUnion,
    CopyOwnerAndMode,
    Execute,
    MakeDevice,
    MakeDirectory,
    MakeScratch,
    MakeSymlink,
    MakeWork,
    Mount,
    Plan,
    RaiseLoopback,
    RunOptions,
    Serve,
    SwitchRoot,
    Unshare,
    describe,
    make_plan,
)

OPTIONS = RunOptions(lowers=(b"/top", b"/base"), command=(b"sh", b"-c", b"true"), name=b"abc", scratch=b"/scratch")
KEPT = replace(OPTIONS, upper=b"/kept/upper")


def serve_step(plan: Plan) -> Serve:
    (step,) = (step for step in plan.server if isinstance(step, Serve))
    return step


def kinds(plan: Plan) -> set[str]:
    return {kind for step in (*plan.runner, *plan.container) if isinstance(step, Unshare) for kind in step.kinds}


def test_a_throw_away_upper_lives_in_the_runs_own_directory_and_is_not_synced() -> None:
    plan = make_plan(OPTIONS)
    step = serve_step(plan)
    assert (step.upper, step.work, step.volatile) == (b"/scratch/abc/upper", b"/scratch/abc/work", True)
    assert CopyOwnerAndMode(b"/top", b"/scratch/abc/upper") in plan.server


def test_a_kept_upper_is_synced_and_its_work_directory_stands_beside_it_for_the_time_of_the_run() -> None:
    plan = make_plan(KEPT)
    step = serve_step(plan)
    assert (step.upper, step.work, step.volatile, step.remove_work) == (b"/kept/upper", b"/kept/upper.work", False, True)
    assert MakeWork(b"/kept/upper.work") in plan.server
    assert not any(isinstance(step, CopyOwnerAndMode) for step in plan.server)


def test_a_work_directory_that_was_given_is_neither_made_nor_removed() -> None:
    plan = make_plan(replace(KEPT, work=b"/kept/work"))
    assert not any(isinstance(step, MakeWork) for step in plan.server)
    assert (serve_step(plan).work, serve_step(plan).remove_work) == (b"/kept/work", False)


@pytest.mark.parametrize("options", [OPTIONS, KEPT])
def test_the_engine_is_part_of_the_plan(options: RunOptions) -> None:
    for engine in ("pyfuse3", "kernel", "auto"):
        plan = make_plan(replace(options, engine=engine))
        assert serve_step(plan).engine == engine
        assert any(line.startswith("server    serve ") and line.endswith(f" engine={engine}") for line in plan.lines())


@pytest.mark.parametrize("options", [OPTIONS, KEPT])
def test_the_mount_points_come_from_a_bottom_layer_of_the_runs_own(options: RunOptions) -> None:
    plan = make_plan(options)
    assert serve_step(plan).lowers == (b"/top", b"/base", b"/scratch/abc/skeleton")
    (made,) = (step for step in plan.server if isinstance(step, MakeScratch))
    provided = {b"/" + name.removeprefix(b"skeleton/") for name in made.subdirectories if name.startswith(b"skeleton/")}
    outermost = {step.target for step in plan.container if isinstance(step, Mount) and step.target.count(b"/") == 1}
    assert provided == outermost


def test_every_kind_of_isolation_that_is_promised_is_in_the_plan() -> None:
    assert kinds(make_plan(OPTIONS)) == {"mount", "pid", "uts", "ipc", "net"}


def test_the_hosts_network_is_shared_only_when_asked_for() -> None:
    assert RaiseLoopback() in make_plan(OPTIONS).container
    shared = make_plan(replace(OPTIONS, network="host"))
    assert "net" not in kinds(shared)
    assert RaiseLoopback() not in shared.container  # it would change the host's


def test_all_is_built_before_the_root_changes_and_the_command_comes_last() -> None:
    steps = make_plan(OPTIONS).container
    assert isinstance(steps[-1], Execute)
    assert steps[-2] == SwitchRoot()
    touching = [i for i, step in enumerate(steps) if isinstance(step, Mount | MakeDevice | MakeSymlink | MakeDirectory)]
    assert steps.index(AttachUnion()) < min(touching)


def test_a_directory_is_mounted_on_before_anything_is_made_in_it() -> None:
    steps = make_plan(OPTIONS).container
    device_directory = next(i for i, step in enumerate(steps) if isinstance(step, Mount) and step.target == b"/dev")
    inside = [
        i for i, step in enumerate(steps)
        if (isinstance(step, MakeDevice | MakeSymlink | MakeDirectory) and step.path.startswith(b"/dev/"))
        or (isinstance(step, Mount) and step.target.startswith(b"/dev/"))
    ]
    assert device_directory < min(inside)


def test_sys_cannot_be_written_to() -> None:
    (sys,) = (step for step in make_plan(OPTIONS).container if isinstance(step, Mount) and step.target == b"/sys")
    assert "ro" in sys.attrs


def test_the_command_gets_nothing_of_the_callers_environment_but_the_terminals_name() -> None:
    step = make_plan(replace(OPTIONS, term=b"vt220")).container[-1]
    assert isinstance(step, Execute)
    environment = dict(step.environment)
    assert set(environment) == {b"PATH", b"HOME", b"HOSTNAME", b"TERM"}
    assert environment[b"TERM"] == b"vt220"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lowers": ()}, "at least one --lower"),
        ({"command": ()}, "no command"),
        ({"work": b"/elsewhere"}, "--work needs --upper"),
        ({"network": "bridge"}, "unknown network"),
        ({"engine": "other"}, "unknown engine"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        make_plan(replace(OPTIONS, **changes))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_the_plan_of_the_same_options_is_the_same() -> None:
    assert make_plan(KEPT) == make_plan(KEPT)


def test_a_plan_reads_as_one_line_a_step_that_names_process_and_step() -> None:
    plan = make_plan(OPTIONS)
    lines = plan.lines()
    assert len(lines) == len(plan.server) + len(plan.runner) + len(plan.container)
    assert lines[0] == "server    remove-stale directory=/scratch"
    assert "container mount fstype=proc target=/proc attrs=[nosuid nodev noexec] parameters=[]" in lines
    assert "container switch-root" in lines
    assert lines[-1].startswith("container execute command=[sh -c true] environment=PATH=")


def test_a_command_with_odd_bytes_still_makes_one_line() -> None:
    assert "\n" not in describe(Execute((b"printf", b"a\nb\xff"), (), b"/", terminal=False))
