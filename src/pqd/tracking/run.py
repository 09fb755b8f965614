"""Weights & Biases: one run per job. Nothing W&B does, or fails to do, can stop or fail the job.

All calls of a run are made by one thread of their own: training never waits for W&B, the first
exception gives one warning and ends the tracking of this run, and the wait at the end is bounded.
"""

import logging
import os
import queue
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from pqd.config import LoggerConfig
from pqd.data import Dataset
from pqd.errors import one_line
from pqd.progress import place
from pqd.result import Result
from pqd.tracking.media import record_predictions
from pqd.tracking.records import (
    last_epochs,
    record_epoch,
    record_result,
    upload_model,
)

if TYPE_CHECKING:
    import wandb

INIT_SECONDS = 20.0  # to reach the server, before the run is logged offline
PROJECT = "pqd"  # where neither an option nor the environment names one
UNREACHABLE = "it could not be reached"
UPLOAD_SECONDS = 60.0  # at a run's end; what is not uploaded by then stays on disk for `wandb sync`
END_SECONDS = INIT_SECONDS + UPLOAD_SECONDS + 15  # a call that takes longer than this hangs
SHUTDOWN_SECONDS = 5.0  # for wandb's service process to end, before it is killed

log = logging.getLogger(__name__)
_unreachable = threading.Event()  # set once: the next runs of this process do not try again


class Tracker:
    """A run in W&B, or nothing at all. A context manager: the run is always finished."""

    def __init__(self, open_run: "Callable[[], tuple[wandb.Run, str | None]] | None") -> None:
        """Starts to open the run in the background, and to say where; None tracks nothing."""
        self._calls: queue.SimpleQueue[Callable[[Any], object] | int] = queue.SimpleQueue()
        self._failed = False
        self._where: str | None = None
        self._logged: set[tuple[str, float]] = set()
        self._before: dict[str, float] = {}  # the last epoch of each stage that an attempt uploaded
        self._thread: threading.Thread | None = None
        if open_run is not None:
            self._thread = threading.Thread(target=self._work, args=(open_run,), daemon=True)
            self._thread.start()

    @property
    def told(self) -> str | None:
        """A line on where the closed run is and how to upload one that is offline."""
        return None if self._failed else self._where

    def epoch(self, stage: str, metrics: dict[str, float], before: int) -> None:
        """Logs an epoch's metrics as `stage/metric`, against `stage/epoch`. Never waits.

        Args:
            stage: its name.
            metrics: see `pqd.training.fit`.
            before: epochs of the stages before it; `epoch` counts on from them.
        """
        self._logged.add((stage, metrics["epoch"]))
        self.call(lambda run: record_epoch(run, stage, metrics, before))

    def finish(self, result: Result, files: list[Path]) -> None:
        """Ends the run with the figures of `result` and the files as one artifact.

        Epochs that were not logged, because the stage came from the cache or an earlier process
        trained them, are logged from the result: the curves are always whole.
        """
        self.call(lambda run: record_result(run, result, self._is_logged))
        if result.status == "completed":
            self.call(lambda run: upload_model(run, result, files))
        self.close(exit_code=0 if result.status in ("completed", "stopped") else 1)

    def predictions(self, dataset: Dataset, file: Path) -> None:
        """Logs what the network makes of the test images.

        Args:
            dataset: with N of them.
            file: their classes as the network sees them, int64 [N], as NumPy saves an array.
        """
        self.call(lambda run: record_predictions(run, dataset, np.load(file)))

    def call(self, function: "Callable[[wandb.Run], object]") -> None:
        """Has the function called with the run, after everything asked for before."""
        if self._thread is not None:
            self._calls.put(function)

    def close(self, exit_code: int) -> None:
        """Finishes the run and waits for that, for a bounded time. Closing again does nothing."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._calls.put(exit_code)
        thread.join(END_SECONDS)
        if thread.is_alive():
            _unreachable.set()
            self._fail(f"no answer within {END_SECONDS:.0f} s")
        if self._failed:
            _end_service()

    def __enter__(self) -> "Tracker":
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Finishes the run as failed, unless it is finished already."""
        self.close(exit_code=1)

    def _work(self, open_run: "Callable[[], tuple[wandb.Run, str | None]]") -> None:
        run, self._where = self._try(open_run) or (None, None)
        if run is not None:
            self._before = self._try(last_epochs, run) or {}
        while not isinstance(call := self._calls.get(), int):
            if not self._failed:
                self._try(call, run)
        if run is not None:
            self._try(run.finish, call)

    def _is_logged(self, stage: str, epoch: float) -> bool:
        return (stage, epoch) in self._logged or epoch <= self._before.get(stage, 0)

    def _try(self, function: Callable[..., Any], *arguments: object) -> Any:
        try:
            return function(*arguments)
        except (Exception, SystemExit) as error:
            if isinstance(error, TimeoutError):
                _unreachable.set()
            self._fail(one_line(error))

    def _fail(self, reason: str) -> None:
        if not self._failed:
            self._failed = True
            log.warning("W&B: %s. The run goes on without it.", _reason(reason))


