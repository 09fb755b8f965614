"""Hydra's sweeper that searches with Optuna (`pqd.search`). Hydra imports it at every start."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn
from omegaconf import OmegaConf

from hydra_plugins.pqd_waves import Planned, WaveSweeper, reraise
from pqd import result
from pqd.config import RuntimeConfig
from pqd.errors import UserError
from pqd.identity import run_hash
from pqd.locks import held
from pqd.stages import spelled
from pqd.sweep import announce

if TYPE_CHECKING:
    from pqd.search.space import Dimension
    from pqd.search.study import Asked, Study


class SearchSweeper(WaveSweeper):
    """Chooses the swept values batch by batch, from what came of the batches before.

    It goes through the launchers and the cache as any sweep does. A command that was killed goes
    on when it is given again with the same `hydra.sweep.dir`.
    """

    def __init__(
        self,
        max_batch_size: int | None = None,
        params: dict[str, str] | None = None,
        **settings: Any,
    ) -> None:
        """Takes the settings of conf/hydra/sweeper/search.yaml; `sweep` checks them."""
        super().__init__(max_batch_size, params)
        self.given = settings

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Runs `n_trials` trials, those of an earlier start among them, and shows the best.

        Args:
            arguments: the overrides of the command line.

        Returns:
            The jobs' results, wave by wave.

        Raises:
            UserError: see `WaveSweeper.sweep`; or a setting is not accepted, all trials of a
                batch failed, or the folder holds another search, or one that is under way.
            Exception: the first that a job raised, once all jobs of its batch have ended.
        """
        from pqd.search import settings
        from pqd.search.space import space

        self.settings = settings.parse(self.given)
        overrides = self.parse(arguments)
        dimensions = space(overrides)
        searched = {dimension.key for dimension in dimensions}
        [[fixed]] = self.split_arguments(
            [o for o in overrides if o.get_key_element() not in searched], max_batch_size=None
        )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"the sweep cannot write to {self.folder}: {error.strerror}") from None
        try:
            with held(Path(f"{self.settings.storage}.search.lock"), None):
                return self._search(dimensions, fixed)
        except TimeoutError:
            raise UserError(f"another process is at the search in {self.folder}") from None

    def _search(
        self, dimensions: "Sequence[Dimension]", fixed: list[str]
    ) -> list[Sequence[JobReturn]]:
        from pqd.progress import show
        from pqd.search.study import Study
        from pqd.search.table import frontier_table

        assert self.config is not None
        cfg = self.loader.load_sweep_config(self.config, fixed)
        if cfg.dry_run:
            raise UserError("a search learns nothing from dry_run=true; try it on a single run")
        if "latency_ms" in cfg.objectives:
            runtime = OmegaConf.to_object(cfg.runtime)
            assert isinstance(runtime, RuntimeConfig)
            runtime.first("objectives=latency_ms")
        search = self.settings
        study = Study(
            Path(search.storage),
            dimensions,
            cfg.objectives,
            seed=search.seed,
            limits=search.limits,
        )
        if first := study.first:
            study.check(run_hash(self._job(study, first, fixed).settings))
        results: list[Sequence[JobReturn]] = []
        while asked := study.ask(search.batch, search.n_trials):
            jobs = [self._job(study, trial, fixed) for trial in asked]
            tried = {trial.number for trial in asked if study.noted(trial.number)}
            for trial, job in zip(asked, jobs, strict=True):
                study.note(trial.number, run_hash(job.settings), job.subfolder)
            self.earlier = [self.folder / name for name in study.ended.values()]
            done, _ = self.run(jobs)  # what died is told of, and the search goes on
            results += done
            outcomes = [_result(self.folder / job.subfolder) for job in jobs]
            well = any(found and found.status in ("completed", "stopped") for found in outcomes)
            for trial, outcome in zip(asked, outcomes, strict=True):
                if well or trial.number in tried:
                    study.tell(trial.number, outcome)
            reraise(done)  # given again, the command goes on with other trials
            if not well:
                raise UserError(
                    "no trial of the last batch completed, so the search stops; the same command "
                    "tries each of them once more"
                )
        folders = [self.folder / name for name in study.ended.values()]
        announce(folders)  # all that there are, also where nothing was left to do
        found = {n: _result(self.folder / name) for n, name in study.ended.items()}
        show(frontier_table(study, found))
        return results

    def total(self, jobs: int) -> int:
        """Returns how many trials the search has."""
        return self.settings.n_trials

    def _job(self, study: "Study", trial: "Asked", fixed: list[str]) -> Planned:
        """Composes the job of a trial, with the accuracies below which it is to stop."""
        from pqd.search.stopping import floors

        given = study.spelled(trial.params)
        searched = ",".join(given)
        overrides = [*fixed, *(f"{k}={v}" for k, v in given.items()), f"searched=[{searched}]"]
        overrides += [f"+limits.{name}={limit}" for name, limit in study.limits.items()]
        job = self.plan(overrides, given)
        job.number = trial.number
        if (margin := self.settings.margin) is not None:
            stages = [stage.name for stage in spelled(job.settings.order.name)]
            least = floors(study, trial.params, stages, margin)
            job.overrides += [f"+stop_below.{stage}={floor}" for stage, floor in least.items()]
        return job


def _result(folder: Path) -> result.Result | None:
    """The result in a job's folder, None of one that died before there was any."""
    try:
        return result.read(folder)
    except (OSError, ValueError):
        return None
