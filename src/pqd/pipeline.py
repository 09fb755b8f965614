"""One run: the baseline, the stages of the order, then the artifact and its figures.

Each of these is an entry of the cache, named by the hash of all it depends on; the network passes
from one to the next as the files of that entry. What is there already is not done again.
"""

import hashlib
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from pqd import data, tracking, training
from pqd.cache import Cache, Entry, file_digest, key_of
from pqd.config import Config
from pqd.constraints.mask import sparsity
from pqd.constraints.network import WEIGHTS, Blueprint, load_network, load_weights, save_network
from pqd.errors import UserError
from pqd.export import artifact
from pqd.measure import provenance
from pqd.progress import StageProgress, make_console, stage_table
from pqd.record import FILE, new_record, read_json, write_json
from pqd.stages import STAGES, Distill, Prune, Quantize, Stage

ENTRY_RECORD = "record.json"


def run(config: Config, folder: Path) -> dict[str, Any]:
    """Runs one order and writes everything into `folder`.

    Args:
        config: the checked configuration.
        folder: receives `result.json` in every case and, when the run completes, the files that
            `pqd.export.artifact` makes.

    Returns:
        The content of `result.json`.

    Raises:
        UserError: the user's mistake, also written down as the result's reason.
    """
    record = new_record(config)
    start = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    with tracking.start(config, folder, record["name"]) as tracker:
        try:
            _Run(config, folder, record, tracker).complete()
            record |= {"status": "completed", "reason": None}
            make_console().print(stage_table(record))
        except KeyboardInterrupt:
            record |= {"status": "interrupted", "reason": "stopped by Ctrl-C"}
            raise
        except BaseException as error:
            record["reason"] = str(error) or type(error).__name__
            raise
        finally:
            record["provenance"]["seconds"] = round(time.monotonic() - start, 2)
            write_json(folder / FILE, record)
            tracker.finish(record, [folder / name for name in record["files"]])
    return record


