"""points.csv: one row per completed run and machine, for one's own analyses."""

import csv
import io
from collections.abc import Iterable
from typing import Any

from pqd.identity import option_at
from pqd.report.cases import distinct, is_share
from pqd.report.load import Loaded, Run
from pqd.report.style import sort_stages
from pqd.report.swept import variants
from pqd.report.words import SIZES
from pqd.result import Bench, Latency
from pqd.stages import STAGES


def rows(loaded: Loaded) -> list[dict[str, Any]]:
    """One row per distinct completed run and machine; every row has every column.

    `variant` holds swept keys other than backbone, data set, order, seed and the axes. Latency
    columns are `{runtime}_t{threads}_b{batch size}_{model}_{p50_ms|p90_ms|p99_ms|speedup}`
    Accuracies and sparsities are in %, sizes in bytes, times in s.
    `result_sha256` is the digest of the run's result.json.
    """
    runs = variants(distinct(loaded.runs)[0])
    axes = dict.fromkeys(key for run, _ in runs for key in run.axes)
    stages = sort_stages(
        {*STAGES, *(entry.stage for run, _ in runs for entry in run.result.stages)}
    )
    found = [
        (_result(run, variant, list(axes), stages) | _measured(m), _latency(m))
        for run, variant in runs
        for m in run.measurements
    ]
    latencies = sorted({key for _, latency in found for key in latency})
    columns = [*dict.fromkeys(key for row, _ in found for key in row), *latencies]
    return [{key: (row | latency).get(key) for key in columns} for row, latency in found]


def _result(
    run: Run, variant: dict[str, str], axes: list[str], stages: list[str]
) -> dict[str, Any]:
    final, records = run.final, {entry.stage: entry for entry in run.result.stages}
    row: dict[str, Any] = {
        "folder": run.folder.name,
        "result_sha256": run.digest,
        "config_hash": run.result.config_hash,
        "commit": run.result.provenance.commit,
        "started": run.started,
        "backbone": run.backbone,
        "dataset": run.dataset,
        "variant": " ".join(f"{key}={value}" for key, value in variant.items()),
        "order": run.order,
        "seed": run.seed,
    }
    for key in axes:
        scale = 100 if is_share(key) else 1
        name = option_at(key).axis or key  # a search's have no title
        row[f"target_{name}"] = scale * run.axes[key] if key in run.axes else None
    row |= {
        "sparsity": 100 * final.sparsity,
        "accuracy": final.accuracy,
        "dense_accuracy": final.dense_accuracy,
        "network_accuracy": final.network_accuracy,
        "agreement": final.agreement,
        "parameters": final.parameters,
        "macs": final.macs,
    }
    for key in ("balanced_accuracy", "dense_balanced_accuracy"):
        if (value := getattr(final, key)) is not None:  # older runs do not say
            row[key] = value
    row |= {f"{name}_bytes": final.sizes.get(name) for name in SIZES}
    for stage in stages:
        for key in ("seconds", "validation_accuracy"):
            row[f"{stage}_{key}"] = getattr(records.get(stage), key, None)
    return row


def _measured(m: Bench) -> dict[str, Any]:
    accuracy = {f"{runtime}_accuracy": value for runtime, value in m.accuracy_by_runtime.items()}
    return {"machine": m.provenance.machine, **accuracy}


def _latency(m: Bench) -> dict[str, Any]:
    keys = ("p50_ms", "p90_ms", "p99_ms", "speedup")
    return {f"{_name(row)}_{key}": getattr(row, key) for row in m.latency for key in keys}


def _name(row: Latency) -> str:
    return f"{row.runtime}_t{row.threads}_b{row.batch_size}_{row.model}"


def to_csv(table: Iterable[dict[str, Any]]) -> str:
    """The rows as CSV with a header; empty without rows."""
    table = list(table)
    if not table:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()
