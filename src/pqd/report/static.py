"""frontier.png and frontier.svg for a paper: accuracy against size and latency, by matplotlib."""

import io
import math
from typing import Any

from pqd.report import words
from pqd.report.figures import slot_label
from pqd.report.frontier import Frontier
from pqd.report.style import Look, Looks, log_axis
from pqd.report.view import Report
from pqd.result import DENSE

ROWS = 8  # families on a page; more go to frontier-2.png and so on
WIDTH, HEIGHT = 3.5, 2.6  # inches of one panel
LETTERS = 40  # of the legend, below one
NOTE = "filled: frontier; hollow: dominated; bars: 95 % intervals; right of the dots: not to scale"


def frontier(report: Report) -> dict[str, bytes]:
    """A row of panels per family; a column for size and one per runtime in the first setup.

    Returns:
        the files' contents by name; empty when there is nothing to draw.
    """
    import matplotlib

    files: dict[str, bytes] = {}
    with matplotlib.rc_context({"font.size": 8, "svg.fonttype": "none", "svg.hashsalt": "pqd"}):
        for stem, grid in pages(report).items():
            figure = _figure(grid, report.looks)
            png, svg = io.BytesIO(), io.BytesIO()
            figure.savefig(png, format="png", dpi=150, pil_kwargs={"compress_level": 4})
            figure.savefig(svg, format="svg", metadata={"Date": None})
            files |= {f"{stem}.png": png.getvalue(), f"{stem}.svg": svg.getvalue()}
    return files


def pages(report: Report) -> dict[str, list[tuple[str, list[Frontier]]]]:
    """What to draw: family and frontiers of each row, by the stem of the file's name."""
    setup = report.setups[0] if report.setups else ""
    searches = [(search.label, search.frontiers) for search in report.searches]
    families = [(family.label, family.frontiers) for family in report.families]
    rows = [
        (label, shown)
        for label, frontiers in [*searches, *families]
        if (
            shown := [
                f for f in frontiers if f.condition is None or words.setup(f.condition) == setup
            ]
        )
    ]
    starts = range(0, len(rows), ROWS)
    return {
        f"frontier-{i + 1}" if i else "frontier": rows[start : start + ROWS]
        for i, start in enumerate(starts)
    }


def _figure(grid: list[tuple[str, list[Frontier]]], looks: Looks) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = max(len(row) for _, row in grid)
    letters = 6 + max(map(len, looks))  # with the marker
    across = max(1, min(len(looks), 3 * columns, int(LETTERS * columns / letters)))
    below = 0.45 + 0.17 * math.ceil(len(looks) / across)  # inches of legend and note
    width, height = WIDTH * columns, HEIGHT * len(grid) + below
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    for i, (label, row) in enumerate(grid):
        for j, f in enumerate(row):
            # Margins in inches: matplotlib's own layout engines take most of a report's time.
            x, y = WIDTH * j + 0.6, HEIGHT * (len(grid) - 1 - i) + below + 0.45
            box = (x / width, y / height, (WIDTH - 0.7) / width, (HEIGHT - 0.75) / height)
            _draw(figure.add_axes(box), f, looks, "" if j else label)  # of the whole row
    handles = [
        Line2D([], [], linestyle="", marker=_marker(look), markersize=6, color=look.colour)
        for look in looks.values()
    ]
    figure.legend(
        handles=handles,
        labels=list(looks),
        ncols=across,
        frameon=False,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.25 / height),
    )
    size = 7 if columns > 1 else 5
    figure.text(0.5, 0.12 / height, NOTE, ha="center", fontsize=size, color="0.3")
    return figure


def _draw(ax: Any, f: Frontier, looks: Looks, title: str) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

    points = f.near
    unit, scale = f.unit
    x, y = [p.cost / scale for p in f.best], [p.accuracy.mean for p in f.best]
    ax.plot(x, y, ":", drawstyle="steps-post", linewidth=1, color="0.5", zorder=1)
    x, y = [p.cost / scale for p in points], [p.accuracy.mean for p in points]
    limits, ticks = log_axis(x)
    labels = [f"{tick:g}" for tick in ticks]
    if f.apart:  # at the margin, in one place for each cost, as on the page
        ax.axvline(limits[1], linestyle=":", linewidth=0.8, color="0.5", zorder=1)
        step = (limits[1] / limits[0]) ** (1 / 6)
        ticks = [tick for tick in ticks if tick * step**0.3 < limits[1]]
        labels = labels[: len(ticks)]
        for i, slot in enumerate(f.apart):
            at, cost = limits[1] * step ** (i + 0.6), slot_label(f, slot)
            ticks, labels = [*ticks, at], [*labels, cost.replace(" ", "\n")]
            points = [*points, *slot]
            x, y = x + [at] * len(slot), y + [p.accuracy.mean for p in slot]
        limits = limits[0], limits[1] * step ** (len(f.apart) + 0.2)
    paints = [looks[p.order].colour for p in points]
    low = [p.accuracy.mean if p.accuracy.low is None else p.accuracy.low for p in points]
    high = [p.accuracy.mean if p.accuracy.high is None else p.accuracy.high for p in points]
    for curve in f.curves:
        places = [p.cost / scale for p in curve], [p.accuracy.mean for p in curve]
        ax.plot(*places, linewidth=0.8, color=looks[curve[0].order].colour, zorder=1.5)
    ax.vlines(x, low, high, paints, linewidth=0.7, zorder=2)
    for p, a, b, paint in zip(points, x, y, paints, strict=True):
        ax.plot(
            a,
            b,
            marker=_marker(looks[p.order]),
            markersize=8 if p.order == DENSE else 6,
            markeredgecolor=paint,
            markerfacecolor="white" if p.dominated else paint,
            zorder=3,
        )
    ax.set_xscale("log")
    ax.set_xlim(limits)
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FixedFormatter(labels))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.grid(linewidth=0.4, color="0.85", zorder=0)
    ax.set_title(title, loc="left", fontsize=8, y=1.0)  # fixed places cost no measuring
    ax.xaxis.set_label_coords(0.5, -0.22 if f.apart else -0.13)
    ax.yaxis.set_label_coords(-0.155, 0.5)
    ax.set_ylabel("test accuracy (%)")
    if f.condition is None:
        ax.set_xlabel(f"package size ({unit})")
    else:
        c = f.condition
        where = f"{words.runtime(c.runtime)}, {words.threads(c)}, batch {c.batch_size}"
        ax.set_xlabel(f"median ms, {where}")


def _marker(look: Look) -> Any:
    from matplotlib.path import Path

    corners = look.polygon
    return Path([*corners, corners[0]], closed=True)
