"""One run: the baseline, the stages of the order, then the artifact and its figures.

Each of these is an entry of the cache, named by the hash of all it depends on; the network passes
from one to the next as the files of that entry. What is there already is not done again.
"""

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pqd import artifact, files, result, tracking
from pqd.artifact import Subject
from pqd.cache import Cache, Entry, file_digest, key_of
from pqd.config import BASELINE, Config
from pqd.errors import naming
from pqd.identity import figures_of, stage_keys
from pqd.measure import provenance
from pqd.progress import show, stage_table
from pqd.result import Final, Provenance, Result, StageResult
from pqd.stages import STAGES, Stage, spelled
from pqd.trainer import Trainer

FIGURES = "record.json"  # of a cache entry

log = logging.getLogger(__name__)


def run(config: Config, folder: Path) -> Result:
    """Runs one order and writes everything into `folder`.

    Args:
        config: the checked configuration.
        folder: receives `result.json` from the start and, when the run completes, the files that
            `pqd.artifact` makes.

    Returns:
        What is in `result.json`.

    Raises:
        UserError: the user's mistake, also written down as the result's reason; or the folder
            holds another run's results.
    """
    folder.mkdir(parents=True, exist_ok=True)
    result.check_free(folder, config)
    found = result.started(config)
    result.write(folder, found)  # what a run that dies leaves
    start = time.monotonic()
    with tracking.start(config, folder, found.name) as tracker:
        try:
            _Run(config, folder, found, tracker).complete()
            found.status = "completed"
        except KeyboardInterrupt as error:
            found.status, found.reason = "interrupted", str(error) or "stopped by Ctrl-C"
            raise
        except BaseException as error:
            found.status, found.reason = "failed", str(error) or type(error).__name__
            raise
        finally:
            found.provenance.seconds = round(time.monotonic() - start, 2)
            result.write(folder, found)
            shown = (folder / name for name in (artifact.MODEL, artifact.PACKAGE, result.FILE))
            tracker.finish(found, [path for path in shown if path.exists()])
    show(stage_table(found))
    return found


class _Run:
    """What all steps of a run share."""

    def __init__(
        self, config: Config, folder: Path, found: Result, tracker: tracking.Tracker
    ) -> None:
        self.config, self.folder, self.found, self.tracker = config, folder, found, tracker
        self.trainer = trainer = Trainer(config)
        # With the cache off a run keeps its stages to itself, and still resumes from them.
        self.cache = Cache(Path(config.cache.dir) if config.cache.enabled else folder / "stages")
        train = replace(config.train, device=trainer.device.type, precision=trainer.precision)
        images = {"images": trainer.dataset.fingerprint}
        self.keys = stage_keys(replace(config, train=train), images)
        self.order = [STAGES[BASELINE], *spelled(config.order.name)]

    def complete(self) -> None:
        """Runs every stage, then makes the artifact, filling the result on the way."""
        device, precision = str(self.trainer.device), self.trainer.precision
        trained = {"started": self.found.provenance.started, "device": device}
        self.found.provenance = Provenance(**provenance() | trained, precision=precision)
        for kind in self.order:
            for note in kind.notes(self.config):
                log.warning("%s", note)
        last: Entry | None = None
        for kind in self.order:
            with naming(f"stage {kind.name}"):
                last = self.stage(kind, last)
        assert last is not None
        self.measure(last)

    def stage(self, kind: type[Stage], parent: Entry | None) -> Entry:
        """Returns the entry of a stage that follows `parent`, training it if it is not there."""
        key = self.keys[kind.name]

        def make(folder: Path) -> dict[str, Any]:
            if all(stage.cached for stage in self.found.stages):  # the first to be trained
                self.trainer.rehearse(self.order)
            return self.trainer.train(
                kind,
                parent.folder if parent else None,
                folder,
                baseline=self.cache.folder / self.keys[BASELINE] if parent else None,
                checkpoint=self.cache.checkpoint(key),
                on_epoch=lambda metrics: self.tracker.epoch(kind.name, metrics),
            )

        entry = self._entry(kind.name, key, make)
        figures = {"stage": kind.name, "key": key, "cached": entry.cached} | _figures(entry)
        self.found.stages.append(result.decode(StageResult, figures, str(entry.folder)))
        return entry

    def measure(self, last: Entry) -> None:
        """Makes and measures the artifact of the network in `last`; copies it to the run."""
        config, baseline = self.config, self.keys[BASELINE]
        dense = Subject(
            self.cache.folder / baseline, self.trainer.dataset, config.backbone.name, "none"
        )
        dense_entry = self._entry(
            "dense",
            key_of({"dense": baseline} | dense.identity(())),
            lambda folder: artifact.make_dense(dense, folder),
        )
        subject = replace(dense, folder=last.folder, order=config.order.name)
        identity = subject.identity(config.runtime.names) | figures_of(config)
        entry = self._entry(
            "artifact",
            key_of({"dense": dense_entry.key, "network": last.key} | identity),
            lambda folder: artifact.make(subject, dense_entry.folder, config.runtime, folder),
        )
        figures = _figures(dense_entry) | _figures(entry)
        self.found.final = result.decode(Final, figures, str(entry.folder))
        dense_file = dense_entry.folder / artifact.DENSE_MODEL
        for path in (dense_file, *(p for p in entry.files if p.name != FIGURES)):
            shutil.copyfile(path, self.folder / path.name)
            facts = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
            self.found.files[path.name] = facts

    def _entry(self, label: str, key: str, make: Callable[[Path], dict[str, Any]]) -> Entry:
        """Returns a cache entry whose figures are what `make` returns."""

        def fill(folder: Path) -> None:
            files.write_json(folder / FIGURES, make(folder))

        return self.cache.get(key, f"{self.found.name} {label}", fill)


def _figures(entry: Entry) -> dict[str, Any]:
    return files.read_json(entry.folder / FIGURES)
