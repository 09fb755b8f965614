"""Measured latencies as a table, and what follows from it."""

from typing import Any

from rich.markup import escape
from rich.table import Table

from pqd.measure.timings import Latencies
from pqd.report.words import as_fast
from pqd.result import DENSE, DEPLOYED
from pqd.runtimes import get

COLUMNS = ("threads", "batch", "median ms", "95 % interval", "× dense", "95 % interval", "")


def latency_table(title: str, rows: Latencies) -> Table:
    """Returns the table of a measurement, the fastest first within a batch size.

    Args:
        title: what was measured.
        rows: see `pqd.measure.latency`; runtimes without a row are named at the end.
    """
    table = Table(title=escape(title), title_justify="left")
    for column in ("runtime", "model"):
        table.add_column(column, no_wrap=True)
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for row in sorted(rows, key=_by_speed):
        table.add_row(
            get(row["runtime"]).title,
            row["model"],
            str(row["threads"]),
            str(row["batch_size"]),
            _number(row["p50_ms"]),
            _interval(row["p50_interval_ms"]),
            "" if row["speedup"] is None else f"{_number(row['speedup'])}×",
            _interval(row["speedup_interval"]),
            "noisy" if row["noisy"] else "",
        )
    for name in (*rows.failed, *rows.left_out):
        table.add_row(get(name).title, "failed" if name in rows.failed else "not measured")
    return table


def advice(rows: Latencies) -> str:
    """Returns which runtime and how many threads to deploy with here, in one line.

    That is where the deployable model (or, where it was not measured, any) is fastest, at the
    smallest batch size.

    Args:
        rows: at least one, see `pqd.measure.latency`.
    """
    best = min([row for row in rows if row["model"] in DEPLOYED] or rows, key=_by_speed)
    threads = f"{best['threads']} thread{'' if best['threads'] == 1 else 's'}"
    line = (
        f"deploy here with {get(best['runtime']).title} on {threads}: {best['model']} takes "
        f"{_number(best['p50_ms'])} ms for a batch of {best['batch_size']}"
    )
    if best["speedup"] is not None and best["model"] != DENSE:
        line += f", {as_fast(best['speedup'])}"
    return line + (" (noisy: measure again while nothing else runs)" if best["noisy"] else "")


def _by_speed(row: dict[str, Any]) -> tuple[int, float]:
    return row["batch_size"], row["p50_ms"]


def _interval(bounds: list[float] | None) -> str:
    return "" if bounds is None else " to ".join(map(_number, bounds))


def _number(value: float) -> str:
    """Three significant digits and no exponent."""
    return f"{value:.3g}" if 1e-4 <= value < 999.5 else f"{value:.0f}"
