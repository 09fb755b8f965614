"""The folder of a sweep and its end: which jobs completed, the report, the table, W&B's summary."""

import logging
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from pqd import result
from pqd.errors import one_line
from pqd.result import FILE, Result

REPORT_SHARE = 0.1  # of a sweep's time that its reports may take; the last one is always made
OFFLINE = "*/wandb/offline-run-*"  # in a sweep's folder: runs that W&B keeps there

log = logging.getLogger(__name__)

_place: Path | None = None
_folder: Path | None = None
_jobs: list[Path] | None = None
_report_seconds = 0.0  # what this process's last report took


class RememberFolder(Callback):
    """Notes the folder of a run or sweep, which Hydra tells nobody else in this process."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Called before the folder is made."""
        global _place
        _place = Path(config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Called before the jobs start."""
        global _folder, _place
        _place = _folder = Path(config.hydra.sweep.dir).absolute()


def announce(jobs: list[Path]) -> None:
    """Says which folders the jobs of this sweep have; others may be there from earlier ones."""
    global _jobs
    _jobs = jobs


def place() -> Path | None:
    """Returns the folder of this process's run or sweep, None if it is not known yet."""
    return _place


def finish(*, interrupted: bool) -> bool:
    """Ends this process's sweep, if it launched any job; see `end`.

    Returns:
        Whether all jobs completed; also where there is no sweep.
    """
    if _folder is None or not _folder.exists() or _jobs == []:
        return True
    return end(_folder, _jobs, interrupted=interrupted)


def end(sweep: Path, jobs: list[Path] | None, *, interrupted: bool = False) -> bool:
    """Ends a sweep: names the failed jobs, and makes the report, the table and W&B's summary.

    Args:
        sweep: its folder.
        jobs: the folders of its jobs; None if they are all that are there.
        interrupted: jobs may be under way still, on a cluster.

    Returns:
        Whether all jobs completed, or stopped as their settings say.
    """
    from pqd.progress import place, show
    from pqd.tables import comparison_table

    if jobs is None:
        jobs = sorted(path.parent for path in sweep.glob(f"*/{FILE}"))
    if not jobs:
        print_error(f"no job was launched in {sweep}")
        return False
    results, missing = [], []
    for folder in jobs:
        try:
            results.append(result.read(folder))
        except FileNotFoundError:
            missing.append(folder.name)
            continue
        except (OSError, ValueError) as error:
            print_error(f"the result cannot be read: {one_line(error)}")
            missing.append(folder.name)
            continue
        found = results[-1]
        status = str(found.status)
        if status == "running" and not interrupted:
            status = "died: killed from outside, out of memory, or its node was lost"
        if status not in ("completed", "stopped"):
            print_error(f"{folder.name} {status}" + (f": {found.reason}" if found.reason else ""))
    if missing:
        print_error(f"without a result, {len(missing)} of {len(jobs)} jobs: {', '.join(missing)}")
    completed = [found for found in results if found.status == "completed"]
    stopped = sum(found.status == "stopped" for found in results)
    if results:
        with harmless("the table"):
            show(comparison_table(results))
        with harmless("the sweep's report"):
            build_report(sweep)
            show(f"report: {place(sweep / 'report.html')}")
    if completed:
        with harmless("the sweep's summary"):
            show(_summarize(completed[0], sweep))
    if any(sweep.glob(OFFLINE)):
        show(f"W&B: jobs were offline; upload with: wandb sync {place(sweep)}/{OFFLINE}")
    early = f", {stopped} stopped early" if stopped else ""
    show(f"{len(completed)} of {len(jobs)} runs completed{early}; folder: {sweep}")
    return len(completed) + stopped == len(jobs)


def report_meanwhile(sweep: Path) -> None:
    """Rebuilds the report of a sweep under way, unless that would slow it down."""
    page = sweep / "report.html"
    since = time.time() - page.stat().st_mtime if page.exists() else math.inf
    if _report_seconds < REPORT_SHARE * since:
        build_report(sweep, figures=False)


def build_report(sweep: Path, *, figures: bool = True) -> None:
    """Builds the report of a sweep and notes how long that takes."""
    global _report_seconds
    from pqd import report

    start = time.monotonic()
    report.build([sweep], sweep, figures=figures)
    _report_seconds = time.monotonic() - start


def _summarize(completed: Result, sweep: Path) -> str:
    """Logs the sweep's frontier to W&B, where its runs went; returns the verdict, and where."""
    from pqd import tracking
    from pqd.config import LoggerConfig
    from pqd.report.load import load
    from pqd.report.view import view

    report = view(load([sweep]))
    logger = LoggerConfig(**completed.config["logger"])
    tracked = tracking.log_sweep(logger, sweep, report)
    return "\n".join(filter(None, (report.verdict, tracked)))


@contextmanager
def harmless(what: str) -> Iterator[None]:
    """Around what must not fail a job or a sweep: an error is a line."""
    try:
        yield
    except Exception as error:
        log.warning("%s failed; no result is affected: %s", what, one_line(error, named=True))
        log.debug("", exc_info=True)


def print_error(line: str) -> None:
    """Prints a user's line on stderr."""
    print(f"pqd: {line}", file=sys.stderr)
