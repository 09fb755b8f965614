"""What a report compares: orders, or, where all runs have one order, its settings."""

from collections import Counter
from dataclasses import dataclass, replace

from pqd.identity import option_at
from pqd.options import Decides
from pqd.report.cases import REFERENCE
from pqd.report.load import Run, default_of
from pqd.report.swept import followers, variants


@dataclass(frozen=True)
class Subject:
    """What is compared, and with what."""

    noun: str = "order"
    reference: str = REFERENCE
    order: str | None = None  # the only one, where its settings are compared


ORDERS = Subject()


def compared(runs: list[Run]) -> tuple[Subject, list[Run]]:
    """Finds what to compare.

    Where all runs have one order, of which settings were swept, `order` of a run becomes these
    settings, such as `loss=dkd`. They are compared with the defaults, or else with the first. Files
    and axes are not among them: other images are another test, and axes are drawn as such.

    Args:
        runs: distinct ones, none of them a trial of a search.

    Returns:
        what is compared, and the runs named so.
    """
    orders = {run.order for run in runs}
    found = variants(runs)
    swept = [
        key
        for key in dict.fromkeys(key for _, variant in found for key in variant)
        for known in [option_at(key)]
        if known.decides is Decides.OUTCOME and not (known.digest or known.axis)
    ]
    leading = [key for key in swept if key not in followers(found)]
    if len(orders) != 1 or not leading:
        return ORDERS, runs
    short = _short(leading)
    named = {}
    for run, _ in found:
        name = ", ".join(f"{short[key]}={run.outcome.get(key)}" for key in leading)
        outcome = {key: value for key, value in run.outcome.items() if key not in swept}
        named[id(run)] = replace(run, order=name, outcome=outcome)
    usual = ", ".join(f"{short[key]}={default_of(key)}" for key in leading)
    names = [named[id(run)].order for run in runs]
    reference = usual if usual in names else names[0]
    return Subject("setting", reference, orders.pop()), [named[id(run)] for run in runs]


def _short(keys: list[str]) -> dict[str, str]:
    """The last part of each dotted key (of target.names target), all of it where two share it."""
    lasts = {key: key.removesuffix(".names").rpartition(".")[2] for key in keys}
    counts = Counter(lasts.values())
    return {key: last if counts[last] == 1 else key for key, last in lasts.items()}
