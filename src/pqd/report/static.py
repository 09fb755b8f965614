"""frontier.png and frontier.svg for a paper: accuracy against size and latency, by matplotlib."""

import io
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from pqd.report import words
from pqd.report.style import colour, linear_axis, log_axis, polygon
from pqd.report.summary import DENSE, Frontier, Point
from pqd.report.view import Report

ROWS = 8  # families on a page; more go to frontier-2.png and so on
WIDTH, HEIGHT = 3.5, 2.6  # inches of one panel
LEFT, RIGHT, BELOW, ABOVE = 0.6, 0.1, 0.45, 0.3  # inches around its axes
NOTE = "filled: on the frontier (dotted line); hollow: dominated; bars: 95 % t-intervals over seeds"

Line = Sequence[tuple[float, float]]  # in inches


def frontier(report: Report) -> dict[str, bytes]:
    """A row of panels per family; a column for size and one per runtime in the first setup.

    Returns:
        the files' contents by name; empty when there is nothing to draw.
    """
    import matplotlib

    files: dict[str, bytes] = {}
    with matplotlib.rc_context({"font.size": 8, "svg.fonttype": "none", "svg.hashsalt": "pqd"}):
        for stem, grid in pages(report).items():
            figure = _figure(grid, [DENSE, *report.orders])
            png, svg = io.BytesIO(), io.BytesIO()
            figure.savefig(png, format="png", dpi=150, pil_kwargs={"compress_level": 4})
            figure.savefig(svg, format="svg", metadata={"Date": None})
            files |= {f"{stem}.png": png.getvalue(), f"{stem}.svg": svg.getvalue()}
    return files


def pages(report: Report) -> dict[str, list[tuple[str, list[Frontier]]]]:
    """What to draw: family and frontiers of each row, by the stem of the file's name."""
    setup = report.setups[0] if report.setups else ""
    rows = [
        (family.label, shown)
        for family in report.families
        if (
            shown := [
                f
                for f in family.frontiers
                if f.condition is None or words.setup(f.condition) == setup
            ]
        )
    ]
    starts = range(0, len(rows), ROWS)
    return {
        f"frontier-{i + 1}" if i else "frontier": rows[start : start + ROWS]
        for i, start in enumerate(starts)
    }


def _figure(grid: list[tuple[str, list[Frontier]]], orders: list[str]) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = max(len(row) for _, row in grid)
    across = min(3 * columns, len(orders))
    below = 0.45 + 0.17 * math.ceil(len(orders) / across)  # inches of legend and note
    width, height = WIDTH * columns, HEIGHT * len(grid) + below
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    for i, (label, row) in enumerate(grid):
        for j, f in enumerate(row):
            _draw(figure, f, label, WIDTH * j + LEFT, height - HEIGHT * (i + 1) + BELOW)
    handles = [
        Line2D([], [], linestyle="", marker=_marker(o), markersize=6, color=colour(o), label=o)
        for o in orders
    ]
    figure.legend(
        handles=handles,
        ncols=across,
        frameon=False,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.25 / height),
    )
    size = 7 if columns > 1 else 5
    figure.text(0.5, 0.12 / height, NOTE, ha="center", fontsize=size, color="0.3")
    return figure