def track(logger: LoggerConfig, folder: Path, stages: list[str], **job: Any) -> Tracker:
    """Opens a run in the background.

    Args:
        logger: where.
        folder: receives W&B's files, in `wandb/`.
        stages: names of those that will be logged.
        job: further arguments of `wandb.init`.
    """
    if logger.name == "none":
        return Tracker(None)
    try:
        # Imported here and not in the thread: two threads that import at once can meet in modules
        # which are only half there.
        import wandb  # noqa: F401
    except Exception as error:
        log.warning("W&B: %s. The run goes on without it.", _reason(error))
        return Tracker(None)
    return Tracker(lambda: _open(logger, folder, stages, job))


def _open(
    logger: LoggerConfig, folder: Path, stages: list[str], job: dict[str, Any]
) -> tuple[Any, str | None]:
    """Opens a run; returns it and a line on where it is."""
    import wandb

    # Without system statistics, git, requirements and console capture a second run in the same
    # process opens in 0.04 s instead of 0.27 s; result.json has the provenance.
    settings = {  # and not a wandb.Settings, which init would change
        "root_dir": str(folder),
        "init_timeout": INIT_SECONDS,
        "finish_timeout": UPLOAD_SECONDS,
        "finish_timeout_raises": True,
        "silent": True,
        "console": "off",
        "symlink": False,
        "save_code": False,
        "disable_code": True,
        "disable_git": True,
        "label_disable": True,
        "x_disable_meta": True,
        "x_disable_stats": True,
        "x_disable_machine_info": True,
        "x_save_requirements": False,
    }

    def init(mode: str, resume: str | None = "auto") -> Any:
        # An earlier attempt at this job: the new one records everything it had (see `finish`),
        # and with resume="auto" goes on under its id if it was not finished.
        for old in folder.glob("wandb/*run-*"):
            shutil.rmtree(old, ignore_errors=True)
        (folder / "wandb").mkdir(parents=True, exist_ok=True)
        return wandb.init(
            mode=mode,  # type: ignore[arg-type]
            resume=resume,  # type: ignore[arg-type]
            project=logger.project or os.environ.get("WANDB_PROJECT") or PROJECT,
            entity=logger.entity,
            reinit="create_new",
            settings=settings,
            **job,
        )

    mode, why = _mode(logger.mode)
    try:
        run = init(mode)
    except Exception as error:
        if mode == "offline":
            raise
        _unreachable.set()
        log.warning("W&B: %s. Logging offline; upload with `wandb sync`.", _reason(error))
        # The service holds the id of the attempt that failed.
        run, mode, why = init("offline", resume=None), "offline", UNREACHABLE
    run.define_metric("epoch", hidden=True)  # of all stages, for panels over the whole run
    for stage in stages:
        run.define_metric(f"{stage}/epoch", hidden=True)
        run.define_metric(f"{stage}/*", step_metric=f"{stage}/epoch")
    if mode == "online":
        return run, f"W&B: {run.url}"
    if mode == "disabled":
        return run, None
    sync = f"wandb sync {place(Path(run.dir).parent)}"
    return run, f"W&B: offline, {why}; upload with: {sync}"


def _mode(wanted: str) -> tuple[str, str]:
    """Where to log, and why not online: never a prompt, and online only where there is a login."""
    import wandb

    # Also silences what wandb prints outside of a run. It reads WANDB_MODE and wandb's own file.
    mode = wandb.setup(wandb.Settings(silent=True)).settings.mode
    if wanted == "auto" and mode in ("offline", "dryrun", "disabled"):
        return ("disabled" if mode == "disabled" else "offline"), "as WANDB_MODE says"
    if wanted == "offline":
        return "offline", "as logger.mode says"
    if _unreachable.is_set():
        return "offline", UNREACHABLE
    if wandb.login(prompt=False, verify=False):
        return "online", ""
    if wanted == "online":
        log.warning("W&B: not logged in (`wandb login`). Logging offline; see `wandb sync`.")
    return "offline", "not logged in (`wandb login`)"


def _end_service() -> None:
    """Ends wandb's service process, for which the interpreter's exit would wait without bound."""
    import psutil

    def teardown() -> None:
        import wandb

        with suppress(Exception, SystemExit):
            wandb.teardown()

    thread = threading.Thread(target=teardown, daemon=True)
    thread.start()
    thread.join(SHUTDOWN_SECONDS)  # it still writes what it has
    if thread.is_alive():
        for child in psutil.Process().children():
            with suppress(psutil.Error):
                if child.name() == "wandb-core":
                    child.kill()
        thread.join(SHUTDOWN_SECONDS)


def _reason(error: Exception | str) -> str:
    return one_line(error).rstrip(".")
