"""Groups runs into cases: what may be averaged over seeds and what may be compared."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from pqd.report.load import Run, by_machine

ORDERS = ("pqd", "pdq", "qpd", "qdp", "dpq", "dqp")
PARTIAL = ("pq", "qp", "pd", "dp", "qd", "dq", "p", "q", "d", "none")
REFERENCE = "pqd"  # what every order is compared with

# Keys that name the run or can't change what is trained; `prune.sparsity` is a case's own field.
_IGNORED = (
    *("seed", "order.", "backbone.name", "dataset.name", "dataset.root"),
    *("prune.sparsity", "runtime.", "logger.", "cache."),
    *("train.device", "train.compile", "train.eval_batch_size"),
)


@dataclass
class Case:
    """One backbone, data set and sparsity (and whatever else was swept): orders differ, and seeds.

    Runs of an order that doesn't prune belong to the case of every sparsity.
    """

    backbone: str
    dataset: str
    sparsity: float | None
    variant: dict[str, str]  # other swept keys
    runs: list[Run] = field(default_factory=list)

    @property
    def family(self) -> str:
        """The case but for its sparsity: what shares one frontier."""
        return " · ".join(self._names())

    @property
    def label(self) -> str:
        """The case in words, e.g. `resnet20 · digits · sparsity 90 %`."""
        return " · ".join(self.parts())

    def parts(self) -> list[str]:
        """The parts of the label."""
        if self.sparsity is None:
            return self._names()
        return [*self._names(), f"sparsity {100 * self.sparsity:g} %"]

    def _names(self) -> list[str]:
        return [self.backbone, self.dataset, *(f"{k}={v}" for k, v in self.variant.items())]

    def orders(self) -> list[str]:
        """The orders that were run: three stages first, in a fixed sequence, then the shorter."""
        return sort_orders({run.order: len(run.stages) for run in self.runs})

    def of(self, order: str) -> list[Run]:
        """The runs of one order, by seed."""
        return sorted((r for r in self.runs if r.order == order), key=lambda r: r.seed)


def sort_orders(stages: dict[str, int]) -> list[str]:
    """Sorts order names (with their number of stages) as tables and legends show them."""
    known = {name: i for i, name in enumerate(ORDERS + PARTIAL)}
    return sorted(stages, key=lambda o: (-stages[o], known.get(o, len(known)), o))


def distinct(runs: Iterable[Run]) -> tuple[list[Run], int]:
    """Drops repeats (same configuration but for paths and the like): the newest counts.

    What a repeat measured of the same last stage is kept: on another machine, in another runtime.

    Returns:
        the runs that are left, and the number dropped.
    """
    runs = list(runs)
    repeats: dict[tuple[object, ...], list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda r: r.started):
        relevant = tuple(sorted((k, v) for k, v in run.config.items() if _matters(k, run)))
        key = run.order, run.backbone, run.dataset, run.sparsity, run.seed, relevant
        repeats[key].append(run)
    kept = {id(group[-1]): _merged(group) for group in repeats.values()}
    return [kept[id(run)] for run in runs if id(run) in kept], len(runs) - len(kept)


def _merged(repeats: list[Run]) -> Run:
    """The newest of the repeats, with what the others measured of the same network."""
    newest = repeats[-1]
    if len(repeats) == 1:
        return newest
    key = newest.record[-1].get("key")
    found = []
    for run in repeats:
        if run is newest or (key and run.record[-1].get("key") == key):
            # Trained twice, on machines that round differently: as fast, not as accurate.
            same = run.accuracy == newest.accuracy
            found += [m if same else replace(m, accuracy={}) for m in run.measurements]
    return replace(newest, measurements=by_machine(found))


def cases(runs: Iterable[Run]) -> list[Case]:
    """Groups distinct runs into cases, sorted by name."""
    found: list[Case] = []
    # The most specific first: a run joins every case that it does not contradict.
    for run, variant in sorted(variants(runs), key=lambda v: (-len(v[1]), v[0].sparsity is None)):
        fits = [case for case in found if _fits(variant, run, case)]
        if not fits:
            fits = [Case(run.backbone, run.dataset, run.sparsity, variant)]
            found += fits
        for case in fits:
            case.runs.append(run)
    return sorted(found, key=lambda c: (c.family, c.sparsity or 0.0))


def variants(runs: Iterable[Run]) -> list[tuple[Run, dict[str, str]]]:
    """Every run with those keys of its configuration that were swept, but for a case's own."""
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.backbone, run.dataset].append(run)
    return [
        (run, {k: v for k, v in run.config.items() if k in swept and _matters(k, run)})
        for members in groups.values()
        for swept in [_swept(members)]
        for run in members
    ]


def _fits(variant: dict[str, str], run: Run, case: Case) -> bool:
    same = (run.backbone, run.dataset) == (case.backbone, case.dataset)
    same = same and all(case.variant.get(k) == v for k, v in variant.items())
    return same and run.sparsity in (None, case.sparsity)


def _matters(key: str, run: Run) -> bool:
    """Whether a key can have changed the run's outcome."""
    if key.startswith(_IGNORED):
        return False
    for stage in ("prune", "quantize", "distill"):
        if stage not in run.stages and stage in key.split("."):
            return False
    return True


def _swept(runs: list[Run]) -> set[str]:
    """Keys with several values, but for those that go one to one with the seed."""
    pairs: dict[str, set[tuple[int, str]]] = defaultdict(set)
    for run in runs:
        for key, value in run.config.items():
            if _matters(key, run):
                pairs[key].add((run.seed, value))
    swept = set()
    for key, found in pairs.items():
        values, seeds = {value for _, value in found}, {seed for seed, _ in found}
        if len(values) > 1 and not len(found) == len(values) == len(seeds):
            swept.add(key)
    return swept
