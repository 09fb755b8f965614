"""When a trial is not worth going on."""

from collections.abc import Sequence

from pqd.search.space import Params, saves
from pqd.search.study import REACHED, Study


def floors(study: Study, params: Params, stages: Sequence[str], margin: float) -> dict[str, float]:
    """Returns the validation accuracy, in %, below which a trial is not worth going on.

    It is not where another trial that compresses at least as much was more than `margin` points
    better when it had the same stages behind it, and stayed so to its end.

    Args:
        study: that the trial is of.
        params: of the trial.
        stages: of its order, without the baseline.
        margin: in points.

    Returns:
        One number by stage, for those that there is any for.
    """
    found: dict[str, float] = {}
    harder = [t for t in study.complete if saves(study.dimensions, t.params, params)]
    for count, stage in enumerate(stages, 1):
        best = []
        for trial in harder:
            reached = list(trial.user_attrs[REACHED].items())
            if {name for name, _ in reached[:count]} == set(stages[:count]):
                best.append(min(reached[count - 1][1], reached[-1][1]))
        if best:
            found[stage] = round(max(best) - margin, 4)
    return found
