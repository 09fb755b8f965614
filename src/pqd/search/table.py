"""The end of a search: the trials that no other one dominates, as a table."""

from collections.abc import Mapping

from rich.console import Group
from rich.table import Table
from rich.text import Text

from pqd.objectives import OBJECTIVES
from pqd.result import Result
from pqd.search.study import Study, TrialState

STATES = {"COMPLETE": "completed", "PRUNED": "stopped early", "FAIL": "failed"}


def frontier_table(study: Study, results: Mapping[int, Result | None]) -> Group:
    """Returns the table: each trial's objectives, test accuracy and settings.

    Args:
        study: at its end.
        results: of the trials that completed, by number.
    """
    best = sorted(study.frontier, key=lambda trial: trial.values, reverse=True)
    within = "".join(f", {_limit(name, most)}" for name, most in study.limits.items())
    table = Table(title=f"not dominated by any other trial{within}")
    for heading in ("trial", *study.objectives, "test accuracy"):
        table.add_column(heading, justify="right")
    table.add_column("settings", overflow="fold")
    for trial in best:
        found = results.get(trial.number)
        final = found.final if found else None
        table.add_row(
            str(trial.number),
            *(f"{value:.4g}" if value < 1e5 else f"{value:,.0f}" for value in trial.values),
            f"{final.accuracy:.2f}" if final else "-",
            " ".join(f"{key}={value}" for key, value in study.spelled(trial.params).items()),
        )
    counts = [f"{_count(study, state)} {word}" for state, word in STATES.items()]
    return Group(table, Text(f"search: {len(study.trials)} trials, {', '.join(counts)}"))


def _count(study: Study, state: str) -> int:
    return sum(trial.state == TrialState[state] for trial in study.trials)


def _limit(name: str, value: float) -> str:
    return f"{name} {'≥' if OBJECTIVES[name].maximise else '≤'} {value:g}"
