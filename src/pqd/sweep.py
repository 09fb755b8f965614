"""Around Hydra: a sweep's folder and end, and one clear line for a user's mistake."""

import difflib
import errno
import logging
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, MissingConfigException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pqd.config import Config
from pqd.errors import choices
from pqd.record import FILE, SCHEMA, read_json, write_json

REPORT_SHARE = 0.1  # of a sweep's time that its reports may take; the last one is always made
# What the machine refuses, and the user can mend.
_REFUSALS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR}

log = logging.getLogger(__name__)

_folder: Path | None = None
_jobs: list[Path] | None = None
_job_failed = False
_report_seconds = 0.0  # what this process's last report took


class RememberFolder(Callback):
    """Notes a sweep's folder, which Hydra tells nobody else in the launching process."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Called before the jobs start."""
        global _folder
        _folder = Path(config.hydra.sweep.dir).absolute()


def announce(jobs: list[Path]) -> None:
    """Says which folders the jobs of this sweep have; others may be there from earlier ones."""
    global _jobs
    _jobs = jobs


def launch(main: Callable[[], Any]) -> None:
    """Runs Hydra's main, ends a sweep with its report, and exits; 0 only if all went well."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors arrive here rather than printed by Hydra
    # `kill` is as Ctrl-C, or else joblib's workers would train on without us.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    code = 1
    try:
        main()
        code = 0
    except KeyboardInterrupt:
        _print_error("interrupted; finished stages are kept, the same command goes on from them")
        code = 130
    except Exception as error:
        line = one_line(error)
        if line is None:
            raise
        _print_error(line)
    finally:
        failed = False
        if _folder is not None and _folder.exists() and _jobs != []:
            failed = not _finish(_folder, _jobs, interrupted=code == 130)
    sys.exit(code or int(failed or _job_failed))


def one_line(error: BaseException) -> str | None:
    """Returns what to tell the user of an error, None if it is a bug of ours."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return str(choices(group, option, error.options))
    if isinstance(error, CompactHydraException):
        cause = error.__cause__
        text = f"{error}. {cause}" if isinstance(cause, OmegaConfBaseException) else str(error)
        return " ".join(text.split()) + _nearest_key(text)
    if isinstance(error, OmegaConfBaseException):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in _REFUSALS:
        return f"{error.filename or 'writing'}: {error.strerror}"
    return None


@contextmanager
def job(cfg: DictConfig) -> Iterator[None]:
    """Around one job: a user's mistake is one line, and never without a `result.json`.

    Errors do not reach Hydra, which would print more, but for our own bugs.
    """
    global _job_failed
    try:
        yield
    except Exception as error:
        line = one_line(error)
        if line is None:
            raise
        _print_error(line)
        _job_failed = True
        folder = Path(HydraConfig.get().runtime.output_dir)
        if not (folder / FILE).exists():  # the run had not started
            record = {"schema": SCHEMA, "name": folder.name, "config": OmegaConf.to_container(cfg)}
            end: dict[str, Any] = {"status": "failed", "reason": line, "stages": [], "final": None}
            write_json(folder / FILE, record | end)
    with _harmless("the sweep's report"):
        _after_job()


def _after_job() -> None:
    """Rebuilds the report of the sweep the job is part of, unless that would slow it down."""
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        sweep = Path(hydra.sweep.dir).absolute()
        report = sweep / "report.html"
        since = time.time() - report.stat().st_mtime if report.exists() else math.inf
        if _report_seconds < REPORT_SHARE * since:
            _report(sweep, figures=False)


def _finish(sweep: Path, jobs: list[Path] | None, *, interrupted: bool = False) -> bool:
    """Ends a sweep: names the failed jobs, and makes the report, the table and W&B's summary.

    Args:
        sweep: its folder.
        jobs: the folders of its jobs; None if they are all that are there.
        interrupted: jobs may be under way still, on a cluster.

    Returns:
        Whether all jobs completed.
    """
    from pqd.progress import comparison_table, make_console

    if jobs is None:
        jobs = sorted(path.parent for path in sweep.glob(f"*/{FILE}"))
    if not jobs:
        _print_error(f"no job was launched in {sweep}")
        return False
    results, missing = [], []
    for folder in jobs:
        try:
            results.append(read_json(folder / FILE))
        except (OSError, ValueError):
            missing.append(folder.name)
            continue
        if (status := results[-1]["status"]) == "running" and not interrupted:
            status = "died: killed from outside, out of memory, or its node was lost"
        if status != "completed":
            reason = results[-1]["reason"]
            _print_error(f"{folder.name} {status}" + (f": {reason}" if reason else ""))
    if missing:
        _print_error(f"without a result, {len(missing)} of {len(jobs)} jobs: {', '.join(missing)}")
    completed = [result for result in results if result["status"] == "completed"]
    console = make_console()
    if results:
        with _harmless("the table"):
            console.print(comparison_table(results))
        with _harmless("the sweep's report"):
            _report(sweep)
    if completed:
        with _harmless("the sweep's summary"):
            console.print(_summarize(completed[0], sweep), soft_wrap=True, markup=False)
    line = f"{len(completed)} of {len(jobs)} runs completed; folder: {sweep}"
    console.print(line, soft_wrap=True, markup=False)
    return len(completed) == len(jobs)


def _report(sweep: Path, *, figures: bool = True) -> None:
    global _report_seconds
    from pqd import report

    start = time.monotonic()
    report.build([sweep], sweep, figures=figures)
    _report_seconds = time.monotonic() - start


def _summarize(completed: dict[str, Any], sweep: Path) -> str:
    """Logs the sweep's frontier to W&B, where its runs went; returns the report's verdict."""
    from pqd import tracking
    from pqd.report.load import load
    from pqd.report.view import view

    report = view(load([sweep]))
    config = OmegaConf.to_object(OmegaConf.merge(Config, completed["config"]))
    assert isinstance(config, Config)
    if config.logger.name != "none":
        tracking.log_sweep(config, sweep, report)
    return report.verdict


@contextmanager
def _harmless(what: str) -> Iterator[None]:
    """Around what must not fail a job or a sweep: an error is a line."""
    try:
        yield
    except Exception as error:
        line = " ".join(str(error).split())[:300]
        log.warning("%s failed, the results are complete: %s: %s", what, type(error).__name__, line)
        log.debug("", exc_info=True)


def _nearest_key(text: str) -> str:
    """Returns a hint for a misspelt configuration key that an error message names."""
    match = re.search(r"Could not override '([\w.]+)'", text)
    if match is None:
        return ""
    near = difflib.get_close_matches(match.group(1), list(_keys(Config)), n=1)
    return f" Did you mean {near[0]}?" if near else ""


def _keys(schema: Any, prefix: str = "") -> Iterator[str]:
    for field in fields(schema):
        yield prefix + field.name
        if is_dataclass(field.type):
            yield from _keys(field.type, f"{prefix}{field.name}.")


def _print_error(line: str) -> None:
    print(f"pqd: {line}", file=sys.stderr)
