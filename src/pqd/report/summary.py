"""Turns cases of runs into the numbers that tables and figures show."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from pqd.report.cases import Case, sort_orders
from pqd.report.load import Run
from pqd.report.statistics import Estimate, dominated, estimate, hypervolume

DENSE = "dense"
DEPLOYED = ("int8", "fp32")  # the last model of an order: INT8, or FP32 where nothing quantizes
MARGIN = 10.0  # points below the dense accuracy at which the hypervolume's reference point lies
SIZES = ("fp32_checkpoint", "fp32_onnx", "int8_onnx", "int8_onnx_zstd", "package", "floor")


@dataclass(frozen=True, order=True)
class Condition:
    """Where latency was measured."""

    machine: str
    threads: int  # 0 is all cores
    batch_size: int
    runtime: str


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


@dataclass(frozen=True)
class Row:
    """One order (or the dense baseline) in one case."""

    order: str
    stages: tuple[str, ...]
    accuracy: Estimate  # %
    change: Estimate | None  # points against the dense baseline of the same seed
    sparsity: Estimate  # %
    sizes: dict[str, Estimate]  # bytes
    timings: list[Timing]

    def timing(self, condition: Condition) -> Timing | None:
        """The timing of the deployed model."""
        here = (t for t in self.timings if t.condition == condition)
        return next((t for t in here if t.model in (*DEPLOYED, DENSE)), None)


@dataclass(frozen=True)
class Point:
    """One order at one sparsity on a frontier."""

    order: str
    sparsity: float | None
    cost: float  # bytes or ms
    accuracy: Estimate
    dominated: bool


@dataclass(frozen=True)
class Frontier:
    """Accuracy against one cost, over all sparsities of a family."""

    condition: Condition | None  # None for size
    points: list[Point]
    reference: tuple[float, float]  # of the hypervolume: cost, accuracy in %
    volumes: dict[str, Estimate]  # % of the rectangle, by order, over seeds

    def point(self, row: Row, sparsity: float | None) -> Point | None:
        """The point of a row of the case with this sparsity."""
        pruned = sparsity if "prune" in row.stages else None
        here = (p for p in self.points if (p.order, p.sparsity) == (row.order, pruned))
        return next(here, None)


def conditions(cases: list[Case]) -> list[Condition]:
    """Every condition under which something was measured."""
    found = {
        _condition(measurement.machine, row)
        for case in cases
        for run in case.runs
        for measurement in run.measurements
        for row in measurement.latency
    }
    return sorted(found)


def rows(case: Case) -> list[Row]:
    """The dense baseline, then every order."""
    return [_dense(case.runs), *(_row(order, case.of(order)) for order in case.orders())]


def _row(order: str, runs: list[Run]) -> Row:
    sizes: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        for name, value in (run.final.get("sizes") or {}).items():
            if value is not None:
                sizes[name].append(float(value))
    return Row(
        order=order,
        stages=runs[0].stages,
        accuracy=_sure([run.accuracy for run in runs]),
        change=estimate([run.accuracy - run.final["dense_accuracy"] for run in runs]),
        sparsity=_sure([100 * run.final["sparsity"] for run in runs]),
        sizes={name: _sure(values) for name, values in sizes.items()},
        timings=_timings(runs, dense=False),
    )


def _dense(runs: list[Run]) -> Row:
    by_seed = {run.seed: float(run.final["dense_accuracy"]) for run in runs}
    sizes = _row(DENSE, runs).sizes
    return Row(
        order=DENSE,
        stages=(),
        accuracy=_sure(list(by_seed.values())),
        change=None,
        sparsity=_sure([0.0] * len(by_seed)),
        sizes={name: sizes[name] for name in ("fp32_checkpoint", "fp32_onnx") if name in sizes},
        timings=_timings(runs, dense=True),
    )


def _timings(runs: list[Run], *, dense: bool) -> list[Timing]:
    found: dict[tuple[Condition, str], list[tuple[dict[str, Any], float | None]]] = {}
    for run in runs:
        for measurement in run.measurements:
            for row in measurement.latency:
                if (row["model"] == DENSE) == dense:
                    condition = _condition(measurement.machine, row)
                    final = row["model"] in DEPLOYED
                    accuracy = measurement.accuracy.get(condition.runtime) if final else None
                    key = condition, str(row["model"])
                    found.setdefault(key, []).append((row, accuracy))
    return [_timing(*key, measured) for key, measured in sorted(found.items())]


def _timing(
    condition: Condition, model: str, measured: list[tuple[dict[str, Any], float | None]]
) -> Timing:
    def over(key: str) -> Estimate | None:
        return estimate([float(row[key]) for row, _ in measured if row.get(key) is not None])

    return Timing(
        condition=condition,
        model=model,
        p50=_sure([float(row["p50_ms"]) for row, _ in measured]),
        p90=over("p90_ms"),
        p99=over("p99_ms"),
        speedup=None if model == DENSE else over("speedup"),
        noisy=sum(bool(row.get("noisy")) for row, _ in measured),
        slower=sum(bool(row.get("slower_than_dense")) for row, _ in measured),
        accuracy=estimate([a for _, a in measured if a is not None]),
    )


def _condition(machine: str, row: dict[str, Any]) -> Condition:
    return Condition(machine, int(row["threads"]), int(row["batch_size"]), str(row["runtime"]))


def frontiers(
    family: list[Case], tables: list[list[Row]], where: list[Condition]
) -> list[Frontier]:
    """Accuracy against package size and against latency in each condition where it was measured.

    Args:
        family: the cases that differ in sparsity alone.
        tables: the `rows` of each.
        where: the conditions.
    """
    found = [_frontier(family, tables, condition) for condition in (None, *where)]
    return [frontier for frontier in found if frontier]


def _frontier(
    family: list[Case], tables: list[list[Row]], condition: Condition | None
) -> Frontier | None:
    shown: dict[tuple[str, float | None], tuple[float, Estimate]] = {}
    for case, table in zip(family, tables, strict=True):
        for row in table:
            pruned = case.sparsity if "prune" in row.stages else None
            if cost := _cost(row, condition):
                shown[row.order, pruned] = cost, row.accuracy
    if not shown:
        return None
    costs = [cost for cost, _ in shown.values()]
    flags = dominated(costs, [accuracy.mean for _, accuracy in shown.values()])
    points = [Point(*k, *v, f) for (k, v), f in zip(shown.items(), flags, strict=True)]
    base = shown.get((DENSE, None), (max(costs), tables[0][0].accuracy))
    reference = base[0], base[1].mean - MARGIN
    volumes = {
        order: volume
        for order in sort_orders({r.order: len(r.stages) for t in tables for r in t[1:]})
        if (volume := estimate(_volumes(family, order, condition, reference)))
    }
    return Frontier(condition, points, reference, volumes)


def _cost(row: Row, condition: Condition | None) -> float | None:
    if condition is not None:
        timing = row.timing(condition)
        return timing.p50.mean if timing else None
    size = row.sizes.get("fp32_onnx" if row.order == DENSE else "package")
    return size.mean if size else None


def _volumes(
    family: list[Case], order: str, condition: Condition | None, reference: tuple[float, float]
) -> list[float]:
    """One hypervolume per seed, of seeds for which every sparsity of the order was measured."""
    by_seed: dict[int, dict[float | None, tuple[float, float]]] = defaultdict(dict)
    for case in family:
        for run in case.of(order):
            if cost := _run_cost(run, condition):
                by_seed[run.seed][run.sparsity] = cost, run.accuracy
    most = max((len(points) for points in by_seed.values()), default=0)
    return [
        hypervolume([c for c, _ in points.values()], [a for _, a in points.values()], *reference)
        for points in by_seed.values()
        if len(points) == most
    ]


def _run_cost(run: Run, condition: Condition | None) -> float | None:
    if condition is None:
        return (run.final.get("sizes") or {}).get("package")
    for measurement in run.measurements:
        for row in measurement.latency:
            if row["model"] in DEPLOYED and _condition(measurement.machine, row) == condition:
                return float(row["p50_ms"])
    return None


def _sure(values: list[float]) -> Estimate:
    result = estimate(values)
    assert result is not None
    return result