def _draw(figure: Any, f: Frontier, title: str, left: float, bottom: float) -> None:
    """Draws a frontier in axes with this lower left corner, in inches.

    Lines, markers and texts lie straight on the page: matplotlib's own axes take twice the time.
    """
    scale = 1.0 if f.condition else 2.0**20
    costs, intervals = [p.cost / scale for p in f.points], [_interval(p) for p in f.points]
    x_limits, x_ticks = log_axis(costs)
    y_limits, y_ticks = linear_axis([bound for interval in intervals for bound in interval])
    right, top = left + WIDTH - LEFT - RIGHT, bottom + HEIGHT - BELOW - ABOVE
    x = _place(left, right, *x_limits, by=math.log)
    y = _place(bottom, top, *y_limits)

    columns, rows = [x(tick) for tick in x_ticks], [y(tick) for tick in y_ticks]
    grid: list[Line] = [((a, bottom), (a, top)) for a in columns]
    grid += [((left, b), (right, b)) for b in rows]
    _lines(figure, grid, colors="0.85", linewidths=0.4)
    marks: list[Line] = [((a, bottom), (a, bottom - 0.04)) for a in columns]
    marks += [((left, b), (left - 0.04, b)) for b in rows]
    marks += [[(left, bottom), (right, bottom), (right, top), (left, top), (left, bottom)]]
    _lines(figure, marks, colors="black", linewidths=0.8, capstyle="projecting")
    for a, tick in zip(columns, x_ticks, strict=True):
        _text(figure, a, bottom - 0.07, f"{tick:g}", va="top")
    decimals = max(len(f"{tick:g}".partition(".")[2]) for tick in y_ticks)
    for b, tick in zip(rows, y_ticks, strict=True):
        _text(figure, left - 0.07, b, f"{tick:.{decimals}f}", ha="right", va="center_baseline")
    middle = (left + right) / 2
    _text(figure, middle, top + 0.08, title)
    _text(figure, middle, bottom - 0.23, _cost(f), va="top")
    height = (bottom + top) / 2
    _text(figure, left - 0.46, height, "test accuracy (%)", rotation=90, va="center")

    spots = [(x(cost), y(p.accuracy.mean)) for cost, p in zip(costs, f.points, strict=True)]
    best = sorted(spot for spot, p in zip(spots, f.points, strict=True) if not p.dominated)
    steps = best[:1] + [spot for (_, b), (c, d) in pairwise(best) for spot in ((c, b), (c, d))]
    _lines(figure, [steps], colors="0.5", linewidths=1, linestyles=":")
    paints = [colour(p.order) for p in f.points]
    bars = [((a, y(i[0])), (a, y(i[1]))) for (a, _), i in zip(spots, intervals, strict=True)]
    _lines(figure, bars, colors=paints, linewidths=0.7)
    for p, spot in zip(f.points, spots, strict=True):
        _marker_at(figure, p, spot)


def _place(
    start: float, end: float, low: float, high: float, by: Callable[[float], float] = float
) -> Callable[[float], float]:
    """Where a value of an axis from `low` to `high` lies between `start` and `end`."""
    slope = (end - start) / (by(high) - by(low))
    return lambda value: start + slope * (by(value) - by(low))


def _lines(figure: Any, lines: Sequence[Line], **style: Any) -> None:
    from matplotlib.collections import LineCollection

    figure.add_artist(LineCollection(lines, transform=figure.dpi_scale_trans, **style))


def _text(figure: Any, x: float, y: float, text: str, **style: Any) -> None:
    figure.text(x, y, text, transform=figure.dpi_scale_trans, **{"ha": "center"} | style)


def _marker_at(figure: Any, p: Point, spot: tuple[float, float]) -> None:
    from matplotlib.collections import PathCollection
    from matplotlib.transforms import IdentityTransform

    figure.add_artist(
        PathCollection(
            [_marker(p.order)],
            sizes=[18 if p.order == DENSE else 11],  # squares of the radius in points
            offsets=[spot],
            offset_transform=figure.dpi_scale_trans,
            transform=IdentityTransform(),  # else the marker is enlarged as the page is
            edgecolors=colour(p.order),
            facecolors="white" if p.dominated else colour(p.order),
            zorder=3,  # over lines
        )
    )


def _interval(p: Point) -> tuple[float, float]:
    low, high = p.accuracy.low, p.accuracy.high
    return (p.accuracy.mean if low is None else low, p.accuracy.mean if high is None else high)


def _cost(f: Frontier) -> str:
    if f.condition is None:
        return "package size (MiB)"
    c = f.condition
    return f"median ms, {words.runtime(c.runtime)}, {words.threads(c)}, batch {c.batch_size}"


def _marker(order: str) -> Any:
    from matplotlib.path import Path

    corners = polygon(order)
    return Path([*corners, corners[0]], closed=True)
