"""The figures of one run, and what is written of them: JSON, a Markdown table and an SVG plot."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

COLOURS = ("#7f7f7f", "#1f77b4", "#ff7f0e", "#9467bd", "#8c564b", "#d62728", "#2ca02c", "#17becf")
BASE = "fuse-overlayfs"
KERNEL = "kernel overlayfs"


class Row(NamedTuple):
    """One line of a table: what is measured, in which unit, pinned or unpinned."""

    workload: str
    measure: str
    unit: str
    mode: str


@dataclass(frozen=True)
class Count:
    """The requests a server got while something was measured, by kind, and for how many of what: `units` of `per`."""

    kinds: dict[str, int]
    per: str
    units: int

    def each(self, besides: Iterable[str] = ()) -> float:
        """Requests for one unit, of all kinds except `besides`."""
        return sum(count for kind, count in self.kinds.items() if kind not in besides) / self.units


@dataclass
class Results:
    machine: dict[str, str]
    sides: list[str]
    ours: list[str]
    samples: dict[Row, dict[str, list[float]]] = field(default_factory=dict)
    requests: dict[tuple[str, str], dict[str, Count]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, row: Row, side: str, figure: float) -> None:
        self.samples.setdefault(row, {}).setdefault(side, []).append(figure)

    def median(self, row: Row, side: str) -> float | None:
        samples = self.samples[row].get(side)
        return statistics.median(samples) if samples else None

    def modes(self) -> list[str]:
        return list(dict.fromkeys(row.mode for row in self.samples))

    def rows(self, mode: str) -> list[Row]:
        return [row for row in self.samples if row.mode == mode]


def as_data(results: Results) -> dict[str, Any]:
    """All that is known, as lists and dictionaries."""
    figures = [
        {**row._asdict(), "side": side, "median": statistics.median(samples), "samples": samples}
        for row, sides in results.samples.items()
        for side, samples in sides.items()
    ]
    requests = [
        {"workload": workload, "measure": measure, "side": side, "requests": count.kinds, "per": count.per, "units": count.units}
        for (workload, measure), sides in results.requests.items()
        for side, count in sides.items()
    ]
    plain = {"machine": results.machine, "sides": results.sides, "ours": results.ours, "failures": results.failures}
    return {**plain, "requests": requests, "figures": figures}


def figure(value: float | None) -> str:
    if value is None:
        return "-"
    if value == 0:
        return "0"
    digits = 3 if abs(value) < 0.1 else 2 if abs(value) < 10 else 0 if abs(value) >= 100 else 1
    return f"{value:.{digits}f}" if abs(value) >= 0.01 else f"{value:.4f}"


def ratio(value: float | None, base: float | None) -> str:
    return f"{value / base:.2f}" if value is not None and base else "-"


def markdown_line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def best(results: Results, row: Row, sides: Iterable[str]) -> tuple[float, str] | None:
    """The smallest figure and whose it is."""
    return min(((found, side) for side in sides if (found := results.median(row, side)) is not None), default=None)


def peers(results: Results) -> list[str]:
    """The FUSE filesystems that are not ours."""
    return [side for side in results.sides if side not in results.ours and side not in ("native", KERNEL)]


def best_peer(results: Results, row: Row) -> float | None:
    found = best(results, row, peers(results))
    return found[0] if found else None


def table(results: Results, mode: str) -> list[str]:
    headings = ["", "unit", *results.sides]
    for side in results.ours:
        headings += [f"{side} / kernel", f"/ {BASE}", "/ best peer"]
    lines = [markdown_line(headings), markdown_line(["---"] * len(headings))]
    for row in results.rows(mode):
        cells = [f"{row.workload}: {row.measure}", row.unit]
        cells += [figure(results.median(row, side)) for side in results.sides]
        for side in results.ours:
            own = results.median(row, side)
            bases = (results.median(row, KERNEL), results.median(row, BASE), best_peer(results, row))
            cells += [ratio(own, base) if row.unit != "%" else "-" for base in bases]
        lines.append(markdown_line(cells))
    return lines


def request_table(results: Results) -> list[str]:
    headings = ["", "filesystem", "requests", "for each", "by kind"]
    lines = [markdown_line(headings), markdown_line(["---"] * len(headings))]
    for (workload, measure), sides in results.requests.items():
        for side, count in sides.items():
            kinds = sorted(count.kinds.items(), key=lambda kind: -kind[1])
            text = ", ".join(f"{name} {number}" for name, number in kinds)
            each = f"{figure(count.each())} / {count.per} ({count.units})"
            lines.append(markdown_line([f"{workload}: {measure}", side, str(sum(count.kinds.values())), each, text]))
    return lines


def as_markdown(results: Results) -> str:
    lines = ["# Benchmarks", "", *(f"- {name}: {value}" for name, value in results.machine.items()), ""]
    for mode in results.modes():
        lines += [f"## {mode.capitalize()}", "", "Medians; the last columns are ratios of medians.", ""]
        lines += [*table(results, mode), ""]
    if results.requests:
        lines += ["## Requests", "", *request_table(results), ""]
    if results.failures:
        lines += ["## Failures", "", *(f"- {failure}" for failure in results.failures), ""]
    return "\n".join(lines)


#: Draws itself at a height.
Line = Callable[[int], list[str]]
LABEL, WIDTH, LINE, TOP = 300, 520, 22, 70
SMALLEST, LARGEST = -5, 5  # powers of two shown; what lies outside is drawn at the edge


def as_svg(results: Results) -> str:
    """One line for each row, a dot for each filesystem: its figure divided by that of Debian's fuse-overlayfs."""

    def lines(mode: str) -> list[Line]:
        bases = [(row, results.median(row, BASE)) for row in results.rows(mode) if row.unit != "%"]
        return [partial(plot_line, results, row, base) for row, base in bases if base]

    return plot(results.modes(), lines, legend(results))


