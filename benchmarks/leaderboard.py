"""Prints the leaderboard of stored studies, and puts it into results/README.md.

    python benchmarks/leaderboard.py            # results/README.md is up to date afterwards
    python benchmarks/leaderboard.py --check    # fails if it was not

For every network and data set of a study, those with the most accurate point first: the points that
no other point beats in accuracy and package size at once, the most accurate first, and the dense
network they come from. Latencies are those of the fastest runtime measured on one thread.
"""

import argparse
import re
import sys
from pathlib import Path

from pqd.files import write
from pqd.report import words
from pqd.report.cases import axis
from pqd.report.frontier import Frontier, Point
from pqd.report.load import load
from pqd.report.summary import Row, Timing
from pqd.report.view import Report, view
from pqd.result import DENSE

RESULTS = Path(__file__).parents[1] / "results"
MARKS = "<!-- leaderboard -->\n", "<!-- end -->\n"
HEAD = "| study | network, data | order | seeds | accuracy, % | 95 % interval | size | latency |"


def table() -> str:
    """Returns the table in Markdown."""
    found: list[tuple[float, list[str]]] = []
    for study in sorted(path.parent for path in RESULTS.glob("*/points.csv")):
        report = view(load([study / "runs"]))
        for index, family in enumerate(report.families):
            rows = [row for v in report.cases if v.family == index for row in v.rows]
            points = _best(family.frontiers)
            lines = [_line(study.name, family.label, point, rows, report) for point in points]
            found.append((points[0].accuracy.mean, lines))
    found.sort(key=lambda each: -each[0])
    lines = [line for _, lines in found for line in lines]
    return "\n".join([HEAD, "|---|---|---|---:|---:|---:|---:|---|", *lines]) + "\n"


def _best(frontiers: list[Frontier]) -> list[Point]:
    """Returns the points that are not dominated in size, and in the end the dense network."""
    size = next(frontier for frontier in frontiers if frontier.condition is None)
    found = [p for p in size.points if p.order == DENSE or not p.dominated]
    return sorted(found, key=lambda p: (p.order == DENSE, -p.accuracy.mean))


def _line(study: str, family: str, point: Point, rows: list[Row], report: Report) -> str:
    row = next(r for r in rows if r.key == point.key)
    cells = (
        f"[{study}]({study}/README.md)",
        family,
        _order(point),
        str(point.accuracy.n),
        words.mean(point.accuracy),
        words.interval(point.accuracy),
        words.bytes_(point.cost),
        _latency(row, report),
    )
    return f"| {' | '.join(cells)} |"


def _order(point: Point) -> str:
    return ", ".join([point.order, *(axis(key, value) for key, value in point.axes)])


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
