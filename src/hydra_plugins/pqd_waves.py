"""Hydra's sweeper, launching in waves (`pqd.waves`). Hydra imports it at every start."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from omegaconf import OmegaConf

from pqd.waves import entries, waves


class WaveSweeper(BasicSweeper):
    """The basic sweeper, except that jobs start in waves, and a failed one stops no later wave."""

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Launches every combination of the swept values.

        Args:
            arguments: the overrides of the command line.

        Returns:
            The jobs' results, wave by wave.

        Raises:
            Exception: the first that a job raised, once all jobs have ended.
        """
        assert self.config is not None
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        overrides = OverridesParser.create(loader).parse_overrides(
            [*self._parse_config(), *arguments]
        )
        [jobs] = self.split_arguments(overrides, max_batch_size=None)
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        wanted = [entries(loader.load_sweep_config(self.config, job)) for job in jobs]

        first = 0
        results: list[Sequence[JobReturn]] = []
        crash: Exception | None = None
        for wave in waves(wanted):
            try:
                results.append(self._launch([jobs[i] for i in wave], first))
            except Exception as error:  # the launcher's: a job died and left no result
                crash = crash or error
            first += len(wave)
        for result in chain.from_iterable(results):
            _ = result.return_value  # raises what the job raised
        if crash is not None:
            raise crash
        return results

    def _launch(self, jobs: list[list[str]], first: int) -> Sequence[JobReturn]:
        """Launches a wave, whose jobs are numbered from `first`."""
        assert self.launcher is not None
        settings = getattr(self.launcher, "joblib", None)
        if settings is None:
            return self.launcher.launch(jobs, initial_job_idx=first)
        from joblib import effective_n_jobs  # slow to import

        # joblib limits each worker to its share of the cores, so have no more workers than jobs.
        most = settings["n_jobs"]
        settings["n_jobs"] = min(effective_n_jobs(most), len(jobs))
        try:
            return self.launcher.launch(jobs, initial_job_idx=first)
        finally:
            settings["n_jobs"] = most
