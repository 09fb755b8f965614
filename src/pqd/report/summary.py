"""Turns cases of runs into the numbers that tables and figures show."""

from collections import defaultdict
from dataclasses import dataclass

from pqd.report.cases import Case, sort_orders
from pqd.report.load import Run
from pqd.report.statistics import Estimate, dominated, estimate, hypervolume
from pqd.result import DENSE, FP32, INT8, PRUNED, Bench, Latency

APART = 1.5  # times the cost of the dearest order
MARGIN = 10.0  # points below the dense accuracy at which the hypervolume's reference point lies
Axes = tuple[tuple[str, float], ...]  # settings that are axes, by dotted key
Shape = tuple[object, ...]


@dataclass(frozen=True, order=True)
class Condition:
    """Where latency was measured."""

    machine: str
    threads: int  # 0 is all cores
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
    shape: Shape | None  # equal for equal MACs and graphs; None where not recorded


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


@dataclass(frozen=True)
class Point:
    """One order with one setting of the axes on a frontier."""

    order: str
    axes: Axes
    cost: float  # bytes or ms
    accuracy: Estimate
    dominated: bool


@dataclass(frozen=True)
class Frontier:
    """Accuracy against one cost, over all cases of a family."""

    condition: Condition | None  # None for size
    points: list[Point]
    reference: tuple[float, float]  # of the hypervolume: cost, accuracy in %
    volumes: dict[str, Estimate]  # % of the rectangle, by order, over seeds
    shared: list[list[str]]  # orders of one shape, to which `points` give one latency

    @property
    def apart(self) -> Point | None:
        """The dense network where it costs so much more than the orders that it hides them."""
        dense = next((p for p in self.points if p.order == DENSE), None)
        others = [p.cost for p in self.points if p.order != DENSE]
        return dense if dense and others and dense.cost > APART * max(others) else None

    @property
    def unit(self) -> tuple[str, float]:
        """The unit of costs in figures, and what it is in bytes or ms."""
        if self.condition is not None:
            return "ms", 1.0
        largest = max(p.cost for p in self.points if p is not self.apart)
        return ("MiB", 2.0**20) if largest >= 2**20 else ("KiB", 2.0**10)

    @property
    def best(self) -> list[Point]:
        """The points on the frontier but for the one apart, the cheapest first."""
        best = [p for p in self.points if not p.dominated and p is not self.apart]
        return sorted(best, key=lambda p: p.cost)

    def point(self, row: Row) -> Point | None:
        """The point of a row."""
        return next((p for p in self.points if (p.order, p.axes) == (row.order, row.axes)), None)


