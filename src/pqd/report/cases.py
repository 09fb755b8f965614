"""Groups runs into cases: what may be averaged over repetitions and what may be compared."""

import re
from collections import defaultdict
from collections.abc import Container, Iterable
from dataclasses import dataclass, field, replace

from pqd.identity import option_at
from pqd.report.load import Run, by_machine
from pqd.report.swept import followers, variants

REFERENCE = "pqd"  # what every order is compared with
FULL = len(REFERENCE)  # stages of an order at least, to answer which order is best


@dataclass
class Case:
    """One backbone, data set, sparsity and whatever else was swept: orders differ, and seeds.

    A run whose order lacks a stage belongs to the case of every setting of that stage.
    """

    backbone: str
    dataset: str
    axes: dict[str, float]  # such as prune.sparsity, by dotted key
    variant: dict[str, str]  # other swept keys
    runs: list[Run] = field(default_factory=list)

    @property
    def family(self) -> str:
        """The case but for its axes, set or not: what shares one frontier."""
        return " · ".join(self._names({k for k in self.variant if not option_at(k).axis}))

    @property
    def label(self) -> str:
        """The case in words, e.g. `resnet20 · digits · sparsity 90 %`."""
        return " · ".join(self.parts())

    def parts(self) -> list[str]:
        """The parts of the label."""
        return [*self._names(self.variant), *(axis(key, value) for key, value in self.axes.items())]

    def _names(self, keys: Container[str]) -> list[str]:
        variant = (f"{key}={value}" for key, value in self.variant.items() if key in keys)
        return [self.backbone, self.dataset, *variant]

    def orders(self) -> list[str]:
        """The orders that were run, or the settings that are compared; see `sort_orders`."""
        return sort_orders({run.order: len(run.stages) for run in self.runs})

    def of(self, order: str) -> list[Run]:
        """The runs of one order, by seed."""
        return sorted((r for r in self.runs if r.order == order), key=lambda r: r.seed)

    def takes(self, run: Run, variant: dict[str, str]) -> bool:
        """Whether a run, of which these keys were swept, contradicts the case in nothing."""
        mine, its = self.axes | self.variant, run.axes | variant
        same = (run.backbone, run.dataset) == (self.backbone, self.dataset)
        return same and all(mine.get(key) == value for key, value in its.items())


def axis(key: str, value: float) -> str:
    """A setting that is an axis in words, e.g. `sparsity 90 %`; shares are in %."""
    shown = f"{100 * value:g} %" if is_share(key) else f"{value:g}"
    return f"{option_at(key).axis or key} {shown}"


def is_share(key: str) -> bool:
    """Tells whether a setting is a share, shown in %."""
    interval = option_at(key).interval
    return interval is not None and interval.high <= 1


def sort_orders(stages: dict[str, int]) -> list[str]:
    """Sorts order names (with their number of stages) as tables and legends show them.

    Full orders come first, then the shorter ones, each in a fixed sequence; those with letters
    that the reference lacks come last among either. Settings stand in the alphabet, 9 before 10.
    """

    def rank(order: str) -> tuple[object, ...]:
        if "=" in order:
            parts = re.split(r"(\d+\.?\d*)", order)
            return tuple(float(part) if i % 2 else part for i, part in enumerate(parts))
        places = [REFERENCE.find(letter) % (len(REFERENCE) + 1) for letter in order]
        unknown = stages[order] > 0 and len(REFERENCE) in places
        return -min(stages[order], FULL), unknown, -stages[order], sorted(places), places, order

    return sorted(stages, key=rank)


def distinct(runs: Iterable[Run]) -> tuple[list[Run], int]:
    """Drops repeats (same configuration but for paths and the like): the newest counts.

    What a repeat measured of the same last stage is kept: on another machine, in another runtime.

    Returns:
        the runs that are left, and the number dropped.
    """
    runs = _by_images(list(runs))
    repeats: dict[tuple[object, ...], list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda r: r.started):
        settings = tuple(sorted((run.axes | run.outcome).items()))
        key = run.order, run.backbone, run.dataset, run.repetition, settings
        repeats[key].append(run)
    kept = {id(group[-1]): _merged(group) for group in repeats.values()}
    return [kept[id(run)] for run in runs if id(run) in kept], len(runs) - len(kept)


def _by_images(runs: list[Run]) -> list[Run]:
    """Tells runs apart by their images where the settings of a data set do not.

    By `dataset.root`, if that says which is which, and else by the fingerprint.
    """
    groups: dict[tuple[object, ...], list[Run]] = defaultdict(list)
    for run in runs:
        settings = [(k, v) for k, v in run.outcome.items() if k.startswith("dataset.")]
        groups[run.dataset, *settings].append(run)
    named = {}
    for members in groups.values():
        found = {(r.final.dataset, r.result.config["dataset"].get("root")) for r in members}
        prints, roots = ({pair[i] for pair in found} - {None} for i in (0, 1))
        for run in members if len(prints) > 1 else []:
            by_root = len(found) == len(prints) == len(roots)
            root = str(run.result.config["dataset"].get("root"))
            images = {"dataset.root": root if by_root else str(run.final.dataset)}
            named[id(run)] = replace(run, outcome=run.outcome | images)
    return [named.get(id(run), run) for run in runs]


def _merged(repeats: list[Run]) -> Run:
    """The newest of the repeats, with what the others measured of the same network."""
    newest = repeats[-1]
    if len(repeats) == 1:
        return newest
    found = []
    for run in repeats:
        if run is newest or run.result.stages[-1].key == newest.result.stages[-1].key:
            # Trained twice, on machines that round differently: as fast, not as accurate.
            same = run.accuracy == newest.accuracy
            found += [m if same else replace(m, accuracy_by_runtime={}) for m in run.measurements]
    return replace(newest, measurements=by_machine(found))


def cases(runs: Iterable[Run]) -> list[Case]:
    """Groups distinct runs into cases, sorted by name."""
    found: list[Case] = []
    swept = variants(runs)
    following = followers(swept)
    leading = [(run, {k: v for k, v in of.items() if k not in following}) for run, of in swept]
    # The most specific first: a run joins every case that it does not contradict.
    for run, variant in sorted(leading, key=lambda v: (-len(v[1]), -len(v[0].axes))):
        fits = [case for case in found if case.takes(run, variant)]
        if not fits:
            fits = [Case(run.backbone, run.dataset, run.axes, variant)]
            found += fits
        for case in fits:
            case.runs.append(run)
    return sorted(found, key=lambda c: (c.family, tuple(c.axes.values())))