def plot(modes: Iterable[str], lines: Callable[[str], list[Line]], explained: list[str]) -> str:
    """The drawing of each mode's *lines*, below what *explained* says."""
    drawn: list[str] = []
    y = TOP
    for mode in modes:
        drawn.append(f'<text x="8" y="{y}" font-weight="bold">{escape(mode)}</text>')
        y += LINE
        for line in lines(mode):
            drawn += line(y)
            y += LINE
        y += LINE
    return "\n".join([*canvas(y + LINE), *explained, *axis(y + LINE), *drawn, "</svg>", ""])


def canvas(height: int) -> list[str]:
    width = LABEL + WIDTH + 40
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]


def position(times: float) -> float:
    power = math.log2(times) if times > 0 else SMALLEST
    return LABEL + WIDTH * (min(max(power, SMALLEST), LARGEST) - SMALLEST) / (LARGEST - SMALLEST)


def plot_line(results: Results, row: Row, base: float, y: int) -> list[str]:
    drawn = [
        f'<text x="20" y="{y + 4}">{escape(f"{row.workload}: {row.measure}")}</text>',
        f'<line x1="{LABEL}" x2="{LABEL + WIDTH}" y1="{y}" y2="{y}" stroke="#eee"/>',
    ]
    for side, colour in zip(results.sides, COLOURS, strict=False):
        value = results.median(row, side)
        if value is not None:
            radius = 6 if side in results.ours else 4
            drawn.append(dot(value / base, y, radius, colour, f"{side}: {figure(value)} {row.unit}"))
    return drawn


def dot(times: float, y: int, radius: int, colour: str, tip: str) -> str:
    place = f'cx="{position(times):.1f}" cy="{y}" r="{radius}"'
    return f'<circle {place} fill="{colour}" fill-opacity="0.85"><title>{escape(tip)}</title></circle>'


def legend(results: Results) -> list[str]:
    drawn = [f'<text x="8" y="18">Relative to {BASE} = 1, logarithmic; left is better</text>']
    x = 8
    for side, colour in zip(results.sides, COLOURS, strict=False):
        drawn.append(f'<circle cx="{x + 5}" cy="36" r="5" fill="{colour}"/>')
        drawn.append(f'<text x="{x + 14}" y="40">{escape(side)}</text>')
        x += 30 + 7 * len(side)
    return drawn


def axis(height: int) -> list[str]:
    drawn = []
    for power in range(SMALLEST, LARGEST + 1):
        x = position(2.0**power)
        label = f"{2**power}" if power >= 0 else f"1/{2**-power}"
        stroke = "#888" if power == 0 else "#ddd"
        drawn.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - LINE}" stroke="{stroke}"/>')
        drawn.append(f'<text x="{x:.1f}" y="{TOP - 8}" text-anchor="middle" fill="#555">{label}</text>')
    return drawn