def conditions(cases: list[Case]) -> list[Condition]:
    """Every condition under which something was measured."""
    found = {
        Condition.of(measurement, row)
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
        for name, value in run.final.sizes.items():
            sizes[name].append(value)
    return Row(
        order=order,
        stages=runs[0].stages,
        axes=tuple(runs[0].axes.items()),
        accuracy=_sure([run.accuracy for run in runs]),
        change=estimate([run.accuracy - run.final.dense_accuracy for run in runs]),
        sparsity=_sure([100 * run.final.sparsity for run in runs]),
        sizes={name: _sure(values) for name, values in sizes.items()},
        timings=_timings(runs, dense=False),
    )


def _dense(runs: list[Run]) -> Row:
    # Runs of one repetition share their baseline.
    values = list({run.repetition: run.final.dense_accuracy for run in runs}.values())
    sizes = _row(DENSE, runs).sizes
    return Row(
        order=DENSE,
        stages=[],
        axes=(),
        accuracy=_sure(values),
        change=None,
        sparsity=_sure([0.0] * len(values)),
        sizes={name: sizes[name] for name in ("fp32_checkpoint", "fp32_onnx") if name in sizes},
        timings=_timings(runs, dense=True),
    )


def _timings(runs: list[Run], *, dense: bool) -> list[Timing]:
    found: dict[tuple[Condition, str], list[tuple[Latency, float | None]]] = defaultdict(list)
    for run in runs:
        for m in run.measurements:
            for row in m.latency:
                if (row.model == DENSE) == dense:
                    accuracy = m.accuracy_by_runtime.get(row.runtime) if row.deployed else None
                    found[Condition.of(m, row), row.model].append((row, accuracy))
    return [_timing(*key, measured) for key, measured in sorted(found.items())]


def _timing(
    condition: Condition, model: str, measured: list[tuple[Latency, float | None]]
) -> Timing:
    def over(key: str) -> Estimate | None:
        values = (getattr(row, key) for row, _ in measured)
        return estimate([value for value in values if value is not None])

    shapes = {
        (model, row.macs, row.float_compute_nodes) if row.macs else None for row, _ in measured
    }
    return Timing(
        condition=condition,
        model=model,
        p50=_sure([row.p50_ms for row, _ in measured]),
        p90=over("p90_ms"),
        p99=over("p99_ms"),
        speedup=None if model == DENSE else over("speedup"),
        noisy=sum(row.noisy for row, _ in measured),
        slower=sum(bool(row.slower_than_dense) for row, _ in measured),
        accuracy=estimate([a for _, a in measured if a is not None]),
        shape=shapes.pop() if len(shapes) == 1 else None,
    )


def frontiers(
    family: list[Case], tables: list[list[Row]], where: list[Condition]
) -> list[Frontier]:
    """Accuracy against package size and against latency in each condition where it was measured.

    Args:
        family: the cases that differ in their axes alone.
        tables: the `rows` of each.
        where: the conditions.
    """
    found = [_frontier(family, tables, condition) for condition in (None, *where)]
    return [frontier for frontier in found if frontier]


def _frontier(
    family: list[Case], tables: list[list[Row]], condition: Condition | None
) -> Frontier | None:
    table = [row for rows in tables for row in rows]
    shapes = _shapes(table, condition) if condition else {}
    shown: dict[tuple[str, Axes], tuple[float, Estimate]] = {}
    for row in table:
        timing = row.timing(condition) if condition else None
        if cost := row.size if condition is None else timing and timing.p50:
            _, mean = shapes.get((row.order, row.axes), ((), cost.mean))
            shown[row.order, row.axes] = mean, row.accuracy
    if not shown:
        return None
    costs = [cost for cost, _ in shown.values()]
    flags = dominated(costs, [accuracy.mean for _, accuracy in shown.values()])
    points = [Point(*k, *v, f) for (k, v), f in zip(shown.items(), flags, strict=True)]
    base = shown.get((DENSE, ()), (max(costs), tables[0][0].accuracy))
    reference = base[0], base[1].mean - MARGIN
    volumes = {
        order: volume
        for order in sort_orders({r.order: len(r.stages) for t in tables for r in t[1:]})
        if (volume := estimate(_volumes(family, order, condition, reference, shapes)))
    }
    alike: dict[Shape, dict[str, None]] = defaultdict(dict)
    for (order, _), (shape, _) in shapes.items():
        alike[shape][order] = None
    shared = [list(orders) for orders in alike.values() if len(orders) > 1]
    return Frontier(condition, points, reference, volumes, shared)


def _shapes(table: list[Row], condition: Condition) -> dict[tuple[str, Axes], tuple[Shape, float]]:
    """The shape that orders deploy, and its mean latency in ms over all of them.

    Networks of as many MACs in the same graph do the same work: one that is faster than another
    was measured at a better moment.
    """
    found: dict[Shape, list[tuple[str, Axes]]] = defaultdict(list)
    values: dict[Shape, list[float]] = defaultdict(list)
    for row in table:
        timing = row.timing(condition)
        if timing and timing.shape and (row.order, row.axes) not in found[timing.shape]:
            found[timing.shape].append((row.order, row.axes))
            values[timing.shape] += [timing.p50.mean] * timing.p50.n
    return {
        key: (shape, _sure(values[shape]).mean) for shape, keys in found.items() for key in keys
    }


def _volumes(
    family: list[Case],
    order: str,
    condition: Condition | None,
    reference: tuple[float, float],
    shapes: dict[tuple[str, Axes], tuple[Shape, float]],
) -> list[float]:
    """One hypervolume per repetition, of those for which every point of the order was measured."""
    found: dict[tuple[str, ...], dict[Axes, tuple[float, float]]] = defaultdict(dict)
    for case in family:
        for run in case.of(order):
            axes = tuple(run.axes.items())
            if cost := _run_cost(run, condition):
                _, cost = shapes.get((order, axes), ((), cost))
                found[run.repetition][axes] = cost, run.accuracy
    most = max((len(points) for points in found.values()), default=0)
    return [
        hypervolume([c for c, _ in points.values()], [a for _, a in points.values()], *reference)
        for points in found.values()
        if len(points) == most
    ]


def _run_cost(run: Run, condition: Condition | None) -> float | None:
    if condition is None:
        return run.final.sizes.get("package")
    rows = ((m, row) for m in run.measurements for row in m.latency if row.deployed)
    return next((row.p50_ms for m, row in rows if Condition.of(m, row) == condition), None)


def _sure(values: list[float]) -> Estimate:
    result = estimate(values)
    assert result is not None
    return result
