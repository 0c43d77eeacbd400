"""How a run is judged: which figures are compared, what is met and what is missed."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from bench import scores
from bench.goals import BETTER, DEFAULT, GOALS, PASSTHROUGH, Goal
from bench.results import KERNEL, Count, Results, Row
from bench.scores import Score
from bench.sides import OURS as OUR_SIDES

OURS = ["unionfs channel", PASSTHROUGH]
SIDES = ["native", KERNEL, "fuse-overlayfs", "fuse-overlayfs 2", *OURS]
# Medians of one row, in the order of SIDES.
FIGURES = (1.0, 2.0, 8.0, 5.0, 4.0, 3.0)


def results(workload: str = "walk", measure: str = "third find", unit: str = "s", mode: str = "pinned") -> Results:
    found = Results({}, SIDES, OURS)
    for side, figure in zip(SIDES, FIGURES, strict=True):
        found.add(Row(workload, measure, unit, mode), side, figure)
    return found


def judge(found: Results, monkeypatch: pytest.MonkeyPatch, goal: Goal, mode: str = "pinned") -> Score:
    monkeypatch.setattr(scores, "GOALS", (goal,))
    (one,) = scores.scores(found, mode)
    return one


def checks(one: Score) -> list[tuple[str, float, bool]]:
    return [(check.against, check.value, check.met) for check in one.checks]


def test_the_default_side_is_compared_with_the_kernel_and_with_the_fastest_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    one = judge(results(), monkeypatch, Goal("walk", "third find", kernel=1.9, pinned=0.8, unpinned=0.1))
    assert (one.side, one.peer) == ("unionfs channel", (5.0, "fuse-overlayfs 2"))
    assert checks(one) == [("kernel", 2.0, False), ("peer", 0.8, True)]
    assert not one.met


def test_each_mode_has_its_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    goal = Goal("walk", "third find", kernel=3, kernel_unpinned=False, pinned=0.8, unpinned=0.1)
    assert judge(results(), monkeypatch, goal).met
    assert checks(judge(results(mode="unpinned"), monkeypatch, goal, "unpinned")) == [("peer", 0.8, False)]


@pytest.mark.parametrize("side", [BETTER, PASSTHROUGH])
def test_a_goal_can_speak_of_the_faster_side_or_of_one_by_name(monkeypatch: pytest.MonkeyPatch, side: str) -> None:
    one = judge(results(), monkeypatch, Goal("walk", "third find", side, kernel=1.5))
    assert (one.side, one.ours, one.met) == (PASSTHROUGH, 3.0, True)


def test_a_side_that_was_not_measured_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "GOALS", (Goal("walk", "third find", "unionfs elsewhere", kernel=1),))
    assert list(scores.scores(results(), "pinned")) == []


@pytest.mark.parametrize(("requests", "met"), [(19, True), (21, False)])
def test_requests_count_for_each_unit_with_some_left_out_and_some_on_top(monkeypatch: pytest.MonkeyPatch, requests: int, met: bool) -> None:
    found = results()
    found.requests["walk", "third find"] = {"unionfs channel": Count({"lookup": requests, "write": 70}, "file", 10)}
    one = judge(found, monkeypatch, Goal("walk", "third find", requests=1.9, besides=("write",), extra=1))
    assert checks(one) == [("requests", requests / 10, met)]


@pytest.mark.parametrize(("limits", "met"), [({"most": 4}, True), ({"most": 3}, False), ({"least": 4}, True), ({"least": 5}, False)])
def test_a_figure_may_have_a_limit_of_its_own(monkeypatch: pytest.MonkeyPatch, limits: dict[str, float], met: bool) -> None:
    one = judge(results(), monkeypatch, Goal("walk", "third find", **limits))  # type: ignore[arg-type]
    assert checks(one) == [("itself", 4.0, met)]


def test_table_data_and_plot_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    found = results()
    goals = (Goal("walk", "third find", kernel=1.5, pinned=0.8), Goal("walk", "third find", BETTER, kernel=1.5))
    monkeypatch.setattr(scores, "GOALS", goals)
    markdown = scores.as_markdown(found)
    assert "1 of 2 met." in markdown
    assert "| 2.00 (<= 1.50 **missed**) | 0.80 (<= 0.80 met) |" in markdown
    assert "| walk: third find (better mode) |" in markdown
    assert [goal["met"] for goal in json.loads(scores.as_json(found))["goals"]] == [False, True]
    plot = ElementTree.fromstring(scores.as_svg(found))
    drawn = [(circle.get("fill"), circle[0].text) for circle in plot.iter("{http://www.w3.org/2000/svg}circle") if len(circle)]
    assert (scores.OURS_MISSED, "unionfs channel: 4.00 s") in drawn
    assert (scores.OURS_MET, f"{PASSTHROUGH}: 3.00 s") in drawn
    assert (scores.PEER, "fuse-overlayfs 2: 5.00 s") in drawn


def test_no_row_is_judged_twice_for_the_same_side() -> None:
    keys = [(goal.workload, goal.measure, goal.side) for goal in GOALS]
    assert len(keys) == len(set(keys))


def test_every_goal_speaks_of_a_side_there_is() -> None:
    assert {goal.side for goal in GOALS} <= {DEFAULT, BETTER, *OUR_SIDES}
