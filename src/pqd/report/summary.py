"""Turns cases of runs into the numbers that tables and figures show."""

import math
from collections import defaultdict
from dataclasses import dataclass

from pqd.report.cases import Case
from pqd.report.load import Run
from pqd.report.statistics import Estimate, estimate, mean_by, sure_estimate
from pqd.result import DENSE, FP32, INT8, PRUNED, Bench, Latency

Axes = tuple[tuple[str, float], ...]  # settings that are axes, by dotted key
Key = tuple[str, Axes, int]  # order, axes, trial: what is one point of a frontier
Shape = tuple[object, ...]
Measured = tuple[Latency, float | None, tuple[str, ...]]  # accuracy in %, and `Run.target`


@dataclass(frozen=True, order=True)
class Condition:
    """Where latency was measured."""

    machine: str
    threads: int
    batch_size: int
    runtime: str

    @classmethod
    def of(cls, measurement: Bench, row: Latency) -> "Condition":
        """That of a row of a measurement."""
        return cls(measurement.provenance.machine, row.threads, row.batch_size, row.runtime)


@dataclass(frozen=True)
class Timing:
    """Latency of one model of an order in one condition, over its runs."""

    condition: Condition
    model: str  # dense, pruned, int8 or fp32
    p50: Estimate  # ms
    p90: Estimate | None  # ms
    p99: Estimate | None  # ms
    speedup: Estimate | None  # against the dense FP32 model in the same runtime
    noisy: int  # runs whose measurement was too noisy
    slower: int  # runs where it was slower than the dense model
    accuracy: Estimate | None  # % of the test split in this runtime
    shape: Shape | None  # equal for equal MACs, graphs and exports; None where not recorded


@dataclass(frozen=True)
class Row:
    """One order (or the dense baseline) in one case."""

    order: str
    stages: list[str]
    axes: Axes  # of its case, as far as they are settings of its stages
    accuracy: Estimate  # %
    change: Estimate | None  # points against the dense baseline of the same seed
    sparsity: Estimate  # %
    sizes: dict[str, Estimate]  # bytes
    timings: list[Timing]
    balanced: Estimate | None = None  # %, of the classes weighted alike, where that differs
    trial: int = 0  # of a search, from 1

    @property
    def key(self) -> Key:
        """What it is a point of on a frontier; the dense network is the same in all trials."""
        return self.order, self.axes, 0 if self.order == DENSE else self.trial

    @property
    def size(self) -> Estimate | None:
        """Bytes of the package; of the dense network those of its FP32 ONNX file."""
        return self.sizes.get("fp32_onnx" if self.order == DENSE else "package")

    def at(self, condition: Condition) -> dict[str, Timing]:
        """The timings in one condition, by model."""
        return {t.model: t for t in self.timings if t.condition == condition}

    def timing(self, condition: Condition) -> Timing | None:
        """The timing of the deployed model."""
        here = self.at(condition)
        return here.get(INT8) or here.get(FP32) or here.get(DENSE)

    def float_timing(self, condition: Condition) -> Timing | None:
        """The timing in FP32: as deployed, or pruned where the order prunes, or dense."""
        here = self.at(condition)
        return here.get(FP32) or here.get(PRUNED) or here.get(DENSE)


def conditions(runs: list[Run]) -> list[Condition]:
    """Every condition under which something was measured; of runtimes the fastest comes first."""
    found: dict[Condition, list[float]] = defaultdict(list)  # ms of the models to deploy
    for run in runs:
        for measurement in run.measurements:
            for row in measurement.latency:
                times = found[Condition.of(measurement, row)]
                times += [row.p50_ms] if row.deployed else []

    def place(where: Condition) -> tuple[object, ...]:
        times = found[where]
        speed = sum(times) / len(times) if times else math.inf
        return where.machine, where.threads, where.batch_size, speed, where.runtime

    return sorted(found, key=place)


def rows(case: Case) -> list[Row]:
    """The dense baseline, then every order."""
    return [_dense(case.runs), *(_row(order, case.of(order)) for order in case.orders())]


def _row(order: str, runs: list[Run]) -> Row:
    sizes: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        for name, value in run.final.sizes.items():
            sizes[name].append(value)
    return Row(
        order=order,
        stages=runs[0].stages,
        axes=tuple(runs[0].axes.items()),
        accuracy=sure_estimate(list(mean_by((r.seed, r.accuracy) for r in runs).values())),
        change=estimate(
            list(mean_by((r.seed, r.accuracy - r.final.dense_accuracy) for r in runs).values())
        ),
        sparsity=sure_estimate([100 * run.final.sparsity for run in runs]),
        sizes={name: sure_estimate(values) for name, values in sizes.items()},
        timings=_timings(runs, dense=False),
        balanced=_balanced(runs, "balanced_accuracy"),
    )


def _dense(runs: list[Run]) -> Row:
    values = _of_baselines(runs, "dense_accuracy")
    sizes = _row(DENSE, runs).sizes
    return Row(
        order=DENSE,
        stages=[],
        axes=(),
        accuracy=sure_estimate(values),
        change=None,
        sparsity=sure_estimate([0.0] * len(values)),
        sizes={name: sizes[name] for name in ("fp32_checkpoint", "fp32_onnx") if name in sizes},
        timings=_timings(runs, dense=True),
        balanced=_balanced(runs, "dense_balanced_accuracy"),
    )


def _balanced(runs: list[Run], key: str) -> Estimate | None:
    uneven = any(run.final.uneven for run in runs)
    return estimate(_of_baselines(runs, key)) if uneven else None


def _of_baselines(runs: list[Run], key: str) -> list[float]:
    """A figure that runs of one repetition share, averaged by seed."""
    found = {run.repetition: (run.seed, getattr(run.final, key)) for run in runs}
    return list(
        mean_by((seed, value) for seed, value in found.values() if value is not None).values()
    )


def _timings(runs: list[Run], *, dense: bool) -> list[Timing]:
    found: dict[tuple[Condition, str], list[Measured]] = defaultdict(list)
    for run in runs:
        for m in run.measurements:
            for row in m.latency:
                if (row.model == DENSE) == dense:
                    accuracy = m.accuracy_by_runtime.get(row.runtime) if row.deployed else None
                    found[Condition.of(m, row), row.model].append((row, accuracy, run.target))
    return [_timing(*key, measured) for key, measured in sorted(found.items())]


def _timing(condition: Condition, model: str, measured: list[Measured]) -> Timing:
    def over(key: str) -> Estimate | None:
        values = (getattr(row, key) for row, *_ in measured)
        return estimate([value for value in values if value is not None])

    # Another target places the quantizers of an INT8 file elsewhere.
    shapes = {
        (model, row.macs, row.float_compute_nodes, *(target if model == INT8 else ()))
        if row.macs
        else None
        for row, _, target in measured
    }
    return Timing(
        condition=condition,
        model=model,
        p50=sure_estimate([row.p50_ms for row, *_ in measured]),
        p90=over("p90_ms"),
        p99=over("p99_ms"),
        speedup=None if model == DENSE else over("speedup"),
        noisy=sum(row.noisy for row, *_ in measured),
        slower=sum(bool(row.slower_than_dense) for row, *_ in measured),
        accuracy=estimate([a for _, a, _ in measured if a is not None]),
        shape=shapes.pop() if len(shapes) == 1 else None,
    )
