"""table.tex: the table of orders for a paper; needs the package booktabs."""

from typing import Any

from pqd.report import words
from pqd.report.page import template
from pqd.report.view import Report

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
    "·": r"$\cdot$",
    "–": "--",
    "−": "$-$",
} | {c: f"\\{c}" for c in "&%$#_{}"}


def latex(report: Report) -> str:
    """The table of orders, one block per case, latency columns of every runtime.

    Where latency was measured in several setups, the first counts.
    """
    setup = report.setups[0] if report.setups else "nothing"
    shown = [c for c in report.conditions if words.setup(c) == setup]
    rows = [row for view in report.cases for row in view.rows]
    rows += [trial.row for search in report.searches for trial in search.chosen]
    timings = [row.timing(c) for row in rows for c in shown]
    return str(
        template("table.tex.jinja", finalize=_escape).render(
            report=report,
            words=words,
            setup=setup,
            shown=shown,
            noisy=any(t and t.noisy for t in timings),
            machines=dict.fromkeys(c.machine for c in shown),
        )
    )


def _escape(value: Any) -> str:
    return "".join(_SPECIAL.get(c, c) for c in str(value))
