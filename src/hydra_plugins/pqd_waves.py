"""Hydra's sweeper, launching in waves (`pqd.sweep.waves`). Hydra imports it at every start."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, Quote, QuotedString
from hydra.core.utils import JobReturn
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from pqd import schema, sweep
from pqd.config import Config
from pqd.errors import UserError, choices, one_line
from pqd.identity import swept_suffix
from pqd.result import FILE, check_free
from pqd.sweep.waves import made, wanted, waves

# Of Hydra's launchers, which say with every wave how many jobs they launch.
_LAUNCHERS = (
    "hydra._internal.core_plugins.basic_launcher",
    "hydra_plugins.hydra_joblib_launcher._core",
)

log = logging.getLogger(__name__)

# Takes the place of Hydra's default. Were it chosen in conf/config.yaml, no experiment could choose
# another one.
ConfigStore.instance().store(
    group="hydra/sweeper",
    name="basic",
    node={
        "_target_": "hydra_plugins.pqd_waves.WaveSweeper",
        "max_batch_size": None,
        "params": None,
    },
)


class WaveSweeper(BasicSweeper):
    """The basic sweeper, except that jobs start in waves, and a failed one stops no later wave.

    Every job is checked before the first one starts.
    """

    earlier: Sequence[Path] = ()  # folders of jobs that ended before, in the same sweep

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
        overrides = self.parse(arguments)
        check_swept(overrides, self.loader)
        [jobs] = self.split_arguments(overrides, max_batch_size=None)
        results, died = self.run([self.plan(job, _swept(overrides, job)) for job in jobs])
        reraise(results)
        if died:  # an error even if all folders hold results, from an earlier start
            raise UserError("a job died; the same command goes on from where it was")
        return results

    @property
    def loader(self) -> ConfigLoader:
        """Composes configurations."""
        assert self.hydra_context is not None
        return self.hydra_context.config_loader

    @property
    def folder(self) -> Path:
        """The sweep's folder; asking for it resolves the time in its name, for all jobs."""
        assert self.config is not None
        return Path(self.config.hydra.sweep.dir)

    def parse(self, arguments: list[str]) -> list[Override]:
        """Parses the overrides of the sweeper's configuration and of the command line."""
        sweep.announce([])  # none of what may be in the folder is this sweep's
        _ = self.folder
        if self.params is not None and not isinstance(self.params, Mapping):
            raise UserError(
                f"hydra.sweeper.params={self.params}: settings and what to sweep them over are "
                "accepted, e.g. {seed: '0,1'}"
            )
        parser = OverridesParser.create(self.loader)
        return parser.parse_overrides([*self._parse_config(), *arguments])

    def plan(self, overrides: list[str], swept: Mapping[str, str]) -> "Planned":
        """Composes and checks a job.

        Args:
            overrides: of the job.
            swept: those of its values that are another job's otherwise, by key.
        """
        assert self.config is not None
        cfg = self.loader.load_sweep_config(self.config, overrides)
        _add_suffix(cfg, swept_suffix(swept))
        return Planned(overrides, cfg, schema.parse(_without_hydra(cfg)))

    def run(self, jobs: "Sequence[Planned]") -> tuple[list[Sequence[JobReturn]], bool]:
        """Launches jobs in waves and waits for all of them.

        Args:
            jobs: those without a number are numbered as they are launched.

        Returns:
            Their results, wave by wave, and whether one of them died and left none. What a job
            raised is raised by `reraise`.

        Raises:
            UserError: a job's folder is another's, or cannot be written; or none could be launched.
        """
        assert self.config is not None
        settings = [job.settings for job in jobs]
        wishes = [wanted(each) for each in settings]
        # Numbers, and so folders, do not depend on what is in the cache.
        ranked = [jobs[job] for job in chain.from_iterable(waves(wishes))]
        for rank, job in enumerate(ranked):
            job.number = rank if job.number is None else job.number
        folders = [self.folder / job.subfolder for job in ranked]
        if len(set(folders)) < len(folders):
            raise UserError(
                "hydra.sweep.subdir names one folder for several jobs; ${hydra.job.num} in it "
                "keeps them apart"
            )
        for job, path in zip(ranked, folders, strict=True):
            check_free(path, job.settings)
        try:
            for path in folders:
                path.mkdir(parents=True, exist_ok=True)
            OmegaConf.save(self.config, self.folder / "multirun.yaml")
        except OSError as error:
            raise UserError(f"the sweep cannot write to {one_line(error)}") from None
        sweep.announce([*self.earlier, *folders])
        for name in _LAUNCHERS:
            logging.getLogger(name).addFilter(_counts_nothing)

        first, died = len(self.earlier), False
        results: list[Sequence[JobReturn]] = []
        for wave in waves(wishes, made(settings)):
            log.info(
                "launching %s of %d", _span(first + 1, first + len(wave)), self.total(len(jobs))
            )
            try:
                results.append(self._launch([jobs[job].placed for job in wave], first))
            except Exception as error:  # the launcher's: a job died and left no result
                line = one_line(error, named=True)
                if not any((path / FILE).exists() for path in folders):
                    sweep.announce([])
                    raise UserError(f"no job could be launched in {self.folder}; {line}") from error
                log.warning("a job died; the others go on. %s", line)
                log.debug("", exc_info=True)
                died = True
            first += len(wave)
        return results, died

    def total(self, jobs: int) -> int:
        """Returns how many jobs the whole sweep has, of which `jobs` are run now."""
        return jobs

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


@dataclass
class Planned:
    """A job that is composed and checked."""

    overrides: list[str]
    cfg: DictConfig
    settings: Config
    number: int | None = None  # in the folder's name

    @property
    def subfolder(self) -> str:
        """The name of the job's folder, which Hydra makes up only when the job starts."""
        with read_write(self.cfg), open_dict(self.cfg):
            self.cfg.hydra.job.num = self.number
        return str(self.cfg.hydra.sweep.subdir)

    @property
    def placed(self) -> list[str]:
        """Its overrides, and those that give it its suffix and folder, also if a time is in it."""
        given = {"suffix": self.settings.suffix, "hydra.sweep.subdir": self.subfolder}
        quoted = {k: QuotedString(v, Quote.single).with_quotes() for k, v in given.items()}
        return [*self.overrides, *(f"{k}={v}" for k, v in quoted.items() if given[k])]


def reraise(results: Sequence[Sequence[JobReturn]]) -> None:
    """Raises the first exception that one of the jobs raised, if any did."""
    for result in chain.from_iterable(results):
        _ = result.return_value


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


def _swept(overrides: list[Override], job: list[str]) -> dict[str, str]:
    """The swept values of a job, by key; of a key that is given twice the last counts."""
    last = {override.get_key_element(): override.is_sweep_override() for override in overrides}
    given = {key: value for key, _, value in (text.partition("=") for text in job)}
    return {key.lstrip("+"): value for key, value in given.items() if last[key]}


def _add_suffix(cfg: DictConfig, suffix: str) -> None:
    with read_write(cfg):
        cfg.suffix += suffix


def _span(first: int, last: int) -> str:
    return f"job {first}" if first == last else f"jobs {first} to {last}"


def _counts_nothing(record: logging.LogRecord) -> bool:
    """Passes what a launcher says of single jobs; their number is that of a wave's."""
    return "aunching " not in record.getMessage()


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
