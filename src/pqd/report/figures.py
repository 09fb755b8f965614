"""The interactive figures as plain dictionaries that plotly.js draws.

Building dictionaries keeps the import of plotly's Python side, and its validation of every trace,
out of a report; colours of text and grid are set in the page, which knows light from dark.
"""

from typing import Any

from pqd.identity import option_at
from pqd.report import words
from pqd.report.cases import axis
from pqd.report.compare import Comparison
from pqd.report.cost import Curve
from pqd.report.frontier import Frontier, Point
from pqd.report.statistics import Estimate
from pqd.report.style import Looks
from pqd.result import DENSE

Figure = dict[str, Any]


def frontier(f: Frontier, looks: Looks) -> Figure:
    """Accuracy against size or latency: filled markers on the frontier, hollow ones dominated."""
    unit, scale = f.unit
    data: list[Figure] = [
        {
            "x": [p.cost / scale for p in f.best],
            "y": [p.accuracy.mean for p in f.best],
            "mode": "lines",
            "line": {"shape": "hv", "dash": "dot", "width": 1.5, "color": "#8a8f98"},
            "hoverinfo": "skip",
        }
    ]
    data += [_points(f, points, looks) for points in f.curves]
    for slot in f.apart:  # the page draws them at the margin, in one place each, under its cost
        label = slot_label(f, slot).replace(" ", "<br>")
        data += [_points(f, [p], looks) | {"customdata": [label]} for p in slot]
    what = "Package size" if f.condition is None else "Median latency"
    return {
        "data": data,
        "layout": {
            "xaxis": {"title": {"text": f"{what} ({unit}, log scale)"}, "type": "log"},
            "yaxis": {"title": {"text": "Test accuracy (%)"}},
            "height": 380,
        },
    }


def slot_label(f: Frontier, slot: list[Point]) -> str:
    """The cost of points that are drawn in one place at the margin, the least of them."""
    least, most = (words.cost(f.condition, p.cost) for p in (slot[0], slot[-1]))
    return least if least == most else f"≥{least}"


def _points(f: Frontier, points: list[Point], looks: Looks) -> Figure:
    """One order's points, joined by a line."""
    points, scale = sorted(points, key=lambda p: p.cost), f.unit[1]
    order, look = points[0].order, looks[points[0].order]
    return {
        "x": [p.cost / scale for p in points],
        "y": [p.accuracy.mean for p in points],
        "error_y": _bars([p.accuracy for p in points]),
        "text": [_hover(p, words.cost(f.condition, p.cost)) for p in points],
        "hoverinfo": "text",
        "mode": "lines+markers" if len(points) > 1 else "markers",
        "line": {"width": 1, "color": look.colour},
        "marker": {
            "color": look.colour,
            "size": 14 if order == DENSE else 11,
            "symbol": [look.symbol + ("-open" if p.dominated else "") for p in points],
            "line": {"width": 1.5, "color": look.colour},
        },
        "meta": order,
    }


def _hover(p: Point, cost: str) -> str:
    lines = [f"<b>{p.order}</b>{' (dominated)' if p.dominated else ''}"]
    for key, value in p.axes:
        lines.append(f"{'target ' if option_at(key).axis else ''}{axis(key, value)}")
    lines += [cost, _words(p.accuracy)]
    return "<br>".join(lines)


def _words(e: Estimate) -> str:
    if e.low is None:
        return f"{e.mean:.2f} % (n = {e.n})"
    return f"{e.mean:.2f} % ({e.low:.2f} to {e.high:.2f}, n = {e.n})"


def _bars(estimates: list[Estimate]) -> Figure:
    """Error bars of the 95 % intervals; without caps, which would cross what has no interval."""
    return {"type": "data", "array": [e.half or 0 for e in estimates], "thickness": 1, "width": 0}


def differences(comparisons: list[Comparison], reference: str, looks: Looks) -> Figure:
    """Difference of each order to the reference, with 95 % intervals."""
    data = [
        {
            "x": [c.difference.mean],
            "y": [c.order],
            "error_x": _bars([c.difference]),
            "mode": "markers",
            "marker": {
                "color": looks[c.order].colour,
                "size": 11,
                "symbol": looks[c.order].symbol + ("" if c.proven else "-open"),
                "line": {"width": 1.5, "color": looks[c.order].colour},
            },
            "text": [f"<b>{c.order}</b><br>{words.signed(c.difference.mean)} points"],
            "hoverinfo": "text",
            "meta": c.order,
        }
        for c in comparisons
    ]
    zero = {"type": "line", "x0": 0, "x1": 0, "yref": "paper", "y0": 0, "y1": 1}
    return {
        "data": data,
        "layout": {
            "xaxis": {"title": {"text": f"Accuracy minus that of {reference} (points)"}},
            "yaxis": {
                "type": "category",
                "categoryorder": "array",
                "categoryarray": [c.order for c in reversed(comparisons)],
                "range": [-0.6, len(comparisons) - 0.4],
            },
            "shapes": [zero | {"line": {"width": 1, "color": "#8a8f98"}}],
            "height": 110 + 34 * len(comparisons),
        },
    }


def stages(curves: list[Curve], looks: Looks) -> Figure:
    """Validation accuracy after each stage, one line per order."""
    longest = max(len(curve.stages) for curve in curves)
    ticks = ["dense", *(f"stage {i}" for i in range(1, longest))]
    data = [
        {
            "x": list(range(len(curve.stages))),
            "y": [e.mean for e in curve.accuracy],
            "error_y": _bars(curve.accuracy),
            "text": [
                f"<b>{curve.order}</b> after {stage}<br>{_words(e)}"
                for stage, e in zip(curve.stages, curve.accuracy, strict=True)
            ],
            "hoverinfo": "text",
            "mode": "lines+markers",
            "line": {"width": 2, "color": look.colour},
            "marker": {"color": look.colour, "size": 9, "symbol": look.symbol},
            "meta": curve.order,
        }
        for curve in curves
        for look in [looks[curve.order]]
    ]
    return {
        "data": data,
        "layout": {
            "xaxis": {
                "tickvals": list(range(longest)),
                "ticktext": ticks,
                "range": [-0.2, longest - 0.8],
            },
            "yaxis": {"title": {"text": "Validation accuracy (%)"}},
            "height": 360,
        },
    }
