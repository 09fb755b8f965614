"""How long training will take: said once, before the first epoch ends."""

import time
from collections.abc import Callable, Mapping

from rich.console import Console

from pqd.progress import duration, show
from pqd.report.words import count

WARM_UP = 3  # steps that are not timed: caches fill, code is compiled
TIMED, TIMED_SECONDS = 10, 2.0  # steps that are, or fewer if they take so long
STEPS, EPOCH = "these first steps", "this first epoch"
LONG = 3600.0  # s; from here on a shorter training is suggested where there is no accelerator


class Forecast:
    """Times the first steps of a run's training; where there are too few, its first epoch.

    Args:
        epochs: that are left to be trained, in all stages.
        steps: of an epoch.
        budget: as configured; a tenth of it is suggested for a long training. None suggests none.
        stages: each of which trains for an epoch at least, whatever the budget.
        wait: waits until the device has done what it was given.
        console: where to show it; None is stdout.
    """

    def __init__(  # noqa: D107
        self,
        epochs: int,
        steps: int,
        *,
        budget: float | None,
        stages: int,
        wait: Callable[[], None],
        console: Console | None = None,
    ) -> None:
        self.epochs, self.steps, self.budget, self.wait = epochs, steps, budget, wait
        self.console, self.stages = console, stages
        self._first: int | None = None
        self._start = 0.0
        self._said = False

    def step(self, step: int) -> None:
        """Called before each step, with its index in the stage."""
        if self._said:
            return
        if self._first is None:
            self._first = step
            self.epochs -= step // self.steps  # an earlier process trained them
        timed = step - self._first - WARM_UP
        if timed == 0:
            self.wait()
            self._start = time.perf_counter()
        elif timed == TIMED or (timed > 0 and time.perf_counter() - self._start > TIMED_SECONDS):
            self.wait()
            seconds = (time.perf_counter() - self._start) / timed
            self._say(self.epochs * self.steps * seconds, STEPS)

    def epoch(self, metrics: Mapping[str, float]) -> None:
        """Called with an epoch's metrics, as `fit` gives them to `on_epoch`."""
        if not self._said:
            self._say(self.epochs * metrics["seconds"], EPOCH)

    def _say(self, seconds: float, what: str) -> None:
        self._said = True
        if self.epochs == 1 and what == EPOCH:
            return  # and that is over
        amount = f"{count(self.epochs, 'epoch')} of {count(self.steps, 'step')}"
        line = f"training takes about {duration(seconds)} if all is as fast as {what}: {amount}"
        if self.budget is not None and seconds >= LONG:
            share = max(0.1, self.stages / self.epochs)
            line += f"; budget={self.budget / 10:g} would take about {duration(seconds * share)}"
        show(line, self.console)
