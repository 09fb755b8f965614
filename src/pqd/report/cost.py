"""What training cost, what the cache saved, and how accuracy moved through the stages."""

from collections import defaultdict
from dataclasses import dataclass

from pqd.report.cases import Case
from pqd.report.load import Run
from pqd.report.statistics import Estimate, estimate


@dataclass(frozen=True)
class Cost:
    """Training time of one order in one case."""

    order: str
    seconds: list[tuple[str, float]]  # (stage, mean seconds of training it once), in order
    cached: int  # stages taken from the cache, over all runs
    stages: int  # stages in all

    @property
    def total(self) -> float:
        """Seconds of one run without a cache."""
        return sum(seconds for _, seconds in self.seconds)


@dataclass(frozen=True)
class Saving:
    """What the cache saved over all runs."""

    stages: int  # stages that the runs consist of
    trained: int  # trainings that these need; see `saving`
    seconds: float  # all stages, had each been trained
    spent: float  # seconds of these trainings

    @property
    def saved(self) -> float:
        """Seconds not spent."""
        return self.seconds - self.spent


@dataclass(frozen=True)
class Curve:
    """Validation accuracy after each stage of an order, over its runs."""

    order: str
    stages: list[str]
    accuracy: list[Estimate]  # % of the validation split


def training_times(runs: list[Run]) -> dict[str, float]:
    """Seconds of training each stage, by its cache key.

    A stage found in the cache may have recorded how long loading took; the run that trained it
    recorded more, so the largest of the times counts.
    """
    seconds: dict[str, float] = defaultdict(float)
    for run in runs:
        for entry in run.result.stages:
            seconds[entry.key] = max(seconds[entry.key], entry.seconds)
    return dict(seconds)


def costs(case: Case, times: dict[str, float]) -> list[Cost]:
    """Training time of each order, by stage."""
    found = []
    for order in case.orders():
        runs = case.of(order)
        stages = list(zip(*(run.result.stages for run in runs), strict=True))
        means = [
            (same[0].stage, sum(times[entry.key] for entry in same) / len(runs)) for same in stages
        ]
        cached = sum(entry.cached for same in stages for entry in same)
        found.append(Cost(order, means, cached, len(stages) * len(runs)))
    return found


def saving(runs: list[Run], times: dict[str, float]) -> Saving:
    """What the cache saved.

    A stage that no run says it trained was trained once all the same, by an attempt that was killed
    or by another sweep.
    """
    entries = [entry for run in runs for entry in run.result.stages]
    trainings = dict.fromkeys(times, 0)
    for entry in entries:
        trainings[entry.key] += not entry.cached
    trainings = {key: max(1, count) for key, count in trainings.items()}
    return Saving(
        stages=len(entries),
        trained=sum(trainings.values()),
        seconds=sum(times[entry.key] for entry in entries),
        spent=sum(times[key] * count for key, count in trainings.items()),
    )


def curves(case: Case) -> list[Curve]:
    """Validation accuracy through the stages, of the orders with the most stages."""
    found = []
    orders = case.orders()
    longest = max(len(case.of(order)[0].stages) for order in orders)
    for order in orders:
        runs = case.of(order)
        if len(runs[0].stages) < longest:
            continue
        means = {}
        for same in zip(*(run.result.stages for run in runs), strict=True):
            known = [e.validation_accuracy for e in same if e.validation_accuracy is not None]
            means[same[0].stage] = estimate(known)
        if all(means.values()):
            found.append(Curve(order, list(means), [mean for mean in means.values() if mean]))
    return found
