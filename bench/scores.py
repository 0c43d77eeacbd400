"""A run judged by goals.py: the table of goals met and missed, as Markdown, as data and as a plot."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from xml.sax.saxutils import escape

from bench import results
from bench.goals import BETTER, DEFAULT, GOALS, Goal
from bench.results import KERNEL, LABEL, WIDTH, Results, Row, figure, markdown_line


@dataclass(frozen=True)
class Check:
    """One figure beside its limit."""

    against: str  # "kernel", "peer", "requests" or "itself"
    value: float
    limit: float
    met: bool
    sign: str = "<="


@dataclass(frozen=True)
class Score:
    """One goal in one mode: which of ours was judged, its figure and what it is compared with."""

    goal: Goal
    row: Row
    side: str
    ours: float
    kernel: float | None
    peer: tuple[float, str] | None
    count: results.Count | None
    checks: tuple[Check, ...]

    @property
    def met(self) -> bool:
        return all(check.met for check in self.checks)

    @property
    def label(self) -> str:
        which = "" if self.goal.side == DEFAULT else f" ({self.goal.side.removeprefix('unionfs ')})"
        return f"{self.row.workload}: {self.row.measure}{which}"

    def check(self, against: str) -> Check | None:
        return next((check for check in self.checks if check.against == against), None)


def our_best(found: Results, row: Row, goal: Goal) -> tuple[float, str] | None:
    """Figure and name of the side that the goal speaks of; None if it was not measured."""
    if goal.side == BETTER:
        return results.best(found, row, found.ours)
    for side in found.ours:
        value = found.median(row, side)
        if value is not None and goal.side in (DEFAULT, side):
            return value, side
    return None


def scores(found: Results, mode: str) -> Iterator[Score]:
    """In the order of GOALS, those that were measured."""
    rows = {(row.workload, row.measure): row for row in found.rows(mode)}
    for goal in GOALS:
        row = rows.get((goal.workload, goal.measure))
        judged = our_best(found, row, goal) if row else None
        if row and judged:
            yield score(found, goal, row, *judged)


def score(found: Results, goal: Goal, row: Row, ours: float, side: str) -> Score:
    kernel = found.median(row, KERNEL)
    peer = results.best(found, row, results.peers(found))
    count = found.requests.get((row.workload, row.measure), {}).get(side)
    pairs = [
        ("kernel", ours / kernel if kernel else None, goal.against_kernel(row.mode)),
        ("peer", ours / peer[0] if peer and peer[0] else None, goal.peer(row.mode)),
        ("requests", count.each(goal.besides) if count else None, allowed(goal, count)),
        ("itself", ours, goal.most),
    ]
    checks = [Check(name, value, limit, value <= limit) for name, value, limit in pairs if value is not None and limit is not None]
    if goal.least is not None:
        checks.append(Check("itself", ours, goal.least, ours >= goal.least, ">="))
    return Score(goal, row, side, ours, kernel, peer, count, tuple(checks))


def allowed(goal: Goal, count: results.Count | None) -> float | None:
    """Requests for each unit, the extra ones of the whole command spread over all units."""
    if goal.requests is None or count is None:
        return None
    return goal.requests + goal.extra / count.units


def verdict(check: Check | None, otherwise: str = "-") -> str:
    if check is None:
        return otherwise
    return f"{figure(check.value)} ({check.sign} {figure(check.limit)} {'met' if check.met else '**missed**'})"


def requests_cell(one: Score) -> str:
    if one.count is None:
        return "-"
    each = figure(one.count.each(one.goal.besides))
    besides = f" besides {', '.join(one.goal.besides)}" if one.goal.besides else ""
    return f"{verdict(one.check('requests'), each)} / {one.count.per}{besides}"


def table(found: Results, mode: str) -> list[str]:
    headings = ["", "unit", KERNEL, "best peer", "which", "ours", "which", "/ kernel", "/ best peer", "itself", "requests"]
    lines = [markdown_line(headings), markdown_line(["---"] * len(headings))]
    for one in scores(found, mode):
        plain = one.row.unit != "%"
        peer = (figure(one.peer[0]), one.peer[1]) if one.peer and plain else ("-", "-")
        cells = [one.label, one.row.unit, figure(one.kernel), *peer, figure(one.ours), one.side]
        cells.append(verdict(one.check("kernel"), results.ratio(one.ours, one.kernel) if plain else "-"))
        cells.append(verdict(one.check("peer"), results.ratio(one.ours, one.peer[0] if one.peer and plain else None)))
        lines.append(markdown_line([*cells, verdict(one.check("itself")), requests_cell(one)]))
    return lines


def as_markdown(found: Results) -> str:
    lines = []
    for mode in found.modes():
        judged = list(scores(found, mode))
        if judged:
            met = sum(one.met for one in judged)
            lines += [f"## Goals, {mode}", "", f"{met} of {len(judged)} met.", "", *table(found, mode), ""]
    return "\n".join(["", *lines])


def as_json(found: Results) -> str:
    judged = [
        {**one.row._asdict(), "side": one.side, "met": one.met, "checks": [asdict(check) for check in one.checks]}
        for mode in found.modes()
        for one in scores(found, mode)
    ]
    return json.dumps({**results.as_data(found), "goals": judged}, indent=1) + "\n"


OURS_MET, OURS_MISSED, PEER, LIMIT = "#2ca02c", "#d62728", "#ff7f0e", "#111"


def as_svg(found: Results) -> str:
    """One line for each goal: our figure and the best peer's divided by the kernel's, and a mark at the limit."""

    def lines(mode: str) -> list[results.Line]:
        return [partial(plot_line, one, one.kernel) for one in scores(found, mode) if one.kernel]

    return results.plot(found.modes(), lines, legend())


def plot_line(one: Score, kernel: float, y: int) -> list[str]:
    drawn = [
        f'<text x="20" y="{y + 4}">{escape(one.label)}</text>',
        f'<line x1="{LABEL}" x2="{LABEL + WIDTH}" y1="{y}" y2="{y}" stroke="#eee"/>',
    ]
    limits = [check.limit * base for name, base in bases(one, kernel) if (check := one.check(name))]
    for limit in limits:
        x = results.position(limit)
        drawn.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 8}" y2="{y + 8}" stroke="{LIMIT}" stroke-width="2"/>')
    if one.peer:
        drawn.append(results.dot(one.peer[0] / kernel, y, 4, PEER, f"{one.peer[1]}: {figure(one.peer[0])} {one.row.unit}"))
    colour = OURS_MET if one.met else OURS_MISSED
    drawn.append(results.dot(one.ours / kernel, y, 6, colour, f"{one.side}: {figure(one.ours)} {one.row.unit}"))
    return drawn


def bases(one: Score, kernel: float) -> list[tuple[str, float]]:
    """What each limit multiplies, as a multiple of the kernel's figure."""
    return [("kernel", 1.0), *([("peer", one.peer[0] / kernel)] if one.peer else [])]


def legend() -> list[str]:
    drawn = [f'<text x="8" y="18">Relative to {KERNEL} = 1, logarithmic; left is better. Upright marks are limits</text>']
    x = 8
    for colour, text in ((OURS_MET, "unionfs, goal met"), (OURS_MISSED, "unionfs, goal missed"), (PEER, "best peer")):
        drawn.append(f'<circle cx="{x + 5}" cy="36" r="5" fill="{colour}"/>')
        drawn.append(f'<text x="{x + 14}" y="40">{escape(text)}</text>')
        x += 30 + 7 * len(text)
    return drawn
