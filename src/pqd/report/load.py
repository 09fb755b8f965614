"""Reads result.json and bench-*.json files into `Run`s. What can't be read is named, not raised."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pqd.errors import UserError

SCHEMA = 1
STATUSES = ("completed", "failed", "interrupted", "running")


@dataclass(frozen=True)
class Measurement:
    """What one machine measured of one run."""

    machine: str
    provenance: dict[str, Any]
    latency: list[dict[str, Any]]  # rows as in result.json
    accuracy: dict[str, float]  # by runtime, % of the test split


@dataclass(frozen=True)
class Run:
    """A completed run."""

    folder: Path
    digest: str  # SHA-256 of its result.json
    config: dict[str, str]  # dotted key -> value
    order: str  # initials of the stages, e.g. pqd; none without any
    stages: tuple[str, ...]  # of the order, without the baseline
    backbone: str
    dataset: str
    sparsity: float | None  # target, share of zeros; None where the order doesn't prune
    seed: int
    config_hash: str
    record: list[dict[str, Any]]  # one entry per stage, the baseline first
    final: dict[str, Any]
    provenance: dict[str, Any]
    measurements: list[Measurement]  # one per machine, see `by_machine`

    @property
    def accuracy(self) -> float:
        """Top-1 of the exported model, % of the test split."""
        return float(self.final["accuracy"])

    @property
    def started(self) -> str:
        """When the run started, ISO 8601."""
        return str(self.provenance.get("started", ""))


@dataclass(frozen=True)
class Loaded:
    """Everything found below the folders."""

    runs: list[Run]
    unfinished: list[dict[str, str]]  # runs that did not complete: name, status, reason
    problems: list[str]  # files that could not be read, one line each


def load(folders: Iterable[Path]) -> Loaded:
    """Reads every result.json below the folders, with the bench-*.json files beside it.

    Raises:
        UserError: a folder does not exist, or there is no result.json at all.
    """
    folders = list(folders)
    loaded = Loaded([], [], [])
    for path in _results(folders):
        try:
            content = path.read_bytes()
            data = _parse(content)
            if data.get("status") not in STATUSES:
                raise ValueError(f"status is {data.get('status')!r}, not one of {STATUSES}")
            if data["status"] == "completed":
                digest = hashlib.sha256(content).hexdigest()
                loaded.runs.append(_run(path.parent, digest, data, loaded.problems))
            else:
                loaded.unfinished.append(_unfinished(path.parent, data))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            loaded.problems.append(_problem(path, error))
    if not (loaded.runs or loaded.unfinished or loaded.problems):
        names = ", ".join(str(folder) for folder in folders)
        raise UserError(f"no result.json below {names}; give the folder of a run or of a sweep")
    return loaded


def _results(folders: list[Path]) -> Iterator[Path]:
    seen = set()
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; give the folder of a run or of a sweep")
        # Unlike rglob, os.walk passes over a folder that vanishes meanwhile, as a job's does.
        walk = os.walk(folder)
        for path in sorted(
            Path(at, "result.json") for at, _, names in walk if "result.json" in names
        ):
            if (resolved := path.resolve()) not in seen:
                seen.add(resolved)
                yield path


def _problem(path: Path, error: Exception) -> str:
    what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return f"{path.parent.name}/{path.name}: {what}".replace("\n", " ")


def _parse(content: bytes) -> dict[str, Any]:
    data = json.loads(content)
    if not isinstance(data, dict):
        raise ValueError("not a JSON object")
    if data.get("schema") != SCHEMA:
        raise ValueError(f"schema is {data.get('schema')!r}; this version reads {SCHEMA}")
    return data


def _unfinished(folder: Path, data: dict[str, Any]) -> dict[str, str]:
    killed = "not finished yet, or killed" if data["status"] == "running" else "no reason recorded"
    return {
        "name": str(data.get("name") or folder.name),
        "status": data["status"],
        "reason": str(data.get("reason") or killed),
    }


def _run(folder: Path, digest: str, data: dict[str, Any], problems: list[str]) -> Run:
    config, final = data["config"], data["final"]
    stages = tuple(config["order"]["stages"])
    if len(data["stages"]) != len(stages) + 1:
        raise ValueError(f"{len(data['stages'])} stages recorded, a baseline and {stages} expected")
    for key in ("accuracy", "dense_accuracy", "sparsity"):
        _number(final, key)
    sizes = final.get("sizes") or {}
    for name in sizes:
        _optional(sizes, name)
    for record in data["stages"]:
        _require(record, "stage")
        _number(record, "seconds")
        _optional(record, "validation_accuracy")
    # The cache may have handed the figures to this run from another machine and time.
    measured = [_measurement(final.get("measured") or data["provenance"], final)]
    for path in sorted(folder.glob("bench-*.json")):
        try:
            bench = _parse(path.read_bytes())
            measured.append(_measurement(bench["provenance"], bench))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problems.append(_problem(path, error))
    return Run(
        folder=folder,
        digest=digest,
        config=dict(_flat(config)),
        order="".join(stage[0] for stage in stages) or "none",  # order.name may have kept a preset
        stages=stages,
        backbone=str(config["backbone"]["name"]),
        dataset=str(config["dataset"]["name"]),
        sparsity=_number(config["prune"], "sparsity") if "prune" in stages else None,
        seed=int(config["seed"]),
        config_hash=str(data.get("config_hash", "")),
        record=data["stages"],
        final=final,
        provenance=data["provenance"],
        measurements=by_machine(measured),
    )


def _number(data: dict[str, Any], key: str) -> float:
    value = data[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key} is {value!r}, a finite number was expected")
    return float(value)


def _require(data: dict[str, Any], *keys: str) -> None:
    for key in keys:
        if key not in data:
            raise KeyError(key)


def _optional(data: dict[str, Any], key: str) -> None:
    if data.get(key) is not None:
        _number(data, key)


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def _measurement(provenance: dict[str, Any], data: dict[str, Any]) -> Measurement:
    rows = data.get("latency") or []
    for row in rows:
        _number(row, "p50_ms")
        _require(row, "runtime", "model")
        int(row["threads"])
        int(row["batch_size"])
    machine = f"{provenance.get('cpu', 'unknown CPU')}, {provenance.get('cores', '?')} cores"
    return Measurement(machine, provenance, rows, data.get("accuracy_by_runtime") or {})


def by_machine(measurements: Iterable[Measurement]) -> list[Measurement]:
    """One measurement per machine: where one measured the same thing twice, the later counts."""
    joined: dict[str, Measurement] = {}
    # Only `pqd bench` ever left out the date, and it measures what is finished.
    for new in sorted(measurements, key=lambda m: str(m.provenance.get("started", "9999"))):
        old = joined.get(new.machine)
        rows = {_same(row): row for m in (old, new) if m for row in m.latency}
        accuracy = (old.accuracy if old else {}) | new.accuracy
        joined[new.machine] = Measurement(
            new.machine, new.provenance, list(rows.values()), accuracy
        )
    return list(joined.values())


def _same(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["runtime"], row["threads"], row["batch_size"], row["model"]
