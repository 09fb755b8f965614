"""Prints the leaderboard of stored studies, and puts it into results/README.md.

    python benchmarks/leaderboard.py            # results/README.md is up to date afterwards
    python benchmarks/leaderboard.py --check    # fails if it was not

For every network and data set of a study, those with the most accurate point first: the points that
no other point beats in accuracy and package size at once, the most accurate first, and the dense
network they come from. The points of a search are picked by accuracy on the validation split.
Latencies are those of the fastest runtime measured on one thread.
"""

import argparse
import re
import sys
from pathlib import Path

from pqd.files import write
from pqd.report import words
from pqd.report.cases import axis
from pqd.report.load import load
from pqd.report.statistics import dominated
from pqd.report.summary import Row, Timing
from pqd.report.trials import Search
from pqd.report.view import CaseView, Family, Report, view
from pqd.result import DENSE

RESULTS = Path(__file__).parents[1] / "results"
MARKS = "<!-- leaderboard -->\n", "<!-- end -->\n"
HEAD = "| study | network, data | order | seeds | accuracy, % | 95 % interval | size | latency |"


def table() -> str:
    """Returns the table in Markdown."""
    found: list[tuple[float, list[str]]] = []
    for study in sorted(path.parent for path in RESULTS.glob("*/points.csv")):
        report = view(load([study / "runs"]))
        groups = [
            (family.label, _of_family(family, [v for v in report.cases if v.family == index]))
            for index, family in enumerate(report.families)
        ]
        groups += [(search.label, _of_search(search)) for search in report.searches]
        for label, rows in groups:
            lines = [_line(study.name, label, row, report) for row in rows]
            found.append((rows[0].accuracy.mean, lines))
    found.sort(key=lambda each: -each[0])
    lines = [line for _, lines in found for line in lines]
    return "\n".join([HEAD, "|---|---|---|---:|---:|---:|---:|---|", *lines]) + "\n"


def _of_family(family: Family, views: list[CaseView]) -> list[Row]:
    """Returns the orders that are not dominated in size, and in the end the dense network."""
    size = next(frontier for frontier in family.frontiers if frontier.condition is None)
    kept = {point.key for point in size.points if point.order == DENSE or not point.dominated}
    rows = {row.key: row for v in views for row in v.rows if row.key in kept}
    return sorted(rows.values(), key=lambda row: (row.order == DENSE, -row.accuracy.mean))


def _of_search(search: Search) -> list[Row]:
    """Returns the trials that are not dominated in size on the validation split, and the dense."""
    tried = [
        (trial.row, trial.row.size.mean, trial.validation)
        for trial in search.chosen
        if trial.row.size and trial.validation is not None
    ]
    worse = dominated([size for _, size, _ in tried], [accuracy for *_, accuracy in tried])
    kept = [row for (row, *_), flag in zip(tried, worse, strict=True) if not flag]
    return [*kept, search.dense]


def _line(study: str, label: str, row: Row, report: Report) -> str:
    cells = (
        f"[{study}]({study}/README.md)",
        label,
        _order(row, report),
        str(row.accuracy.n),
        words.mean(row.accuracy),
        words.interval(row.accuracy),
        words.bytes_(row.size),
        _latency(row, report),
    )
    return f"| {' | '.join(cells)} |"


def _order(row: Row, report: Report) -> str:
    of = [report.subject.order] if report.subject.order and row.order != DENSE else []
    axes = [axis(key, value) for key, value in row.axes if not key.endswith(".lr")]
    return ", ".join([*of, row.order, *axes])


def _latency(row: Row, report: Report) -> str:
    timings: list[Timing] = [
        timing
        for condition in report.conditions
        if condition.threads == condition.batch_size == 1 and (timing := row.timing(condition))
    ]
    if not timings:
        return words.MISSING
    best = min(timings, key=lambda timing: timing.p50.mean)
    where = f"{words.runtime(best.condition.runtime)}, {best.condition.machine}"
    return f"{words.latency(best)} ms ({where})"


def updated(text: str) -> str:
    """Returns results/README.md with today's table."""
    between = re.escape(MARKS[0]) + ".*?" + re.escape(MARKS[1])
    return re.sub(between, lambda _: MARKS[0] + table() + MARKS[1], text, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    path = RESULTS / "README.md"
    old = path.read_text()
    new = updated(old)
    if check and new != old:
        sys.exit("results/README.md is not what the stored studies say; run this without --check")
    write(path, new)
    print(table(), end="")


if __name__ == "__main__":
    main()
