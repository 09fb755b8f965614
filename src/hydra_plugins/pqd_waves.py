"""Hydra's sweeper, launching in waves (`pqd.sweep.waves`). Hydra imports it at every start."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, Quote, QuotedString
from hydra.core.utils import JobReturn
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from pqd import schema, sweep
from pqd.errors import UserError, choices, one_line
from pqd.identity import wanted
from pqd.result import FILE, check_free
from pqd.sweep.waves import waves

log = logging.getLogger(__name__)


class WaveSweeper(BasicSweeper):
    """The basic sweeper, except that jobs start in waves, and a failed one stops no later wave.

    Every job is checked before the first one starts.
    """

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Launches every combination of the swept values.

        Args:
            arguments: the overrides of the command line.

        Returns:
            The jobs' results, wave by wave.

        Raises:
            UserError: there is no job, one of them cannot run, none could be launched, or one died.
            Exception: the first that a job raised, once all jobs have ended.
        """
        assert self.config is not None
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        sweep.announce([])  # none of what may be in the folder is this sweep's
        folder = Path(self.config.hydra.sweep.dir)  # resolves the time in it, for all jobs
        overrides = OverridesParser.create(loader).parse_overrides(
            [*self._parse_config(), *arguments]
        )
        check_swept(overrides, loader)
        [jobs] = self.split_arguments(overrides, max_batch_size=None)
        composed = [loader.load_sweep_config(self.config, job) for job in jobs]
        settings = [schema.parse(_without_hydra(cfg)) for cfg in composed]
        order = waves([wanted(job) for job in settings])
        ranked = list(chain.from_iterable(order))
        names = [_subfolder(composed[job], rank) for rank, job in enumerate(ranked)]
        folders = [folder / name for name in names]
        if len(set(folders)) < len(folders):
            raise UserError(
                "hydra.sweep.subdir names one folder for several jobs; ${hydra.job.num} in it "
                "keeps them apart"
            )
        for job, path in zip(ranked, folders, strict=True):
            check_free(path, settings[job])
        sweep.announce(folders)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")

        first, died = 0, False
        results: list[Sequence[JobReturn]] = []
        for wave in order:
            placed = [[*jobs[job], _fixed(names[rank])] for rank, job in enumerate(wave, first)]
            try:
                results.append(self._launch(placed, first))
            except Exception as error:  # the launcher's: a job died and left no result
                line = one_line(error, named=True)
                if not any((path / FILE).exists() for path in folders):
                    sweep.announce([])
                    raise UserError(f"no job could be launched; {line}") from error
                log.warning("a job died; the others go on. %s", line)
                log.debug("", exc_info=True)
                died = True
            first += len(wave)
        for result in chain.from_iterable(results):
            _ = result.return_value  # raises what the job raised
        if died:  # an error even if all folders hold results, from an earlier start
            raise UserError("a job died; the same command goes on from where it was")
        return results

    def _launch(self, jobs: list[list[str]], first: int) -> Sequence[JobReturn]:
        """Launches a wave, whose jobs are numbered from `first`, and waits for all of them."""
        assert self.launcher is not None
        if hasattr(self.launcher, "_EXECUTOR"):  # submitit's launchers
            with _patient():
                return self.launcher.launch(jobs, initial_job_idx=first)
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


def check_swept(overrides: list[Override], loader: ConfigLoader) -> None:
    """Refuses sweeps without a job, where Hydra would launch nothing and call it a success.

    Raises:
        UserError: a glob matches nothing, or its key is no config group; a range is empty, or is
            an interval.
    """
    for override in overrides:
        if not override.is_sweep_override():
            continue
        group, given = override.key_or_group, override.get_value_string()
        if not override.is_discrete_sweep():
            raise UserError(
                f"{group}={given} has no end of values; list some, or give a range(...)"
            )
        options = loader.get_group_options(group)
        if isinstance(override.value(), Glob) and not options:
            groups = [name for name in loader.list_groups("") if name != "hydra"]
            raise choices(f"{group}={given}: config group", group, groups)
        if not list(override.sweep_string_iterator()):
            if options:
                raise choices(group, given, options)
            raise UserError(f"{group}={given} is empty, so there is no job to launch")


def _without_hydra(cfg: DictConfig) -> DictConfig:
    """What a job gets to see of its configuration."""
    task = cfg.copy()
    with read_write(task), open_dict(task):
        del task["hydra"]
    return task


def _subfolder(cfg: DictConfig, number: int) -> str:
    """The name of a job's folder, which Hydra makes up only when the job starts."""
    with read_write(cfg), open_dict(cfg):
        cfg.hydra.job.num = number
    return str(cfg.hydra.sweep.subdir)


def _fixed(subfolder: str) -> str:
    """The override that gives a job its folder, also if there is a time in the name."""
    return f"hydra.sweep.subdir={QuotedString(subfolder, Quote.single).with_quotes()}"


@contextmanager
def _patient() -> Iterator[None]:
    """Where submitit's launcher gives up, because a job died, waits for the jobs beside it."""
    import submitit

    original = submitit.AutoExecutor.map_array
    submitted: list[Any] = []

    def noting(*arguments: Any, **options: Any) -> Any:
        submitted.extend(original(*arguments, **options))
        return list(submitted)

    submitit.AutoExecutor.map_array = noting  # type: ignore[method-assign]
    try:
        yield
    except Exception:
        for job in submitted:
            job.wait()
        raise
    finally:
        submitit.AutoExecutor.map_array = original  # type: ignore[method-assign]
