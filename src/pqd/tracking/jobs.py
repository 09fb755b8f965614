"""What W&B's runs are called and hold from their start: one per job, and one per sweep."""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig

from pqd.config import BASELINE, Config, LoggerConfig
from pqd.stages import spelled
from pqd.tracking.records import record_sweep
from pqd.tracking.run import Tracker, track

if TYPE_CHECKING:
    from pqd.report.view import Report


def start(config: Config, output_dir: Path, name: str) -> Tracker:
    """Opens the W&B run of one job, grouped with the other jobs of its sweep.

    Args:
        config: the job's resolved configuration, sent as it is.
        output_dir: the job's own folder; W&B's files go to `output_dir/wandb`. Without
            `logger.group` the group is the folder's sweep, if it is in one.
        name: the run's name, as shown.
    """
    names = [config.order.name, config.backbone.name, config.dataset.name, f"seed{config.seed}"]
    given = config.logger.tags or os.environ.get("WANDB_TAGS", "").split(",")
    labels = dict.fromkeys(filter(None, map(str.strip, [*names, *given])))
    return track(
        config.logger,
        output_dir.resolve(),
        [BASELINE, *(stage.name for stage in spelled(config.order.name))],
        name=name,
        group=config.logger.group or _sweep_of(output_dir),
        job_type="compress",
        tags=[label[:64] for label in labels],  # W&B takes no longer ones
        config=dataclasses.asdict(config) | _launched(),
    )


def _launched() -> dict[str, Any]:
    """The experiment and the overrides that a run was started with; nothing outside Hydra."""
    if not HydraConfig.initialized():
        return {}
    hydra = HydraConfig.get()
    experiment = hydra.runtime.choices.get("experiment")
    return {"experiment": experiment, "overrides": list(hydra.overrides.task)}


def log_sweep(logger: LoggerConfig, sweep_dir: Path, report: "Report") -> str | None:
    """Logs a sweep as one summary run: the table `frontier`, plots, the verdict, the report.

    Args:
        logger: of any of the sweep's jobs.
        sweep_dir: the sweep's folder; its report.html, report.md and points.csv are uploaded.
        report: what the report says.

    Returns:
        where that run is, see `Tracker.told`.
    """
    tracker = track(
        logger,
        sweep_dir.resolve(),
        [],
        name=f"{sweep_dir.resolve().name} summary",
        group=logger.group or sweep_dir.resolve().name,
        job_type="sweep-summary",
        tags=["summary"],
        config={"sweep": sweep_dir.resolve().name},
    )
    with tracker:
        tracker.call(lambda run: record_sweep(run, sweep_dir, report))
        tracker.close(exit_code=0)
    return tracker.told


def _sweep_of(folder: Path) -> str | None:
    """The name of the sweep's folder that a job's is in: Hydra writes multirun.yaml there."""
    above = folder.resolve().parents
    return next((parent.name for parent in above if (parent / "multirun.yaml").exists()), None)
