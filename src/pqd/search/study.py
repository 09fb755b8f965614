"""The study of a search, kept in a file: what was tried, what came of it, what to try next."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pqd.errors import UserError, one_line
from pqd.objectives import OBJECTIVES, excess, values
from pqd.result import Result
from pqd.search.space import Dimension, Params

try:
    import optuna
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import FrozenTrial, TrialState
except ImportError:  # an extra, which nothing but a search needs
    raise UserError("a search needs Optuna 4: pip install 'optuna>=4,<5'") from None

NAME = "pqd"
REACHED = "validation_accuracy"  # attribute of a trial: % after each of its stages, in order
RUN = "run"  # attribute of a trial: the hash of its configuration
FOLDER = "folder"  # attribute of a trial: its name
# Attribute of a trial, for the sampler: by how much it exceeds each limit that it had; none if at
# most 0.
LIMITS = "limits"
_LOG = b'{"op_code":'  # how every line of a journal begins


_DIRECTION = {True: "maximize", False: "minimize"}


@dataclass(frozen=True)
class Asked:
    """A trial to run: its number, and the value of every dimension."""

    number: int
    params: dict[str, Any]


class Study:
    """A study of Optuna's. The file is appended to after each trial, so it survives a kill.

    One process at a time may use it: `SearchSweeper` holds a lock.
    """

    def __init__(
        self,
        file: Path,
        dimensions: Sequence[Dimension],
        objectives: Sequence[str],
        *,
        seed: int = 0,
        limits: Mapping[str, float] | None = None,
    ) -> None:
        """Opens the study, or begins it.

        Args:
            file: a journal of Optuna's.
            dimensions: what each trial chooses.
            objectives: names of `pqd.objectives.OBJECTIVES`.
            seed: of the sampler.
            limits: what an objective has to keep to, by name: at most, or at least where more is
                better. They may change where a search goes on.

        Raises:
            UserError: there is no objective, a limit is on none, the file cannot be written, or it
                holds another search or something else.
        """
        self.dimensions, self.objectives, self.file = dimensions, list(objectives), file
        self.seed, self.limits = seed, dict(limits or {})
        if not objectives:
            raise UserError(f"objectives=[] is empty; give some of {', '.join(OBJECTIVES)}")
        if other := sorted(set(self.limits) - set(self.objectives)):
            raise UserError(
                f"hydra.sweeper.limits.{other[0]}: the objectives are {', '.join(self.objectives)}"
            )
        directions = [_DIRECTION[OBJECTIVES[name].maximise] for name in self.objectives]
        self._study = _opened(file, directions)
        what = {
            "objectives": self.objectives,
            "space": {dimension.key: dimension.given for dimension in dimensions},
        }
        _same(file, "", self._study.user_attrs.get("search"), what)
        self._study.set_user_attr("search", what)

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials, by number."""
        return self._study.get_trials(deepcopy=False)

    @property
    def first(self) -> Asked | None:
        """The first trial, None of a search that is only beginning."""
        begun = next((t for t in self.trials if RUN in t.user_attrs), None)
        return Asked(begun.number, begun.params) if begun else None

    @property
    def ended(self) -> dict[int, str]:
        """The names of the folders of all trials that ended, by number."""
        over = (t for t in self.trials if t.state.is_finished())
        return {t.number: t.user_attrs[FOLDER] for t in over}

    def spelled(self, params: Params) -> dict[str, str]:
        """Returns the overrides of a trial, by key."""
        return {d.key: d.spell(params[d.key]) for d in self.dimensions}

    def check(self, run: str) -> None:
        """Sees to it that the first trial, now of the hash `run`, still is the same run.

        Raises:
            UserError: a setting that decides its outcome has changed.
        """
        before = next(t.user_attrs[RUN] for t in self.trials if RUN in t.user_attrs)
        if before != run:
            raise UserError(
                f"{self.file} is of a search with other settings; choose another hydra.sweep.dir, "
                "or give the same settings to go on"
            )

    def ask(self, batch: int, most: int) -> list[Asked]:
        """Returns the trials to run next: those that a killed process left, and new ones.

        The sampler's random numbers depend on the seed and the trial's number alone, so that a
        search that was killed tries what it would have tried anyway.

        Args:
            batch: how many to have under way at once.
            most: trials of the whole search.

        Returns:
            None of either when the search is at its end.
        """
        running = [t for t in self.trials if t.state == TrialState.RUNNING]
        known = len(self.trials)
        batches = -(-known // batch) if running else known // batch + 1
        new = range(known, min(batches * batch, most))
        begun = [self._begin(t.number, optuna.Trial(self._study, t._trial_id)) for t in running]
        return [*begun, *(self._begin(number, None) for number in new)]

    def _begin(self, number: int, trial: optuna.Trial | None) -> Asked:
        with _quiet():
            self._study.sampler = optuna.samplers.TPESampler(
                seed=self.seed + number,
                constant_liar=True,  # the trials of one batch keep apart
                constraints_func=_exceeded if self.limits else None,
            )
            trial = trial or self._study.ask()
            assert trial.number == number
            return Asked(number, {d.key: d.draw(trial) for d in self.dimensions})

    def note(self, number: int, run: str, folder: str) -> None:
        """Notes the hash of a trial's configuration, and the name of its folder."""
        trial = self._handle(number)
        trial.set_user_attr(RUN, run)
        trial.set_user_attr(FOLDER, folder)

    def noted(self, number: int) -> bool:
        """Whether an earlier start has noted a trial: it was killed then, or its batch failed."""
        return RUN in self.trials[number].user_attrs

    def tell(self, number: int, result: Result | None) -> None:
        """Notes what came of a trial; None is one that died."""
        trial = self._handle(number)
        found = values(result, self.objectives) if result else None
        if result:
            stages = [stage for stage in result.stages if stage.stage in result.order]
            reached = {s.stage: s.validation_accuracy for s in stages}
            trial.set_user_attr(REACHED, reached)
        if found and self.limits:
            trial.set_user_attr(LIMITS, self._excess(found))
        stopped = result is not None and result.status == "stopped"
        with _quiet():
            if found:
                self._study.tell(number, found)
            else:
                self._study.tell(number, state=TrialState.PRUNED if stopped else TrialState.FAIL)

    def _handle(self, number: int) -> optuna.Trial:
        with _quiet():
            return optuna.Trial(self._study, self.trials[number]._trial_id)

    def _excess(self, found: Sequence[float]) -> list[float]:
        """Returns by how much the values of a trial exceed each limit."""
        by_name = dict(zip(self.objectives, found, strict=True))
        return [excess(name, by_name[name], limit) for name, limit in self.limits.items()]

    @property
    def complete(self) -> list[FrozenTrial]:
        """The trials that completed."""
        return [t for t in self.trials if t.state == TrialState.COMPLETE]

    @property
    def frontier(self) -> list[FrozenTrial]:
        """The trials within all limits that no other one dominates."""
        import moocore

        inside = [t for t in self.complete if all(x <= 0 for x in self._excess(t.values))]
        if not inside:
            return []
        up = [OBJECTIVES[name].maximise for name in self.objectives]
        kept = moocore.is_nondominated([t.values for t in inside], maximise=up, keep_weakly=True)
        return [trial for trial, keep in zip(inside, kept, strict=True) if keep]


def _opened(file: Path, directions: list[str]) -> optuna.Study:
    """Opens the journal, making it where there is none.

    Raises:
        UserError: it cannot be written, or is something else.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _mend(file)
        with _quiet():
            return optuna.create_study(
                storage=optuna.storages.JournalStorage(JournalFileBackend(str(file))),
                study_name=NAME,
                directions=directions,
                load_if_exists=True,
            )
    except OSError as error:
        raise UserError(f"the search's file cannot be written: {one_line(error)}") from None
    except Exception as error:  # of what is no journal
        raise UserError(f"{file} is not the file of a search: {one_line(error)}") from None


def _mend(file: Path) -> None:
    """Undoes what Optuna does not get over: its lock, and half a line.

    A process that was killed while it wrote leaves the lock, a disk that was full the line.
    """
    Path(f"{file}.lock").unlink(missing_ok=True)
    if not file.exists():
        return
    with file.open("r+b") as journal:
        content = journal.read()
        if _LOG.startswith(content[: len(_LOG)]):  # else it is another program's
            journal.truncate(content.rfind(b"\n") + 1)


def _same(file: Path, where: str, before: Any, now: Any) -> None:
    """Sees to it that a file is of this very search."""
    if before is None or before == now:
        return
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            inside = f"{where}.{key}".lstrip(".")
            _same(file, inside, before.get(key, "absent"), now.get(key))
    raise UserError(
        f"{file} is of another search: {where} was {before}, now it is {now}; choose another "
        "hydra.sweep.dir"
    )


def _exceeded(trial: FrozenTrial) -> Sequence[float]:
    return trial.user_attrs.get(LIMITS, [])


def _quiet() -> Any:
    """Keeps Optuna's remarks on what it calls experimental from the user."""
    return warnings.catch_warnings(action="ignore")
