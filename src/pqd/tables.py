"""The tables at the end of a run and of a sweep, and what to know before trusting them."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pqd.progress import duration, place
from pqd.report import words
from pqd.result import Final, Latency, Result
from pqd.stages import spell

MODEL = "model.onnx"  # in a run's folder
RUNS_SHOWN = 12  # in the table at the end of a sweep; of more it shows means
DASH, DOUBTED = "-", "!"  # no figure; a run with warnings
NOTES = {
    words.NOISY: "noisy: a wide interval, or other work on the cores",
    words.SLOWER: "slower than dense",
}


def stage_table(result: Result) -> Group:
    """The table at the end of a run, one row per stage, and what marks in its last line mean.

    Args:
        result: a run's, of any status.
    """
    table = Table(title=escape(result.name))
    table.add_column("stage")
    for heading in ("epochs", "loss", "validation %", "sparsity %", "time"):
        table.add_column(heading, justify="right")
    for stage in result.stages:
        table.add_row(
            stage.stage,
            str(stage.epochs),
            _number(stage.loss, "{:.4f}"),
            _number(stage.validation_accuracy, "{:.2f}"),
            _number(stage.sparsity, "{:.1f}", 100),
            "cached" if stage.cached else duration(stage.seconds),
        )
    return _with_lines(table, _notes([result]))


def _summary(result: Result) -> str:
    final = _final(result)
    if final is None:
        return f"{result.status}: {result.reason}"
    sizes = final.sizes
    parts = [
        f"{final.accuracy:.2f} % on the test split (dense {final.dense_accuracy:.2f} %)",
        *_balanced(final),
        f"{final.sparsity:.1%} zeros",
        f"{_bytes([_model_bytes(result)])} (dense {_bytes([sizes.get('fp32_onnx')])})",
        f"package {_bytes([sizes.get('package')])}{_chosen(result)}",
    ]
    rows = final.fastest
    latencies = "; ".join(map(_latency, rows)) or "latency not measured"
    where = f"; {_setting(rows[0])}: " if rows else ", "
    return f"{MODEL}: {', '.join(parts)}{where}{latencies}"


def _latency(row: Latency) -> str:
    ms = f"{words.significant(row.p50_ms)} ms{words.marks(row.noisy, None)}"
    shown = f"{words.runtime(row.runtime)} {ms}"
    if row.speedup is None:
        return shown
    return f"{shown}, {words.as_fast(row.speedup)}{words.marks(False, row.slower_than_dense)}"


def _balanced(final: Final) -> list[str]:
    """The accuracies with all classes weighted alike, where they are others."""
    if not final.uneven:
        return []
    both = (final.balanced_accuracy, final.dense_balanced_accuracy)
    ours, dense = (_number(value, "{:.2f} %") for value in both)
    return [f"class-balanced {ours} (dense {dense})"]


def _chosen(result: Result) -> str:
    """Says how few bits keep the size of a package, where they were chosen for it."""
    if not (bits := result.bits):
        return ""
    return f" of {words.bytes_(bits.limit_bytes)} ({bits.mean_bits:.2f} bits per weight)"


def ending(result: Result, folder: Path, tracked: str | None) -> list[str]:
    """Says where a completed run is, what to do next, and in the last line what came out of it.

    Args:
        result: of the run.
        folder: of the run.
        tracked: where W&B has it, in a line; None if it has not.
    """
    where, sizes = place(folder), result.files.items()
    listed = ", ".join(f"{name} {words.bytes_(file['bytes'])}" for name, file in sizes)
    return [
        f"folder: {where} ({listed})",
        *([tracked] if tracked else []),
        f"next: pqd predict {place(folder / MODEL)} IMAGE; pqd bench {where}; pqd report {where}",
        "; warning: ".join([_summary(result), *result.warnings]),
    ]


def comparison_table(results: Iterable[Result]) -> Group:
    """The table at the end of a sweep, one row per run in the order given, and its notes.

    Args:
        results: of each run, of any status.
    """
    results = list(results)
    rows = [row for result in results for row in _latencies(result)]
    many = len(results) > RUNS_SHOWN
    runtimes = _by_speed(rows)
    table = Table(
        title=f"{MODEL}, means over seeds" if many else f"{MODEL} of every run",
        caption="; ".join(sorted({_where(row) for row in rows})) or None,
    )
    table.add_column("run", overflow="fold")
    table.add_column("order")
    headings = ["accuracy %", "vs dense", "zeros %", "size", "package"]
    for name in runtimes:
        headings += [f"{words.runtime(name)} ms", "speed, × dense"]
    for heading in (*["completed"] * many, *headings):
        table.add_column(heading, justify="right")
    for runs in _without_seeds(results) if many else [[result] for result in results]:
        name = re.sub(r"_seed-?\d+", "", runs[0].name) if many else runs[0].name
        doubted = f" {DOUBTED}" if any(run.warnings for run in runs) else ""
        names = (Text(name + doubted), _order(runs[0]))
        done = [run for run in runs if _final(run)]
        count = [f"{len(done)} of {len(runs)}"] * many
        if done:
            table.add_row(*names, *count, *_means(done, runtimes))
        else:
            table.add_row(*names, *count, runs[0].status, *[DASH] * (len(headings) - 1))
    doubts = [f"{DOUBTED} {line}" for line in words.warnings(results)]
    return _with_lines(table, [*_notes(results), *doubts])


def _with_lines(table: Table, lines: list[str]) -> Group:
    """A table and lines below it, which are left to the terminal to wrap."""
    return Group(table, *(Text(line, no_wrap=True, overflow="ignore") for line in lines))


def _by_speed(rows: list[Latency]) -> list[str]:
    """The runtimes of some rows, that with the lowest mean latency first."""
    of: dict[str, list[float]] = {}
    for row in rows:
        of.setdefault(row.runtime, []).append(row.p50_ms)
    return sorted(of, key=lambda name: fmean(of[name]))


def _model_bytes(result: Result) -> int | None:
    return result.files.get(MODEL, {}).get("bytes")


def _means(done: list[Result], runtimes: list[str]) -> list[str]:
    finals = [final for run in done if (final := _final(run))]
    cells = [
        _mean((final.accuracy for final in finals), "{:.2f}"),
        _mean((final.accuracy - final.dense_accuracy for final in finals), "{:+.2f}"),
        _mean((final.sparsity for final in finals), "{:.1f}", 100),
        _bytes(map(_model_bytes, done)),
        _bytes(final.sizes.get("package") for final in finals),
    ]
    for name in runtimes:
        rows = [row for final in finals for row in final.fastest if row.runtime == name]
        noisy = words.marks(any(row.noisy for row in rows), None)
        slower = words.marks(False, any(row.slower_than_dense for row in rows))
        cells += [
            (words.significant(fmean(row.p50_ms for row in rows)) if rows else DASH) + noisy,
            _mean((row.speedup for row in rows), "{:.2f}") + slower,
        ]
    return cells


def _notes(results: Iterable[Result]) -> list[str]:
    """What the marks mean that the figures of these runs have."""
    rows = [row for result in results for row in _latencies(result)]
    marks = {mark for row in rows for mark in words.marks(row.noisy, row.slower_than_dense)}
    return [f"{mark} {note}" for mark, note in NOTES.items() if mark in marks]


def _final(result: Result) -> Final | None:
    """Its figures; none of a run that failed for what they are."""
    return result.final if result.status == "completed" else None


def _latencies(result: Result) -> list[Latency]:
    final = _final(result)
    return final.fastest if final else []


def _order(result: Result) -> str:
    """Its name; of a run that failed before its configuration was read, as it was given."""
    given = result.config.get("order")
    return spell(result.order) if result.order or not isinstance(given, dict) else given["name"]


def _without_seeds(results: list[Result]) -> list[list[Result]]:
    """The runs of each configuration, which differ in the seed alone."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        config = {key: value for key, value in result.config.items() if key != "seed"}
        groups.setdefault(json.dumps(config, sort_keys=True), []).append(result)
    return list(groups.values())


def _mean(values: Iterable[float | None], form: str, scale: float = 1) -> str:
    given = [value for value in values if value is not None]
    return _number(fmean(given) if given else None, form, scale)


def _bytes(values: Iterable[int | None]) -> str:
    given = [value for value in values if value is not None]
    return words.bytes_(fmean(given)) if given else DASH


def _number(value: float | None, form: str, scale: float = 1) -> str:
    return DASH if value is None else form.format(value * scale)


def _setting(row: Latency) -> str:
    return f"{words.count(row.threads, 'thread')}, batch {row.batch_size}"


def _where(row: Latency) -> str:
    return f"{words.runtime(row.runtime)} {row.version}, {_setting(row)}"
