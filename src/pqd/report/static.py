"""frontier.png and frontier.svg for a paper: accuracy against size and latency, by matplotlib."""

import io
import math
from typing import Any

from pqd.report import words
from pqd.report.style import colour, log_axis, polygon
from pqd.report.summary import DENSE, Frontier
from pqd.report.view import Report

MAX_ROWS = 8  # families drawn; more make no figure for a page
WIDTH, HEIGHT = 3.5, 2.6  # inches of one pair of axes


def frontier(report: Report) -> dict[str, bytes]:
    """A row of axes per family; a column for size and one per runtime in the first setup.

    Returns:
        the files' contents by name; empty when there is nothing to draw.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    setup = report.setups[0] if report.setups else ""
    grid = [
        [f for f in family.frontiers if f.condition is None or words.setup(f.condition) == setup]
        for family in report.families[:MAX_ROWS]
    ]
    columns = max((len(row) for row in grid), default=0)
    if not columns:
        return {}
    handles = _legend([DENSE, *report.orders])
    below = 0.25 + 0.17 * math.ceil(len(handles) / (3 * columns))  # inches of the legend
    width, height = WIDTH * columns, HEIGHT * len(grid) + below
    with matplotlib.rc_context({"font.size": 8, "svg.fonttype": "none", "svg.hashsalt": "pqd"}):
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        for i, row in enumerate(grid):
            for j, f in enumerate(row):
                # Margins in inches: matplotlib's own layout engines take most of a report's time.
                x, y = WIDTH * j + 0.6, HEIGHT * (len(grid) - 1 - i) + below + 0.45
                box = (x / width, y / height, (WIDTH - 0.7) / width, (HEIGHT - 0.75) / height)
                _draw(figure.add_axes(box), f, report.families[i].label)
        figure.legend(
            handles=handles,
            loc="lower center",
            ncols=min(3 * columns, len(handles)),
            frameon=False,
        )
        png, svg = io.BytesIO(), io.BytesIO()
        figure.savefig(png, format="png", dpi=150)
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return {"frontier.png": png.getvalue(), "frontier.svg": svg.getvalue()}


def _draw(ax: Any, f: Frontier, title: str) -> None:
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

    scale = 1.0 if f.condition else 2.0**20
    best = sorted((p for p in f.points if not p.dominated), key=lambda p: p.cost)
    x, y = [p.cost / scale for p in best], [p.accuracy.mean for p in best]
    ax.plot(x, y, ":", drawstyle="steps-post", linewidth=1, color="0.5", zorder=1)
    x, y = [p.cost / scale for p in f.points], [p.accuracy.mean for p in f.points]
    paints = [colour(p.order) for p in f.points]
    low = [p.accuracy.mean if p.accuracy.low is None else p.accuracy.low for p in f.points]
    high = [p.accuracy.mean if p.accuracy.high is None else p.accuracy.high for p in f.points]
    ax.vlines(x, low, high, paints, linewidth=0.7, zorder=2)
    for p, a, b, paint in zip(f.points, x, y, paints, strict=True):
        ax.plot(
            a,
            b,
            marker=_marker(p.order),
            markersize=8 if p.order == DENSE else 6,
            markeredgecolor=paint,
            markerfacecolor="white" if p.dominated else paint,
            zorder=3,
        )
    limits, ticks = log_axis(x)
    ax.set_xscale("log")
    ax.set_xlim(limits)
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.grid(linewidth=0.4, color="0.85", zorder=0)
    ax.set_title(title, fontsize=8, y=1.0)  # fixed places cost no measuring
    ax.xaxis.set_label_coords(0.5, -0.13)
    ax.yaxis.set_label_coords(-0.155, 0.5)
    ax.set_ylabel("test accuracy (%)")
    if f.condition is None:
        ax.set_xlabel("package size (MiB)")
    else:
        c = f.condition
        where = f"{words.runtime(c.runtime)}, {words.threads(c)}, batch {c.batch_size}"
        ax.set_xlabel(f"median ms, {where}")


def _legend(orders: list[str]) -> list[Any]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], linestyle="", marker=_marker(o), markersize=6, color=colour(o), label=o)
        for o in orders
    ]


def _marker(order: str) -> Any:
    from matplotlib.path import Path

    corners = polygon(order)
    return Path([*corners, corners[0]], closed=True)
