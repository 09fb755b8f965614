"""Reads result.json and bench-*.json files into `Run`s. What can't be read is named, not raised."""

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pqd.errors import UserError, one_line
from pqd.identity import counts, option_at
from pqd.options import Decides, Option
from pqd.result import FILE, Bench, Final, Latency, Result, read, read_as
from pqd.schema import defaults
from pqd.stages import spell

OWN = ("order.", "backbone.name", "dataset.name")  # settings that `Run` and `Case` have by name
KILLED, UNKNOWN = "not finished yet, or killed", "no reason recorded"


@dataclass(frozen=True)
class Run:
    """A completed run: its result, and what its settings decide."""

    folder: Path
    digest: str  # SHA-256 of its result.json
    result: Result
    final: Final  # of the result
    order: str  # letters of the stages that it ran, e.g. pqd; none without any
    backbone: str
    dataset: str
    seed: int
    axes: dict[str, float]  # what reports show as an axis, e.g. prune.sparsity, by dotted key
    outcome: dict[str, str]  # all else that decides the outcome
    target: tuple[str, ...]  # what decides the graph of the INT8 file
    repetition: tuple[str, ...]  # settings that tell the repetitions of one experiment apart
    measurements: list[Bench]  # one per machine, see `by_machine`

    @property
    def stages(self) -> list[str]:
        """Names of the stages after the baseline."""
        return self.result.order

    @property
    def accuracy(self) -> float:
        """Top-1 of the exported model, % of the test split."""
        return self.final.accuracy

    @property
    def started(self) -> str:
        """When the run started, ISO 8601."""
        return self.result.provenance.started


@dataclass(frozen=True)
class Loaded:
    """Everything found below the folders."""

    runs: list[Run]
    unfinished: list[Result]  # of runs that did not complete, all with a reason
    problems: list[str]  # files that could not be read, one line each


def load(folders: Iterable[Path]) -> Loaded:
    """Reads every result.json below the folders, with the bench-*.json files beside it.

    Raises:
        UserError: a folder does not exist, or there is no result.json at all.
    """
    folders = list(folders)
    loaded, options = Loaded([], [], []), cache(option_at)
    for path in _results(folders):
        try:
            result = read(path.parent)
            if result.status == "completed":
                loaded.runs.append(_run(path.parent, result, options, loaded.problems))
            else:
                reason = KILLED if result.status == "running" else UNKNOWN
                loaded.unfinished.append(replace(result, reason=result.reason or reason))
        except (OSError, ValueError) as error:
            loaded.problems.append(_problem(path, error))
    if not (loaded.runs or loaded.unfinished or loaded.problems):
        names = ", ".join(str(folder) for folder in folders)
        raise UserError(f"no {FILE} below {names}; give the folder of a run or of a sweep")
    return loaded


def _results(folders: list[Path]) -> Iterator[Path]:
    seen = set()
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; give the folder of a run or of a sweep")
        # Unlike rglob, os.walk passes over a folder that vanishes meanwhile, as a job's does.
        for path in sorted(Path(at, FILE) for at, _, names in os.walk(folder) if FILE in names):
            if (resolved := path.resolve()) not in seen:
                seen.add(resolved)
                yield path


def _problem(path: Path, error: Exception) -> str:
    return f"{path.parent.name}/{path.name}: {one_line(error).replace(str(path), '').lstrip(': ')}"


def _run(
    folder: Path, result: Result, options: Callable[[str], Option], problems: list[str]
) -> Run:
    if result.final is None:
        raise ValueError("final is missing, though the run has completed")
    if len(result.stages) != len(result.order) + 1:
        raise ValueError(f"{len(result.stages)} stages recorded, a baseline and {result.order} run")
    recorded = dict(_flat(result.config))
    if missing := [k for k in ("seed", "backbone.name", "dataset.name") if k not in recorded]:
        raise ValueError(f"config.{missing[0]} is missing")
    settings = _defaults() | recorded  # what an older version had no setting for
    # A stage's settings decide nothing where the stage was not run.
    counted = {
        k: v for k, v in settings.items() if counts(k, result.order) and not k.startswith(OWN)
    }
    deciding = {k: v for k, v in counted.items() if options(k).decides is Decides.OUTCOME}
    final = result.final
    # The cache may have handed the figures to this run from another machine and time.
    where = final.measured or result.provenance
    measured = [Bench(where, final.latency, final.accuracy_by_runtime)]
    for path in sorted(folder.glob("bench-*.json")):
        try:
            measured.append(read_as(Bench, path))
        except (OSError, ValueError) as error:
            problems.append(_problem(path, error))
    searched = [key for key in searched_of(result) if is_number(deciding.get(key))]
    shown = {k for k in deciding if options(k).axis} | set(searched)
    axes = {k: float(v) for k, v in deciding.items() if k in shown and v != str(None)}
    return Run(
        folder=folder,
        digest=hashlib.sha256((folder / FILE).read_bytes()).hexdigest(),
        result=result,
        final=final,
        order=spell(result.order),
        backbone=settings["backbone.name"],
        dataset=settings["dataset.name"],
        seed=int(settings["seed"]),
        axes=axes,
        outcome={k: v for k, v in deciding.items() if k not in axes} | _measured_in(result),
        target=tuple(v for k, v in settings.items() if k.startswith(("target.", "export."))),
        repetition=tuple(v for k, v in counted.items() if options(k).decides is Decides.REPEAT),
        measurements=by_machine(measured),
    )


def searched_of(result: Result) -> list[str]:
    """Returns what the search that a run is a trial of chose; nothing of any other run."""
    # The plus is that of a setting which the configuration lacks, in an override.
    return [key.lstrip("+") for key in result.config.get("searched", [])]


def default_of(key: str) -> str | None:
    """Returns the default of a setting, as `Run.outcome` spells values; None if there is none."""
    return _defaults().get(key)


@cache
def _defaults() -> dict[str, str]:
    return dict(_flat(OmegaConf.to_container(defaults())))  # type: ignore[arg-type]


def _measured_in(result: Result) -> dict[str, str]:
    """Returns where latency decided the shape of a network: it decides what is trained."""
    found = {}
    for entry in result.stages:
        if where := (entry.shape or {}).get("measured"):
            places = (where.get(key) for key in ("runtime", "threads", "batch_size"))
            found[f"{entry.stage}.measured_in"] = ", ".join(map(str, places))
    return found


def is_number(value: str | None) -> bool:
    """Tells whether the value of a setting is a finite number."""
    try:
        return value is not None and math.isfinite(float(value))
    except ValueError:
        return False


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value:
            yield f"{prefix}{key}", ",".join(map(str, value))
        else:
            yield f"{prefix}{key}", str(value)


def by_machine(measurements: Iterable[Bench]) -> list[Bench]:
    """One measurement per machine: where one measured the same thing twice, the later counts."""
    joined: dict[str, Bench] = {}
    # Only `pqd bench` ever left out the date, and it measures what is finished.
    for new in sorted(measurements, key=lambda m: m.provenance.started or "9999"):
        old = joined.get(new.provenance.machine, Bench(new.provenance, []))
        rows = {_same(row): row for row in (*old.latency, *new.latency)}
        accuracy = old.accuracy_by_runtime | new.accuracy_by_runtime
        joined[new.provenance.machine] = Bench(new.provenance, list(rows.values()), accuracy)
    return list(joined.values())


def _same(row: Latency) -> tuple[object, ...]:
    return row.runtime, row.threads, row.batch_size, row.model
