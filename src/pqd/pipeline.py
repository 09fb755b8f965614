"""One run: the baseline, the stages of the order, then the artifact and its figures.

Each of these is an entry of the cache, named by the hash of all it depends on; the network passes
from one to the next as the files of that entry. What is there already is not done again.
"""

import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from pqd import artifact, result, tracking
from pqd.cache import Cache, Entry
from pqd.config import BASELINE, Config
from pqd.deployment import deploy
from pqd.errors import naming
from pqd.identity import stage_keys, wanted
from pqd.measure import provenance
from pqd.progress import place, show
from pqd.result import Provenance, Result, StageResult
from pqd.stages import STAGES, Stage, spelled
from pqd.steps import Steps, figures
from pqd.tables import ending, stage_table
from pqd.trainer import Trainer


class _Stopped(Exception):
    """The run ends here, as its settings say; what is there so far is its result."""


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
    with ExitStack() as stack:
        tracker = None
        try:
            tracker = stack.enter_context(tracking.start(config, folder, found.name))
            _Run(config, folder, found, tracker).complete()
            found.status = "completed"
        except _Stopped as reason:
            found.status, found.reason = "stopped", str(reason)
        except KeyboardInterrupt as error:
            found.status, found.reason = "interrupted", str(error) or "stopped by Ctrl-C"
            raise
        except SystemExit:  # of submitit, which has asked for the job to be started again
            found.status, found.reason = "interrupted", "stopped at its time limit, or preempted"
            raise
        except BaseException as error:
            found.status, found.reason = "failed", str(error) or type(error).__name__
            raise
        finally:
            found.provenance.seconds = round(time.monotonic() - start, 2)
            result.write(folder, found)
            shown = (folder / name for name in (artifact.MODEL, artifact.PACKAGE, result.FILE))
            if tracker:
                tracker.finish(found, [path for path in shown if path.exists()])
    show(stage_table(found))
    if found.status == "completed":
        assert tracker is not None
        for line in ending(found, folder, tracker.told):
            show(line)
    return found


class _Run:
    """What all steps of a run share."""

    def __init__(
        self, config: Config, folder: Path, found: Result, tracker: tracking.Tracker
    ) -> None:
        self.config, self.folder, self.found, self.tracker = config, folder, found, tracker
        self.trainer = trainer = Trainer(config)
        # With the cache off a run keeps its stages to itself, and still resumes from them.
        own = folder / "stages"
        self.cache = Cache(Path(config.cache.dir) if config.cache.enabled else own)
        self.steps = Steps(self.cache, found.name, wanted(config))
        train = replace(config.train, device=trainer.device.type, precision=trainer.precision)
        self.keys = stage_keys(replace(config, train=train), trainer.facts)
        self.order = [STAGES[BASELINE], *spelled(config.order.name)]
        self.epochs = {kind.name: trainer.epochs(kind) for kind in self.order}

    def complete(self) -> None:
        """Runs every stage, then makes the artifact, filling the result on the way."""
        device, precision = str(self.trainer.device), self.trainer.precision
        trained = {"started": self.found.provenance.started, "device": device}
        self.found.provenance = Provenance(**provenance() | trained, precision=precision)
        for kind in self.order:
            for note in kind.notes(self.config):
                self.found.warn(note)
        self._announce()
        if self.config.dry_run:
            self._rehearse()
        last: Entry | None = None
        for kind in self.order:
            with naming(f"stage {kind.name}"):
                last = self.stage(kind, last)
            self._go_on()
        assert last is not None
        dataset, dense = self.trainer.dataset, self.cache.folder / self.keys[BASELINE]
        made = deploy(self.config, self.steps, dataset, (dense, last), self.folder, self.found)
        self.tracker.predictions(dataset, made.folder / artifact.PREDICTIONS)

    def _announce(self) -> None:
        """Says what is going to be trained, and what will be written and where."""
        epochs = ", ".join(f"{name} {count}" for name, count in self.epochs.items() if count)
        show(f"{self.found.name}: {f'epochs: {epochs}' if epochs else 'nothing to train'}")
        files = f"{artifact.MODEL}, {artifact.PACKAGE} and {result.FILE}"
        stages = place(self.cache.folder)
        show(f"writes {files} to {place(self.folder)}, finished stages to {stages}")

    def _rehearse(self) -> NoReturn:
        """Tries the whole order on an untrained network, and says what is in the cache."""
        self.trainer.rehearse(self.order)
        there = [name for name, key in self.keys.items() if (self.cache.folder / key).is_dir()]
        raise _Stopped(
            f"dry run: nothing is trained; in the cache: {', '.join(there) or 'nothing'}"
        )

    def _go_on(self) -> None:
        """Stops the run where the last stage's accuracy is too low to go on."""
        last = self.found.stages[-1]
        least, accuracy = self.config.stop_below.get(last.stage), last.validation_accuracy
        if least is not None and accuracy is not None and accuracy < least:
            raise _Stopped(
                f"after {last.stage} the validation accuracy is {accuracy:.2f} %, below "
                f"stop_below.{last.stage}={least:g}"
            )

    def stage(self, kind: type[Stage], parent: Entry | None) -> Entry:
        """Returns the entry of a stage that follows `parent`, training it if it is not there."""
        key = self.keys[kind.name]
        before = sum(stage.epochs for stage in self.found.stages)

        def make(folder: Path) -> dict[str, Any]:
            if all(stage.cached for stage in self.found.stages):  # the first to be trained
                self.trainer.rehearse(self.order)
            return self.trainer.train(
                kind,
                parent.folder if parent else None,
                folder,
                left=sum(list(self.epochs.values())[len(self.found.stages) :]),
                baseline=self.cache.folder / self.keys[BASELINE] if parent else None,
                checkpoint=self.cache.checkpoint(key),
                on_epoch=lambda metrics: self.tracker.epoch(kind.name, metrics, before),
            )

        entry = self.steps.entry(kind.name, key, make)
        facts = {"stage": kind.name, "key": key, "cached": entry.cached} | figures(entry)
        self.found.stages.append(result.decode(StageResult, facts, str(entry.folder)))
        return entry
