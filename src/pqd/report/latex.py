"""table.tex: the table of orders for a paper; needs the package booktabs."""

from pqd.report import words
from pqd.report.statistics import Estimate
from pqd.report.summary import Condition
from pqd.report.view import CaseView, Report

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
    setup = report.setups[0] if report.setups else ""
    shown = [c for c in report.conditions if words.setup(c) == setup]
    head = ["Order", "Seeds", "Accuracy (%)", "Sparsity (%)", "Size"]
    head += [f"{words.runtime(c.runtime)} (ms)" for c in shown]
    lines = [
        "% Accuracy: test split, exported model, mean ± sample deviation over seeds.",
        "% Size: package; for dense the FP32 ONNX file. Latency: median, deployed model.",
        f"% Latency measured on: {setup or 'nothing'}.",
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"\toprule",
        _line(head),
    ]
    for case in report.cases:
        title = rf"\multicolumn{{{len(head)}}}{{l}}{{\emph{{{_escape(case.case.label)}}}}} \\"
        lines += [r"\midrule", title, *_rows(case, shown)]
    lines += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join(
        [*lines, *(rf"\par{{\footnotesize {_escape(n)}}}" for n in _notes(report, shown)), ""]
    )


def _notes(report: Report, shown: list[Condition]) -> list[str]:
    """Footnotes below the table."""
    timings = [row.timing(c) for view in report.cases for row in view.rows for c in shown]
    noisy = any(t and t.noisy for t in timings)
    notes = [f"{words.NOISY} A wide interval or other work in at least one run."] if noisy else []
    machines = dict.fromkeys(c.machine for c in shown)
    disturbed = [(m, report.disturbances[m]) for m in machines if m in report.disturbances]
    return notes + [f"{machine}: {text}." for machine, text in disturbed]


def _rows(view: CaseView, shown: list[Condition]) -> list[str]:
    lines = []
    for row in view.rows:
        timings = [row.timing(c) for c in shown]
        cells = [
            row.order,
            str(row.accuracy.n),
            _with_deviation(row.accuracy),
            f"{row.sparsity.mean:.1f}",
            words.bytes_(row.size),
            *map(words.latency, timings),
        ]
        lines.append(_line(cells))
    return lines


def _with_deviation(e: Estimate) -> str:
    return f"{e.mean:.2f}" if e.deviation is None else f"{e.mean:.2f} ± {e.deviation:.2f}"


def _line(cells: list[str]) -> str:
    return " & ".join(_escape(cell) for cell in cells) + r" \\"


def _escape(text: str) -> str:
    return "".join(_SPECIAL.get(c, c) for c in text)