class _Run:
    """What all steps of a run share."""

    def __init__(
        self, config: Config, folder: Path, record: dict[str, Any], tracker: tracking.Tracker
    ) -> None:
        self.config = config
        self.folder = folder
        self.record = record
        self.tracker = tracker
        self.device = training.resolve_device(config.train.device)
        self.precision = training.resolve_precision(config.train.precision, self.device)
        # With the cache off a run keeps its stages to itself, and still resumes from them.
        self.cache = Cache(Path(config.cache.dir) if config.cache.enabled else folder / "stages")
        self.dataset = data.load_dataset(config.dataset)
        _, height, _, channels = self.dataset.train.images.shape
        classes = len(self.dataset.classes)
        self.blueprint = Blueprint(config.backbone, classes, channels, height)
        self.batches = data.TrainBatches(
            self.dataset, config.dataset.augment, config.train.batch_size, self.device
        )

    def complete(self) -> None:
        """Runs every stage, then makes the artifact, filling the record on the way."""
        self.record["provenance"] |= provenance() | {
            "device": str(self.device),
            "precision": self.precision,
        }
        self.baseline = last = self.stage("baseline", None)
        for name in self.config.order.stages:
            last = self.stage(name, last)
        self.measure(last)

    def stage(self, name: str, parent: Entry | None) -> Entry:
        """Returns the entry of a stage that follows `parent`, training it if it is not there."""
        identity = {
            "stage": name,
            "version": STAGES[name].version,
            "parent": parent.key if parent else asdict(self.config.backbone),
            "dataset": self.dataset.fingerprint,
            "augment": asdict(self.config.dataset.augment),
            "seed": self.config.seed,
            "train": self._train_identity(name),
            "settings": self._settings_identity(name),
        }
        key = key_of(identity)

        def make(folder: Path) -> None:
            with _named(name):
                self._train(name, parent, folder, self.cache.checkpoint(key))

        entry = self.cache.get(key, f"{self.record['name']} {name}", make)
        content = read_json(entry.folder / ENTRY_RECORD)
        self.record["stages"].append({"stage": name, "key": key, "cached": entry.cached} | content)
        return entry

    def measure(self, last: Entry) -> None:
        """Makes the artifact of the network in `last`, measures it, and copies it to the run."""
        subject = artifact.Subject(
            network=last.folder,
            dense=self.baseline.folder,
            dataset=self.dataset,
            runtime=self.config.runtime,
            order=self.config.order.name,
            backbone=self.config.backbone.name,
        )
        key = key_of({"network": last.key, "dense": self.baseline.key} | subject.identity())

        def make(folder: Path) -> None:
            write_json(folder / ENTRY_RECORD, artifact.make(subject, folder))

        entry = self.cache.get(key, f"{self.record['name']} artifact", make)
        self.record["final"] = read_json(entry.folder / ENTRY_RECORD)
        for path in sorted(entry.files):
            if path.name != ENTRY_RECORD:
                shutil.copyfile(path, self.folder / path.name)
                self.record["files"][path.name] = {
                    "bytes": path.stat().st_size,
                    "sha256": file_digest(path),
                }

    def _train(self, name: str, parent: Entry | None, folder: Path, checkpoint: Path) -> None:
        """Trains a stage and fills its entry's folder."""
        config, epochs = self.config, getattr(self.config.train.epochs, name)
        seed = stage_seed(config.seed, name)
        start = time.monotonic()
        if parent is None:
            torch.manual_seed(seed)
            model = self.blueprint.build()
            self._try_order()
        else:
            model = load_network(parent.folder)
        if parent is None and config.baseline.checkpoint:
            load_weights(model, Path(config.baseline.checkpoint))
            self._store(model, [], time.monotonic() - start, folder)
            return
        stage = self._build(name, seed)
        stage.attach(model)
        with StageProgress(name, epochs, epochs * len(self.batches)) as shown:

            def before_step(step: int) -> None:
                shown.step(step)
                stage.before_step(model, step)

            def on_epoch(metrics: dict[str, float]) -> None:
                shown.epoch(metrics)
                self.tracker.epoch(name, metrics)

            history = training.fit(
                model,
                self.batches,
                stage.loss,
                settings=config.train,
                epochs=epochs,
                lr=getattr(config.train.lr, name),
                seed=seed,
                validate=self._validation_accuracy,
                before_step=before_step,
                on_epoch=on_epoch,
                checkpoint=checkpoint,
            )
        self._store(model, history, time.monotonic() - start, folder)

    def _store(
        self, model: fx.GraphModule, history: list[dict[str, float]], seconds: float, folder: Path
    ) -> None:
        """Fills a stage's entry: the network, and the record that `result.json` shows of it."""
        last = history[-1] if history else {}
        accuracy = last.get("validation_accuracy") or self._validation_accuracy(model)
        save_network(model.cpu(), self.blueprint, folder)
        content = {
            "epochs": len(history),
            "seconds": round(seconds, 2),
            "loss": last.get("loss"),
            "validation_accuracy": accuracy,
            "sparsity": sparsity(model),
            "history": history,
        }
        write_json(folder / ENTRY_RECORD, content)

    def _build(self, name: str, seed: int) -> Stage:
        config, smoothing = self.config, self.config.train.label_smoothing
        if name == "prune":
            steps = config.train.epochs.prune * len(self.batches)
            return Prune(config.prune, smoothing, steps)
        if name == "quantize":
            epochs = config.train.epochs.quantize
            return Quantize(config.quantize, smoothing, self.batches, epochs, seed)
        if name == "distill":
            return Distill(config.distill, smoothing, self._teacher())
        return Stage(smoothing)

    def _teacher(self) -> nn.Module:
        path = self.config.distill.teacher
        teacher = load_network(Path(path) if path else self.baseline.folder)
        teacher = teacher.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        teacher.eval().requires_grad_(False)
        images, _ = next(self.batches.epoch(0))
        classes = teacher(images[:1]).shape[1]
        if classes != self.blueprint.classes:
            raise UserError(
                f"distill.teacher={path} has {classes} classes, "
                f"dataset {self.dataset.name} has {self.blueprint.classes}"
            )
        return teacher

    def _try_order(self) -> None:
        """Finds out before any training whether the backbone bears the order's constraints."""
        model = self.blueprint.build()
        for name in self.config.order.stages:
            if name != "distill":
                with _named(name):
                    self._build(name, 0).attach(model)

    def _validation_accuracy(self, model: nn.Module) -> float:
        model.to(self.device)
        size = self.config.train.eval_batch_size
        split = self.dataset.validation
        return training.evaluate(model, data.eval_batches(split, self.dataset, size, self.device))

    def _train_identity(self, name: str) -> dict[str, Any]:
        train, epochs = self.config.train, getattr(self.config.train.epochs, name)
        steps = epochs * len(self.batches)
        return {
            "epochs": epochs,
            "lr": getattr(train.lr, name),
            "batch_size": train.batch_size,
            "momentum": train.momentum,
            "weight_decay": train.weight_decay,
            "label_smoothing": train.label_smoothing,
            "warmup": train.warmup,
            "device": self.device.type,
            "precision": self.precision,
            "compile": training.resolve_compile(train.compile, self.device, steps),
        }

    def _settings_identity(self, name: str) -> dict[str, Any]:
        settings = asdict(getattr(self.config, name))
        for option in ("checkpoint", "teacher"):
            if settings.get(option):
                settings[option] = _digest_of(option, Path(settings[option]))
        if name == "distill" and not settings["teacher"]:
            settings["teacher"] = self.baseline.key
        return settings


def stage_seed(seed: int, name: str) -> int:
    """Returns the seed of a stage of a run; the same wherever in the order the stage stands."""
    return int(hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()[:12], 16)


def _digest_of(option: str, path: Path) -> str:
    path = path / WEIGHTS if path.is_dir() else path
    try:
        return file_digest(path)
    except OSError as error:
        raise UserError(f"{option} {path} cannot be read: {error.strerror}") from None


@contextmanager
def _named(stage: str) -> Iterator[None]:
    """Says in which stage a user's mistake came to light."""
    try:
        yield
    except UserError as error:
        raise UserError(f"stage {stage}: {error}") from error.__cause__
