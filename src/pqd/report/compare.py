"""Compares every order with the reference order, and says in words what is proven."""

from collections import defaultdict
from dataclasses import dataclass

from pqd.report import words
from pqd.report.cases import FULL, Case, sort_orders
from pqd.report.load import Run
from pqd.report.paired import Paired, corrected
from pqd.report.statistics import (
    LEVEL,
    MIN_SEEDS,
    Estimate,
    estimate,
    mean_by,
    pairs_needed,
    sign_flip,
)
from pqd.report.subject import ORDERS, Subject

Mean = tuple[str, str, Estimate]  # order, case, accuracy in %
Pair = tuple[tuple[str, ...], str, str]  # repetition, backbone, data set
Seed = tuple[int, str, str]  # and the backbone and data set that it is of


@dataclass(frozen=True, kw_only=True)
class Comparison(Paired):
    """Accuracy of an order minus that of the reference."""

    order: str
    full: bool  # of as many stages as the reference: only such orders answer which is best
    seeds: int  # different seeds among the pairs


def compare(cases: list[Case], subject: Subject = ORDERS) -> list[Comparison]:
    """Compares over one case or several: a pair is one backbone, data set and seed.

    Runs of one backbone, data set and seed share their dense baseline, whatever their sparsity, so
    they are not independent: the mean over their cases counts as one difference, and so does that
    over repetitions of a seed, such as those on other devices. Full orders and
    shorter ones are two questions, so each has a correction of its own.
    """
    runs_of: dict[str, dict[Pair, dict[int, Run]]] = defaultdict(lambda: defaultdict(dict))
    lengths: dict[str, int] = {}
    for i, case in enumerate(cases):
        for run in case.runs:
            runs_of[run.order][run.repetition, run.backbone, run.dataset][i] = run
            lengths[run.order] = len(run.stages)
    reference = runs_of.get(subject.reference, {})
    found: dict[bool, list[Comparison]] = {True: [], False: []}
    for order in sort_orders(lengths):
        if order == subject.reference:
            continue
        gains: list[tuple[Seed, float]] = []
        for key, runs in runs_of[order].items():
            others = reference.get(key, {})
            for i, run in runs.items():
                if i in others:
                    gain = run.accuracy - others[i].accuracy
                    gains.append(((run.seed, run.backbone, run.dataset), gain))
        by_seed = mean_by(gains)
        differences = list(by_seed.values())
        seeds = {seed for seed, _, _ in by_seed}
        if difference := estimate(differences):
            p = sign_flip(differences) if len(seeds) >= MIN_SEEDS else None
            full = lengths[order] >= FULL
            found[full].append(
                Comparison(order=order, full=full, difference=difference, seeds=len(seeds), p=p)
            )
    return [*corrected(found[True]), *corrected(found[False])]


def verdict(comparisons: list[Comparison], means: list[Mean], subject: Subject = ORDERS) -> str:
    """One sentence: which order is more accurate, by how much, and whether that is proven.

    Args:
        comparisons: of `compare`; the shorter orders count where there are no others.
        means: to name the highest when nothing can be compared.
        subject: what is compared, if not orders.
    """
    noun, reference = subject.noun, subject.reference
    if not means:
        return "No run has completed, so there is nothing to compare."
    if not comparisons:
        return _nothing_to_compare(means, subject)
    comparisons = [c for c in comparisons if c.full] or comparisons
    best = max(comparisons, key=lambda c: c.difference.mean)
    tested = [c for c in comparisons if c.p is not None]
    if not tested:
        seeds = words.count(max(c.seeds for c in comparisons), "seed")
        needed = max(MIN_SEEDS, pairs_needed(len(comparisons)))
        return (
            f"No verdict is possible with {seeds}, at least {needed} are needed: "
            f"so far {_leader(best, reference)}."
        )
    proven = sorted((c for c in tested if c.proven), key=lambda c: -c.difference.mean)
    if not proven:
        widest = max(tested, key=lambda c: abs(c.difference.mean))
        return (
            f"No {noun} is shown to differ from {reference} in accuracy: the largest difference "
            f"is {widest.order}'s, {_size(widest)}{_power(tested)}."
        )
    better = [c for c in proven if c.difference.mean > 0]
    worse = [c for c in reversed(proven) if c.difference.mean < 0]
    rest = [c.order for c in comparisons if not c.proven]
    if better:
        parts = [f"{better[0].order} is more accurate than {reference}, {_size(better[0])}"]
        parts += [f"so {_are(better[1:])}"] if better[1:] else []
        parts += [f"less accurate {_are(worse)}"] if worse else []
    else:
        parts = [f"no {noun} is shown to be more accurate than {reference}"]
        parts += [f"{worse[0].order} is less accurate, {_size(worse[0])}"]
        parts += [f"so {_are(worse[1:])}"] if worse[1:] else []
    if rest:
        parts.append(f"no difference is shown for {words.listed(rest)}")
    text = "; ".join(parts)
    return (text if better else text[0].upper() + text[1:]) + "."


def _are(found: list[Comparison]) -> str:
    names = [f"{c.order} ({words.signed(c.difference.mean)})" for c in found]
    return f"{'is' if len(found) == 1 else 'are'} {words.listed(names)}"


def _nothing_to_compare(means: list[Mean], subject: Subject) -> str:
    noun, reference = subject.noun, subject.reference
    order, case, accuracy = max(means, key=lambda mean: mean[2].mean)
    where = f", {case}" if len(means) > 1 and case else ""
    found = f"{order} with {accuracy.mean:.2f} % ({words.count(accuracy.n, 'run')}{where})"
    orders = {order for order, _, _ in means}
    if len(means) == 1:
        return f"Nothing to compare: the only {noun} that has completed is {found}."
    if len(orders) == 1:
        return f"Nothing to compare but settings of {order}: the highest mean accuracy is {found}."
    reason = f", because no run of another has the seed and settings of one of {reference}"
    if reference not in orders:
        reason = ", which was not run"
    return (
        f"No {noun} can be compared with {reference}{reason}; the highest mean accuracy is that of "
        f"{found}."
    )


def _leader(best: Comparison, reference: str) -> str:
    if best.difference.mean <= 0:
        return f"{reference} has the highest mean accuracy, {best.order} follows at {_size(best)}"
    return f"{best.order} has the highest mean accuracy, {_size(best)} against {reference}"


def _size(c: Comparison) -> str:
    d = c.difference
    inside = [f"95 % interval {words.interval(d)}"] if d.half is not None else []
    inside.append(words.count(d.n, "pair"))
    if c.corrected is not None:
        p = words.p(c.corrected)
        inside.append(f"corrected p {p}" if p.startswith("<") else f"corrected p = {p}")
    return f"{words.signed(d.mean)} points ({', '.join(inside)})"


def _power(tested: list[Comparison]) -> str:
    pairs, needed = max(c.difference.n for c in tested), pairs_needed(len(tested))
    if pairs >= needed:
        return ""
    return (
        f"; with {pairs} pairs and {len(tested)} comparisons no difference, however large, can "
        f"reach a corrected p below {LEVEL}, {needed} pairs can"
    )
