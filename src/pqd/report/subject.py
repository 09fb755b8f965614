"""What a report compares: orders, or, where all runs have one order, its settings."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace

from pqd.identity import of_baseline, option_at
from pqd.options import Decides
from pqd.report.cases import REFERENCE
from pqd.report.load import Run, default_of
from pqd.report.swept import followers, variants


@dataclass(frozen=True)
class Subject:
    """What is compared, and with what."""

    reference: str = REFERENCE
    order: str | None = None  # the only one, where its settings are compared
    # settings that go along with another, by that
    following: dict[str, list[str]] = field(default_factory=dict)

    @property
    def noun(self) -> str:
        """What is compared, in a word."""
        return "setting" if self.order else "order"


ORDERS = Subject()


def compared(runs: list[Run], *, alone: bool = True) -> tuple[Subject, list[Run]]:
    """Finds what to compare.

    Where all runs have one order, of which settings were swept, `order` of a run becomes these
    settings, such as `loss=dkd`. They are compared with the defaults, or else with the first. Not
    among them are files and settings of the baseline, as what has another dense network is another
    case, and axes, which are drawn as such.

    Args:
        runs: distinct ones, none of them a trial of a search.
        alone: whether the report is of these alone; beside a search orders stay orders.

    Returns:
        what is compared, and the runs named so.
    """
    orders = {run.order for run in runs}
    found = variants(runs)
    leader_of = followers(found)
    following: dict[str, list[str]] = defaultdict(list)
    for key, leader in sorted(leader_of.items()):
        following[leader].append(key)
    swept = [
        key
        for key in dict.fromkeys(key for _, variant in found for key in variant)
        for known in [option_at(key)]
        if known.decides is Decides.OUTCOME and not (known.digest or known.axis or of_baseline(key))
    ]
    leading = [key for key in swept if key not in leader_of]
    if not alone or len(orders) != 1 or not leading:
        return Subject(following=dict(following)), runs
    short = _short(leading)

    def name(run: Run) -> str:
        return ", ".join(f"{short[key]}={run.outcome.get(key)}" for key in leading)

    named = [
        replace(
            run,
            order=name(run),
            outcome={key: value for key, value in run.outcome.items() if key not in swept},
        )
        for run in runs
    ]
    usual = ", ".join(f"{short[key]}={default_of(key)}" for key in leading)
    names = [run.order for run in named]
    return Subject(usual if usual in names else names[0], orders.pop(), dict(following)), named


def _short(keys: list[str]) -> dict[str, str]:
    """The last part of each dotted key (of target.names target), all of it where two share it."""
    lasts = {key: key.removesuffix(".names").rpartition(".")[2] for key in keys}
    counts = Counter(lasts.values())
    return {key: last if counts[last] == 1 else key for key, last in lasts.items()}
