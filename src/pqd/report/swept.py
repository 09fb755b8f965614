"""Which settings were swept, and which of them only go along with others."""

from collections import defaultdict
from collections.abc import Iterable

from pqd.identity import counts, option_at
from pqd.report.load import Run, is_number

Variant = tuple[Run, dict[str, str]]  # a run, and its swept settings by dotted key


def variants(runs: Iterable[Run]) -> list[Variant]:
    """Every run with those settings that were swept, but for a case's own."""
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.backbone, run.dataset].append(run)
    return [
        (run, {k: v for k, v in _counted(run, swept).items() if k in swept and k not in run.axes})
        for members in groups.values()
        for swept in [_swept(members)]
        for run in members
    ]


def followers(found: list[Variant]) -> dict[str, str]:
    """Swept settings that have one value for each value of another one, by that other.

    So do those of a preset: `distill=published/dkd` sets the loss and what goes with it. Of two
    that determine each other, words lead numbers, and the first the second.
    """
    values: dict[str, list[str | None]] = {
        key: [variant.get(key) for _, variant in found]
        for key in dict.fromkeys(key for _, variant in found for key in variant)
    }
    leading = sorted(values, key=lambda key: all(map(_no_word, values[key])))
    following: dict[str, str] = {}
    for key in reversed(leading):
        for leader in leading:
            if leader != key and leader not in following:
                pairs = set(zip(values[leader], values[key], strict=True))
                if len(pairs) == len({value for value, _ in pairs}):
                    following[key] = leader
                    break
    for key, leader in following.items():
        while leader in following:
            leader = following[leader]
        following[key] = leader
    return following


def _no_word(value: str | None) -> bool:
    return value in (None, str(None)) or is_number(value)


def _counted(run: Run, keys: Iterable[str]) -> dict[str, str]:
    """The values of those settings that the run's stages have; that of an unset one is None."""
    settings = run.outcome | {key: str(value) for key, value in run.axes.items()}
    return {key: settings.get(key, str(None)) for key in keys if counts(key, run.stages)}


def _swept(runs: list[Run]) -> list[str]:
    """Keys with several values, but for files and seeds that go one to one with the run's seed."""
    keys = dict.fromkeys(key for run in runs for key in (*run.outcome, *run.axes))
    pairs: dict[str, set[tuple[int, str]]] = defaultdict(set)
    for run in runs:
        for key, value in _counted(run, keys).items():
            pairs[key].add((run.seed, value))
    swept = []
    for key, found in pairs.items():
        values, seeds = {value for _, value in found}, {seed for seed, _ in found}
        of_seed = option_at(key).digest or key.endswith("seed")
        paired = of_seed and len(found) == len(values) == len(seeds)
        if len(values) > 1 and not paired:
            swept.append(key)
    return swept
