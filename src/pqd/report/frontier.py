"""Accuracy against one cost: which orders are on the frontier, and how much they dominate."""

from collections import Counter, defaultdict
from dataclasses import dataclass

from pqd.report.cases import FULL, Case, sort_orders
from pqd.report.load import Run
from pqd.report.statistics import Estimate, dominated, estimate, hypervolume, mean_by
from pqd.report.summary import Axes, Condition, Key, Row, Shape
from pqd.result import DENSE

APART = 1.5  # times the cost of the dearest full order
TOGETHER = 1.1  # times the cost of the cheapest of those that are drawn in one place
MARGIN = 10.0  # points below the dense accuracy at which the hypervolume's reference point lies


@dataclass(frozen=True)
class Point:
    """One order with one setting of the axes on a frontier."""

    order: str
    axes: Axes
    cost: float  # bytes or ms
    accuracy: Estimate
    dominated: bool
    trial: int = 0  # of a search, from 1

    @property
    def key(self) -> Key:
        """As that of its row."""
        return self.order, self.axes, self.trial


@dataclass(frozen=True)
class Frontier:
    """Accuracy against one cost, over all cases of a family."""

    condition: Condition | None  # None for size
    points: list[Point]
    reference: tuple[float, float]  # of the hypervolume: cost, accuracy in %
    volumes: dict[str, Estimate]  # % of the rectangle, by order, over seeds
    shared: list[list[str]]  # orders of one shape, to which `points` give one latency
    full: frozenset[str]  # the orders of all stages
    joined: bool = True  # by lines: of an order, and of what is not dominated

    @property
    def apart(self) -> list[list[Point]]:
        """The points that cost so much more than the full orders that they would squeeze them.

        They are drawn at the margin: those of about the same cost together, the cheapest first.
        """
        ours = [p.cost for p in self.points if p.order in self.full]
        ours = ours or [p.cost for p in self.points if p.order != DENSE]
        found: list[list[Point]] = []
        for point in sorted(self.points, key=lambda p: p.cost):
            if ours and point.cost > APART * max(ours):
                if found and point.cost <= TOGETHER * found[-1][0].cost:
                    found[-1].append(point)
                else:
                    found.append([point])
        return found

    @property
    def near(self) -> list[Point]:
        """All others."""
        apart = [id(point) for slot in self.apart for point in slot]
        return [point for point in self.points if id(point) not in apart]

    @property
    def curves(self) -> list[list[Point]]:
        """The points of each order but for those apart, the cheapest first.

        One curve per setting of all axes but that with the most values: the budget.
        """
        if not self.joined:
            return [[point] for point in self.near]
        values: dict[str, set[float]] = defaultdict(set)
        for key, value in (pair for p in self.points for pair in p.axes):
            values[key].add(value)
        along = max(values, key=lambda key: len(values[key]), default="")
        found: dict[tuple[str, Axes], list[Point]] = defaultdict(list)
        for p in sorted(self.near, key=lambda p: p.cost):
            found[p.order, tuple(pair for pair in p.axes if pair[0] != along)].append(p)
        return list(found.values())

    @property
    def unit(self) -> tuple[str, float]:
        """The unit of costs in figures, and what it is in bytes or ms."""
        if self.condition is not None:
            return "ms", 1.0
        largest = max(p.cost for p in self.near)
        return ("MiB", 2.0**20) if largest >= 2**20 else ("KiB", 2.0**10)

    @property
    def best(self) -> list[Point]:
        """The points that a line joins, on the frontier but for those apart, the cheapest first."""
        shown = (p for p in self.near if self.joined and not p.dominated)
        return sorted(shown, key=lambda p: p.cost)

    def point(self, row: Row) -> Point | None:
        """The point of a row."""
        return next((p for p in self.points if p.key == row.key), None)


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
    shown: dict[Key, tuple[float, Estimate]] = {}
    for row in table:
        timing = row.timing(condition) if condition else None
        if cost := row.size if condition is None else timing and timing.p50:
            _, mean = shapes.get(row.key, ((), cost.mean))
            shown[row.key] = mean, row.accuracy
    if not shown:
        return None
    costs = [cost for cost, _ in shown.values()]
    flags = dominated(costs, [accuracy.mean for _, accuracy in shown.values()])
    points = [
        Point(order, axes, *mean, flag, trial)
        for ((order, axes, trial), mean), flag in zip(shown.items(), flags, strict=True)
    ]
    base = shown.get((DENSE, (), 0), (max(costs), tables[0][0].accuracy))
    reference = base[0], base[1].mean - MARGIN
    full = frozenset(row.order for row in table if len(row.stages) >= FULL)
    settings = Counter(point.order for point in points)
    most = max((settings[order] for order in full), default=0)
    volumes = {
        order: volume
        for order in sort_orders({r.order: len(r.stages) for t in tables for r in t[1:]})
        # Of full orders only where all settings are there, or else they do not compare.
        if (order not in full or settings[order] == most)
        and (volume := estimate(_volumes(family, order, condition, reference, shapes)))
    }
    alike: dict[Shape, dict[str, None]] = defaultdict(dict)
    for (order, _, _), (shape, _) in shapes.items():
        alike[shape][order] = None
    shared = [list(orders) for orders in alike.values() if len(orders) > 1]
    return Frontier(condition, points, reference, volumes, shared, full)


def _shapes(table: list[Row], condition: Condition) -> dict[Key, tuple[Shape, float]]:
    """The shape that orders deploy, and its mean latency in ms over all of them.

    Networks of as many MACs in the same graph do the same work: one that is faster than another
    was measured at a better moment.
    """
    found: dict[Shape, list[Key]] = defaultdict(list)
    values: dict[Shape, list[float]] = defaultdict(list)
    for row in table:
        timing = row.timing(condition)
        if timing and timing.shape and row.key not in found[timing.shape]:
            found[timing.shape].append(row.key)
            values[timing.shape] += [timing.p50.mean] * timing.p50.n
    means = {shape: sum(v) / len(v) for shape, v in values.items()}
    return {key: (shape, means[shape]) for shape, keys in found.items() for key in keys}


def _volumes(
    family: list[Case],
    order: str,
    condition: Condition | None,
    reference: tuple[float, float],
    shapes: dict[Key, tuple[Shape, float]],
) -> list[float]:
    """One hypervolume per seed, of repetitions for which every point of the order was measured."""
    found: dict[tuple[int, tuple[str, ...]], dict[Axes, tuple[float, float]]] = defaultdict(dict)
    for case in family:
        for run in case.of(order):
            axes = tuple(run.axes.items())
            if cost := _run_cost(run, condition):
                _, cost = shapes.get((order, axes, 0), ((), cost))
                found[run.seed, run.repetition][axes] = cost, run.accuracy
    most = max((len(points) for points in found.values()), default=0)
    by_seed = mean_by(
        (seed, hypervolume([c for c, _ in of], [a for _, a in of], *reference))
        for (seed, _), points in found.items()
        for of in [points.values()]
        if len(of) == most
    )
    return list(by_seed.values())


def _run_cost(run: Run, condition: Condition | None) -> float | None:
    if condition is None:
        return run.final.sizes.get("package")
    rows = ((m, row) for m in run.measurements for row in m.latency if row.deployed)
    return next((row.p50_ms for m, row in rows if Condition.of(m, row) == condition), None)
