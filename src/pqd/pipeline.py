"""One run: the baseline, the stages of the order, then the artifact and its figures.

Each of these is an entry of the cache, named by the hash of all it depends on; the network passes
from one to the next as the files of that entry. What is there already is not done again.
"""

import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from pqd import data, devices, tracking, training
from pqd.cache import Cache, Entry, file_digest, key_of
from pqd.config import Config
from pqd.constraints.mask import sparsity
from pqd.constraints.network import WEIGHTS, Blueprint, load_network, load_weights, save_network
from pqd.errors import UserError
from pqd.export import artifact
from pqd.export.deploy import deployed, round_biases
from pqd.graph.view import unsupported_layers
from pqd.measure import has_vnni, provenance
from pqd.progress import StageProgress, make_console, stage_table
from pqd.record import FILE, check_free, new_record, read_json, write_json
from pqd.stages import STAGES, Distill, Prune, Quantize, Stage, frozen

ENTRY_RECORD = "record.json"

log = logging.getLogger(__name__)


def run(config: Config, folder: Path) -> dict[str, Any]:
    """Runs one order and writes everything into `folder`.

    Args:
        config: the checked configuration.
        folder: receives `result.json` from the start and, when the run completes, the files that
            `pqd.export.artifact` makes.

    Returns:
        The content of `result.json`.

    Raises:
        UserError: the user's mistake, also written down as the result's reason; or the folder
            holds another run's results.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_free(folder, config)
    record = new_record(config)
    write_json(folder / FILE, record)  # what a run that dies leaves
    start = time.monotonic()
    with tracking.start(config, folder, record["name"]) as tracker:
        try:
            _Run(config, folder, record, tracker).complete()
            record |= {"status": "completed", "reason": None}
        except KeyboardInterrupt:
            record |= {"status": "interrupted", "reason": "stopped by Ctrl-C"}
            raise
        except BaseException as error:
            record |= {"status": "failed", "reason": str(error) or type(error).__name__}
            raise
        finally:
            record["provenance"]["seconds"] = round(time.monotonic() - start, 2)
            write_json(folder / FILE, record)
            shown = (folder / name for name in (artifact.MODEL, artifact.PACKAGE, FILE))
            tracker.finish(record, [path for path in shown if path.exists()])
    make_console().print(stage_table(record))
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
        self.device = devices.resolve_device(config.train.device)
        self.precision = devices.resolve_precision(config.train.precision, self.device)
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
        if "quantize" in self.config.order.stages and self.config.quantize.weight_bits == 8:
            _warn_without_vnni()
        self.baseline = last = self.stage("baseline", None)
        for name in self.config.order.stages:
            last = self.stage(name, last)
        self.measure(last)

    def stage(self, name: str, parent: Entry | None) -> Entry:
        """Returns the entry of a stage that follows `parent`, training it if it is not there."""
        with _named(name):
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
            checkpoint = self.cache.checkpoint(key_of(identity))
            entry = self._entry(
                f"{self.record['name']} {name}",
                identity,
                lambda folder: self._train(name, parent, folder, checkpoint),
            )
        shown = {"stage": name, "key": entry.key, "cached": entry.cached}
        self.record["stages"].append(shown | _read_record(entry))
        return entry

    def measure(self, last: Entry) -> None:
        """Makes and measures the artifact of the network in `last`; copies it to the run."""
        baseline, name = self.baseline, self.record["name"]
        dense = artifact.Subject(
            baseline.folder, self.dataset, self.blueprint.backbone.name, "none"
        )
        dense_entry = self._entry(
            f"{name} dense",
            {"dense": baseline.key} | dense.identity(()),
            lambda folder: artifact.make_dense(dense, folder),
        )
        subject = replace(dense, folder=last.folder, order=self.config.order.name)
        runtime = self.config.runtime
        entry = self._entry(
            f"{name} artifact",
            {"dense": dense_entry.key, "network": last.key, "runtime": asdict(runtime)}
            | subject.identity(runtime.names),
            lambda folder: artifact.make(subject, dense_entry.folder, runtime, folder),
        )
        self.record["final"] = _read_record(dense_entry) | _read_record(entry)
        dense_file = dense_entry.folder / artifact.DENSE
        for path in (dense_file, *(p for p in entry.files if p.name != ENTRY_RECORD)):
            shutil.copyfile(path, self.folder / path.name)
            self.record["files"][path.name] = {
                "bytes": path.stat().st_size,
                "sha256": file_digest(path),
            }

    def _entry(
        self, label: str, identity: dict[str, Any], make: Callable[[Path], dict[str, Any]]
    ) -> Entry:
        """Returns a cache entry whose record is what `make` returns."""

        def fill(folder: Path) -> None:
            write_json(folder / ENTRY_RECORD, make(folder))

        return self.cache.get(key_of(identity), label, fill)

    def _train(
        self, name: str, parent: Entry | None, folder: Path, checkpoint: Path
    ) -> dict[str, Any]:
        """Trains a stage, saves the network into `folder` and returns the stage's figures."""
        config, epochs = self.config, getattr(self.config.train.epochs, name)
        seed = stage_seed(config.seed, name)
        if all(stage["cached"] for stage in self.record["stages"]):  # the first to be trained
            self._try_order()
        if parent is None:
            torch.manual_seed(seed)
            model = self.blueprint.build()
        else:
            model = load_network(parent.folder)
        if parent is None and config.baseline.checkpoint:
            load_weights(model, Path(config.baseline.checkpoint))
            return self._finish(model, [], folder)
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
        return self._finish(model, history, folder)

    def _finish(
        self, model: fx.GraphModule, history: list[dict[str, float]], folder: Path
    ) -> dict[str, Any]:
        tensors = model.state_dict().values()
        if not all(t.isfinite().all() for t in tensors):  # the last step may have been too far
            raise UserError("the weights are not finite any more; a lower train.lr usually helps")
        last = history[-1] if history else {}
        accuracy = last.get("validation_accuracy") or self._validation_accuracy(model)
        round_biases(model.cpu())
        save_network(model, self.blueprint, folder)
        return {
            "epochs": len(history),
            # Of all epochs, also of those that an earlier process trained.
            "seconds": round(sum(epoch["seconds"] for epoch in history), 2),
            "loss": last.get("loss"),
            "validation_accuracy": accuracy,
            "sparsity": sparsity(model),
            "history": history,
        }

    def _build(self, name: str, seed: int) -> Stage:
        config, smoothing = self.config, self.config.train.label_smoothing
        if name == "prune":
            steps = config.train.epochs.prune * len(self.batches)
            return Prune(config.prune, smoothing, steps)
        if name == "quantize":
            epochs = config.train.epochs.quantize
            return Quantize(config.quantize, smoothing, self.batches, epochs, seed)
        if name == "distill":
            teacher = self._teacher()
            if not config.distill.cache_logits:
                return Distill(config.distill, smoothing, teacher)
            return Distill(config.distill, smoothing, self._logits(teacher))
        return Stage(smoothing)

    def _teacher(self) -> nn.Module:
        path = self.config.distill.teacher
        teacher = frozen(load_network(Path(path) if path else self.baseline.folder))
        teacher.to(self.device)
        images = next(self.batches.epoch(0)).images
        classes = teacher(images[:1]).shape[1]
        if classes != self.blueprint.classes:
            raise UserError(
                f"distill.teacher={path} has {classes} classes, "
                f"dataset {self.dataset.name} has {self.blueprint.classes}"
            )
        return teacher

    @torch.no_grad()
    def _logits(self, teacher: nn.Module) -> Tensor:
        """Returns the teacher's logits [N, K] of the train split, which is not augmented."""
        size = self.config.train.eval_batch_size
        batches = data.eval_batches(self.dataset.train, self.dataset, size, self.device)
        return torch.cat([teacher(images) for images, _ in batches])

    def _try_order(self) -> None:
        """Finds out before any training whether the backbone bears the order and deployment."""
        model = self.blueprint.build()
        for name in self.config.order.stages:
            if name != "distill":
                with _named(name):
                    self._build(name, 0).attach(model)
        deployed(model)
        if left := unsupported_layers(model):
            log.warning(
                "%s: neither pruned nor quantized, as only nn.Conv2d and nn.Linear are: %s",
                self.config.backbone.name,
                ", ".join(left),
            )

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
            "compile": devices.resolve_compile(train.compile, self.device, self.precision, steps),
        }

    def _settings_identity(self, name: str) -> dict[str, Any]:
        settings = asdict(getattr(self.config, name))
        for option in ("checkpoint", "teacher"):
            if settings.get(option):
                settings[option] = _digest_of(option, Path(settings[option]))
        if name == "distill" and not settings["teacher"]:
            settings["teacher"] = self.baseline.key
        return settings


def _read_record(entry: Entry) -> dict[str, Any]:
    return read_json(entry.folder / ENTRY_RECORD)


def _warn_without_vnni() -> None:
    if not has_vnni():
        log.warning(
            "this CPU has no VNNI: the 16-bit sums of its INT8 kernels saturate with 8-bit "
            "weights, which can cost accuracy here; quantize=int7 (7-bit weights) avoids it"
        )


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
