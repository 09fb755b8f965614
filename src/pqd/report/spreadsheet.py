"""points.csv: one row per completed run and machine, for one's own analyses."""

import csv
import io
from collections.abc import Iterable
from typing import Any

from pqd.config import STAGES
from pqd.report.cases import distinct, variants
from pqd.report.load import Loaded, Measurement, Run
from pqd.report.summary import SIZES


def rows(loaded: Loaded) -> list[dict[str, Any]]:
    """One row per distinct completed run and machine; every row has every column.

    `variant` holds swept keys other than backbone, data set, order, sparsity and seed. Latency
    columns are `{runtime}_t{threads}_b{batch size}_{model}_{p50_ms|p90_ms|p99_ms|speedup}`
    (threads 0: all cores). Accuracies and sparsities are in %, sizes in bytes, times in s.
    `result_sha256` is the digest of the run's result.json.
    """
    found = [
        (_result(run, variant) | _measured(m), _latency(m))
        for run, variant in variants(distinct(loaded.runs)[0])
        for m in run.measurements
    ]
    latencies = sorted({key for _, latency in found for key in latency})
    columns = [*dict.fromkeys(key for row, _ in found for key in row), *latencies]
    return [{key: (row | latency).get(key) for key in columns} for row, latency in found]


def _result(run: Run, variant: dict[str, str]) -> dict[str, Any]:
    final, sizes = run.final, run.final.get("sizes") or {}
    records = {entry["stage"]: entry for entry in run.record}
    row: dict[str, Any] = {
        "folder": run.folder.name,
        "result_sha256": run.digest,
        "config_hash": run.config_hash,
        "commit": run.provenance.get("commit"),
        "started": run.started,
        "backbone": run.backbone,
        "dataset": run.dataset,
        "variant": " ".join(f"{key}={value}" for key, value in variant.items()),
        "order": run.order,
        "seed": run.seed,
        "target_sparsity": None if run.sparsity is None else 100 * run.sparsity,
        "sparsity": 100 * final["sparsity"],
        "accuracy": final["accuracy"],
        "dense_accuracy": final["dense_accuracy"],
        "network_accuracy": final.get("network_accuracy"),
        "agreement": final.get("agreement"),
        "parameters": final.get("parameters"),
        "macs": final.get("macs"),
    }
    row |= {f"{name}_bytes": sizes.get(name) for name in SIZES}
    for stage in ("baseline", *STAGES):
        for key in ("seconds", "validation_accuracy"):
            row[f"{stage}_{key}"] = records.get(stage, {}).get(key)
    return row


def _measured(m: Measurement) -> dict[str, Any]:
    accuracy = {f"{runtime}_accuracy": value for runtime, value in m.accuracy.items()}
    return {"machine": m.machine, **accuracy}


def _latency(m: Measurement) -> dict[str, Any]:
    keys = ("p50_ms", "p90_ms", "p99_ms", "speedup")
    return {f"{_name(row)}_{key}": row.get(key) for row in m.latency for key in keys}


def _name(timing: dict[str, Any]) -> str:
    where = f"{timing['runtime']}_t{timing['threads']}_b{timing['batch_size']}"
    return f"{where}_{timing['model']}"


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
