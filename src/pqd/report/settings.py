"""Which value of a setting: runs of one order that differ in it alone, paired by seed."""

from collections import defaultdict
from dataclasses import dataclass

from pqd.identity import counts
from pqd.report.cases import REFERENCE, Case, axis
from pqd.report.load import default_of
from pqd.report.paired import Paired, corrected
from pqd.report.statistics import MIN_SEEDS, estimate, mean_by, sign_flip


@dataclass(frozen=True, kw_only=True)
class Change(Paired):
    """Accuracy with one value of a setting minus that with another."""

    where: str  # what else was swept, in words
    value: str
    reference: str


@dataclass(frozen=True)
class Setting:
    """A setting that was swept beside axes and orders."""

    key: str
    order: str
    changes: list[Change]


def settings(cases: list[Case]) -> list[Setting]:
    """Compares the values of every swept setting that is no axis with its default.

    Where the default was not run, the first value stands for it. Of several orders that have the
    setting's stage the reference order is shown, or else that with the most runs.
    """
    keys = dict.fromkeys(key for case in cases for key in case.variant)
    found = [
        Setting(key, order, _changes(key, order, cases))
        for key in keys
        for order in [_shown(key, cases)]
    ]
    return [setting for setting in found if setting.changes]


def _shown(key: str, cases: list[Case]) -> str:
    runs = [
        run.order
        for case in cases
        for run in case.runs
        if counts(key, run.stages)  # else it is in the case of every value
    ]
    return REFERENCE if REFERENCE in runs else max(runs, key=runs.count, default="")


def _changes(key: str, order: str, cases: list[Case]) -> list[Change]:
    groups: dict[tuple[str, ...], dict[str, Case]] = defaultdict(dict)
    for case in cases:
        if key in case.variant:
            others = (f"{k}={v}" for k, v in case.variant.items() if k != key)
            axes = (axis(k, value) for k, value in case.axes.items())
            groups[case.backbone, case.dataset, *others, *axes][case.variant[key]] = case
    found = []
    for where, of in groups.items():
        usual = default if (default := default_of(key)) in of else next(iter(of))
        before = _by_seed(of[usual], order)
        for value, case in of.items():
            after = _by_seed(case, order)
            gains = [after[seed] - before[seed] for seed in sorted(after.keys() & before.keys())]
            if value != usual and (difference := estimate(gains)):
                p = sign_flip(gains) if len(gains) >= MIN_SEEDS else None
                found.append(
                    Change(
                        where=" · ".join(where),
                        value=value,
                        reference=usual,
                        difference=difference,
                        p=p,
                    )
                )
    return corrected(found)


def _by_seed(case: Case, order: str) -> dict[int, float]:
    return mean_by((run.seed, run.accuracy) for run in case.of(order))
