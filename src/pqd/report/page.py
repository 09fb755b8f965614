"""report.html: one self-contained file, interactive, without network."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from pqd.config import BASELINE
from pqd.inspect.words import columns, worst
from pqd.report import cost, figures, shapes, static, words
from pqd.report.frontier import MARGIN
from pqd.report.statistics import LEVEL
from pqd.report.style import STEPS, Look, stage_colour
from pqd.report.summary import Row
from pqd.report.trials import Search
from pqd.report.view import Family, Report
from pqd.result import DENSE, INT8
from pqd.stages import spell


def html(report: Report, output: Path, beside: list[str]) -> str:
    """Renders the page, to lie in `output` beside the files named; it links to them and to runs."""
    import gzip
    import importlib.resources as resources
    from base64 import b64encode

    from plotly.offline import get_plotlyjs

    files = resources.files("pqd.report") / "templates"
    plots = _figures(report)
    return template("report.html.jinja").render(
        **context(report),
        plots=plots,
        beside=beside,
        link=lambda folder: quote(Path(os.path.relpath(folder, output)).as_posix()),
        steps=STEPS,
        tint=_tint(report),
        points={order: _points(look) for order, look in report.looks.items()},
        style=Markup((files / "style.css").read_text("utf-8")),
        script=Markup((files / "page.js").read_text("utf-8")),
        # 1.9 MB rather than 4.7.
        plotly=Markup(b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()),
    )


def markdown(report: Report, *, figure: bool) -> str:
    """Renders report.md; `figure` says whether frontier.png and its like lie beside it."""
    stems = list(static.pages(report)) if figure else []
    return str(template("report.md.jinja").render(**context(report), stems=stems))


def template(name: str, **options: Any) -> Any:
    """A template of this package; only HTML is escaped, unless the options say how else."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pqd.report", "templates"),
        autoescape=".html" in name,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        **options,
    )
    return environment.get_template(name)


def context(report: Report) -> dict[str, Any]:
    """What the HTML and the Markdown template share."""
    return {
        "report": report,
        "words": words,
        "reduction": reduction,
        "shared": shared,
        "bars": bars,
        "facts": facts(report),
        "columns": columns,
        "worst": worst,
        "warnings": words.warnings(run.result for run in report.runs),
        "among": next((v.among for v in report.cases if v.among), ""),
        "DENSE": DENSE,
        "LEVEL": LEVEL,
        "MARGIN": MARGIN,
        "INT8": INT8,
        "stage_colour": stage_colour,
        "letters": {name: spell([name]) for name in report.stages if name != BASELINE},
    }


def facts(report: Report) -> list[str]:
    """What the report is made from, in a few counts."""
    runs = report.runs
    if not runs:
        return ["no completed run"]
    return [
        words.count(len(runs), "completed run"),
        *(
            words.count(len(set(values)), noun)
            for noun, values in (
                ("order", [spell(run.stages) for run in runs]),
                ("setting", [run.order for run in runs if report.subject.order]),
                ("seed", [run.seed for run in runs]),
                ("backbone", [run.backbone for run in runs]),
                ("data set", [run.dataset for run in runs]),
                ("machine", [m.provenance.machine for run in runs for m in run.measurements]),
            )
            if values
        ),
    ]


def shared(family: Family | Search) -> str:
    """Says which orders deploy networks of one shape; nothing where none do."""
    found = dict.fromkeys(tuple(orders) for f in family.frontiers for orders in f.shared)
    if not found:
        return ""
    return (
        "Networks of one shape (the same MACs in the same graph) are deployed by "
        f"{'; by '.join(words.listed(list(orders)) for orders in found)}. What differs in their "
        "latencies is noise, so frontiers and hypervolumes give each the mean over its shape."
    )


def reduction(row: Row, dense: Row) -> float | None:
    """How many times smaller the package is than the dense FP32 ONNX file."""
    return dense.size.mean / row.size.mean if row.size and dense.size and row.size.mean else None


def bars(costs: list[cost.Cost], c: cost.Cost) -> list[tuple[str, float]]:
    """Each stage's share of the longest order's time, in %."""
    longest = max(c.total for c in costs) or 1.0
    return [(stage, 100 * seconds / longest) for stage, seconds in c.seconds]


def _figures(report: Report) -> dict[str, figures.Figure]:
    plots = {}
    drawn = [(f"frontier-{i}", family.frontiers) for i, family in enumerate(report.families)]
    drawn += [(f"search-{i}", search.frontiers) for i, search in enumerate(report.searches)]
    for stem, frontiers in drawn:
        for f in frontiers:
            where = "size" if f.condition is None else report.conditions.index(f.condition)
            plots[f"{stem}-{where}"] = figures.frontier(f, report.looks)
    of = report.subject.reference, report.looks
    for i, case in enumerate(report.cases):
        if case.comparisons:
            plots[f"differences-{i}"] = figures.differences(case.comparisons, *of)
        if case.curves:
            plots[f"stages-{i}"] = figures.stages(case.curves, report.looks)
        if case.shapes:
            plots[f"channels-{i}"] = shapes.figure(case.shapes, report.looks)
    if len(report.cases) > 1 and report.comparisons:
        plots["differences-all"] = figures.differences(report.comparisons, *of)
    return plots


def _tint(report: Report) -> Callable[[float | None], str]:
    """A style attribute: blue for better than the reference, orange for worse."""
    largest = max((abs(c.difference.mean) for v in report.cases for c in v.comparisons), default=0)

    def tint(difference: float | None) -> Markup:
        if not difference or not largest:
            return Markup("")
        paint = "0, 114, 178" if difference > 0 else "213, 94, 0"
        opacity = 0.05 + 0.25 * abs(difference) / largest
        return Markup(f' style="background: rgba({paint}, {opacity:.2f})"')

    return tint


def _points(look: Look) -> str:
    """The marker as the points of an SVG polygon in a box of [-1, 1] with y downwards."""
    return " ".join(f"{x:.2f},{-y:.2f}" for x, y in look.polygon)
