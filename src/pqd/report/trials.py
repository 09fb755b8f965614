"""The trials of a search: each is a case of its own, so nothing is averaged or compared."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from pqd.objectives import OBJECTIVES, excess, values
from pqd.report import words
from pqd.report.cases import Case, cases
from pqd.report.frontier import Frontier, frontiers
from pqd.report.load import Run, searched_of
from pqd.report.summary import Condition, Key, Row, rows
from pqd.report.swept import followers, variants
from pqd.result import Result


@dataclass(frozen=True)
class Trial:
    """One set of settings that was tried."""

    run: Run
    row: Row
    validation: float | None  # %, of the last stage
    chosen: bool

    def setting(self, key: str) -> str:
        """The value of a setting, rounded; nothing where the order lacks its stage."""
        value = self.run.axes.get(key)
        return self.run.outcome.get(key, "") if value is None else f"{value:.3g}"


@dataclass(frozen=True)
class Search:
    """The trials of one backbone, data set and list of objectives."""

    label: str
    objectives: list[str]  # what the search went by, in words
    limited: bool  # whether an objective has a limit
    keys: list[str]  # the settings searched, but for the order
    dense: Row  # the baseline of the first trial
    trials: list[Trial]  # those chosen first, the most accurate first
    stopped: list[Result]  # trials that the search stopped early
    frontiers: list[Frontier]

    @property
    def verdict(self) -> str:
        """What the search has found, in a sentence."""
        of = f"Of {words.count(len(self.trials), 'trial')} of {self.label} {len(self.chosen)}"
        were = "was" if len(self.stopped) == 1 else "were"
        early = f" {len(self.stopped)} more {were} stopped early." if self.stopped else ""
        return (
            f"{of} {'is' if len(self.chosen) == 1 else 'are'} chosen: no other "
            f"{'within the limits ' if self.limited else ''}is at least as good in "
            f"{words.listed(self.objectives)}.{early}"
        )

    @property
    def chosen(self) -> list[Trial]:
        """The trials that no other one dominates in the objectives."""
        return [trial for trial in self.trials if trial.chosen]


def split(runs: list[Run]) -> tuple[list[Run], list[Run]]:
    """Separates the trials of searches from all other runs."""
    trials = [run for run in runs if searched_of(run.result)]
    return trials, [run for run in runs if not searched_of(run.result)]


def searches(
    runs: list[Run], unfinished: list[Result], where: list[Condition]
) -> tuple[list[Search], list[Result]]:
    """Groups trials by backbone, data set and objectives.

    Args:
        runs: completed and distinct trials.
        unfinished: all runs that did not complete, those that a search stopped among them.
        where: the conditions in which latencies are shown.

    Returns:
        The searches, and the unfinished runs that none of them has stopped.
    """
    alike: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        alike.setdefault(_group(run.result), []).append(run)
    stopped: dict[tuple[str, ...], list[Result]] = {label: [] for label in alike}
    others: list[Result] = []
    for result in unfinished:
        by_search = result.status == "stopped" and searched_of(result)
        (stopped.get(_group(result), others) if by_search else others).append(result)
    return [_search(trials, stopped[label], where) for label, trials in alike.items()], others


def _group(result: Result) -> tuple[str, ...]:
    config = result.config
    names = (str(config.get(group, {}).get("name", "")) for group in ("backbone", "dataset"))
    return *names, *config.get("objectives", [])


def _search(runs: list[Run], stopped: list[Result], where: list[Condition]) -> Search:
    names = [n for n in runs[0].result.config.get("objectives", []) if n in OBJECTIVES]
    # They may change where a search goes on, and then hold for its earlier trials, too.
    limits = max(runs, key=lambda run: run.started).result.config.get("limits", {})
    best = _undominated(runs, names, limits)
    alone = [
        (case, [replace(row, trial=number) for row in rows(case)])
        for number, case in enumerate(_alone(runs), start=1)
    ]
    trials = [
        Trial(
            run=case.runs[0],
            row=table[1],
            validation=case.runs[0].result.stages[-1].validation_accuracy,
            chosen=id(case.runs[0]) in best,
        )
        for case, table in alone
    ]
    trials.sort(key=lambda t: (not t.chosen, -(t.validation or 0.0)))
    kept = {trial.row.key for trial in trials if trial.chosen}
    drawn = frontiers([case for case, _ in alone], [table for _, table in alone], where)
    return Search(
        label=f"{runs[0].backbone} · {runs[0].dataset}",
        objectives=[OBJECTIVES[name].title for name in names],
        limited=bool(limits),
        keys=_keys(runs),
        dense=alone[0][1][0],
        trials=trials,
        stopped=stopped,
        frontiers=[_marked(frontier, kept) for frontier in drawn],
    )


def _keys(runs: list[Run]) -> list[str]:
    """Returns the settings searched, but for the order; of a config group those that differ."""
    varied, found = variants(runs), list[str]()
    for key in dict.fromkeys(key for run in runs for key in searched_of(run.result)):
        if any(key in run.axes or key in run.outcome for run in runs):
            found.append(key)
            continue
        own = [
            (run, {k: v for k, v in of.items() if k.startswith(f"{key}.")}) for run, of in varied
        ]
        differing = dict.fromkeys(k for _, of in own for k in of)
        along = followers(own)
        found += [k for k in differing if k not in along]
        axes = {pair for run in runs for pair in run.axes.items() if pair[0].startswith(f"{key}.")}
        found += [k for k, n in Counter(k for k, _ in sorted(axes)).items() if n > 1]
    return list(dict.fromkeys(found))


def _alone(runs: list[Run]) -> Iterator[Case]:
    """Makes each run a case."""
    for run in runs:
        yield from cases([run])


def _undominated(runs: list[Run], objectives: list[str], limits: Mapping[str, float]) -> set[int]:
    """Returns the ids of runs within the limits that no other equals or betters in everything."""
    signs = [-1 if OBJECTIVES[name].maximise else 1 for name in objectives]
    costs = {
        id(run): tuple(sign * value for sign, value in zip(signs, found, strict=True))
        for run in runs
        if (found := values(run.result, objectives)) and _inside(objectives, found, limits)
    }
    return {
        run
        for run, own in costs.items()
        if not any(
            other != own and all(a <= b for a, b in zip(other, own, strict=True))
            for other in costs.values()
        )
    }


def _inside(objectives: list[str], found: list[float], limits: Mapping[str, float]) -> bool:
    by_name = dict(zip(objectives, found, strict=True))
    return all(excess(name, by_name[name], limit) <= 0 for name, limit in limits.items())


def _marked(frontier: Frontier, chosen: set[Key]) -> Frontier:
    """Marks what was chosen, whatever its test accuracy, and joins nothing."""
    points = [replace(p, dominated=p.key not in chosen) for p in frontier.points]
    return replace(frontier, points=points, volumes={}, joined=False)
