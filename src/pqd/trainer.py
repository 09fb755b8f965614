"""Trains one stage after another: what is between the cache's entries of a run."""

import hashlib
import logging
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from pqd import data, devices, training
from pqd.artifact import MODEL, Subject
from pqd.config import Config
from pqd.constraints import constraints
from pqd.constraints.fusion import fused
from pqd.constraints.integers import round_biases
from pqd.constraints.mask import sparsity
from pqd.errors import UserError, naming, one_line
from pqd.export.deploy import deployed
from pqd.files import write_tensors
from pqd.forecast import Forecast
from pqd.graph.view import unsupported_layers
from pqd.networks import Blueprint, load_network, save_network, structure_of
from pqd.progress import StageProgress
from pqd.stages import STAGES, Context, Stage, spell, spelled

UNSUPPORTED = "%s: neither pruned nor quantized, as only nn.Conv2d and nn.Linear are: %s"
MODULES = "modules.safetensors"  # a stage's own, beside the network

_EXPORTED: set[str] = set()  # structures, as that takes seconds

log = logging.getLogger(__name__)


class Trainer:
    """What all stages of a run are trained with: images, device and the dense network's form."""

    def __init__(self, config: Config) -> None:
        """Loads the images.

        Raises:
            UserError: the device, the images or the precision are not to be had, or a backbone of
                one's own cannot be built.
        """
        self.config = config
        self.device = devices.resolve_device(config.train.device)
        self.precision = devices.resolve_precision(config.train.precision, self.device)
        self.dataset = data.load_dataset(config.dataset)
        _, height, _, channels = self.dataset.train.images.shape
        classes, normalised = len(self.dataset.classes), (self.dataset.mean, self.dataset.std)
        blueprint = Blueprint(config.backbone, classes, channels, height, *normalised)
        self.blueprint = blueprint.examined()
        self.batches = data.TrainBatches(
            self.dataset, config.dataset.augment, config.train.batch_size, self.device
        )
        self._forecast: Forecast | None = None  # of the first stage that is trained
        # As what is deployed in the end, but that a stage knows no later ones.
        order = spell([name for name, kind in STAGES.items() if kind.letter])
        backbone = config.backbone.name
        self._deployed = Subject(Path(), self.dataset, backbone, order, config.export)

    @property
    def facts(self) -> dict[str, str]:
        """What training depends on beside the configuration, for `pqd.identity.stage_keys`."""
        own = self.blueprint.structure
        return {"images": self.dataset.fingerprint} | ({"structure": own} if own else {})

    def epochs(self, kind: type[Stage]) -> int:
        """Returns for how many epochs a stage will train; 0 where attaching is all there is."""
        stage = self._stage(kind, None)
        return stage.context.epochs if stage.trains else 0

    def rehearse(self, order: Sequence[type[Stage]]) -> None:
        """Finds out before any training whether the backbone bears the order and deployment.

        Raises:
            UserError: it does not, or something that a stage needs is not there.
        """
        model = self.blueprint.build()
        self._try_export(model)
        for kind in order:
            with naming(f"stage {kind.name}"):
                self._stage(kind, None).attach(model)
        deployed(model)
        if left := ", ".join(unsupported_layers(model)):
            log.warning(UNSUPPORTED, self.config.backbone.name, left)

    def _try_export(self, model: fx.GraphModule) -> None:
        """Exports a dense network that is not one of ours: who knows what its layers are.

        Raises:
            UserError: PyTorch cannot.
        """
        backbone = self.config.backbone
        ours = "." not in backbone.builder and backbone.builder != "timm"
        if ours or (structure := structure_of(model)) in _EXPORTED:
            return
        try:
            with tempfile.TemporaryDirectory() as folder:
                self._deployed.write(model, Path(folder, MODEL))
        except UserError:
            raise
        except Exception as error:  # of other people's exporters and layers
            log.debug("%s cannot be exported", backbone.name, exc_info=True)
            cause: BaseException = error
            while cause.__cause__ is not None:  # torch's own message tells of steps, not of layers
                cause = cause.__cause__
            raise UserError(
                f"{backbone.name} cannot be exported to ONNX: {one_line(cause, named=True)}"
            ) from error
        _EXPORTED.add(structure)

    def train(
        self,
        kind: type[Stage],
        parent: Path | None,
        folder: Path,
        *,
        baseline: Path | None,
        checkpoint: Path,
        on_epoch: Callable[[dict[str, float]], None],
        left: int = 1,
    ) -> dict[str, Any]:
        """Trains a stage and saves the network.

        Args:
            kind: of the stage.
            parent: the folder of the network to start from; None builds the dense one.
            folder: receives the network and the stage's own modules.
            left: epochs of this stage and of those that follow it.
            baseline: the folder of the dense network, once there is one.
            checkpoint: see `pqd.training.fit`.
            on_epoch: called with the metrics of every epoch.

        Returns:
            The figures of a `pqd.result.StageResult`, but for its name and cache entry.

        Raises:
            UserError: training diverged, or the checkpoint cannot be written.
        """
        stage = self._stage(kind, baseline)
        torch.manual_seed(stage.context.seed)
        model = load_network(parent) if parent else self.blueprint.build()
        stage.attach(model)
        stage.start(model)
        history = self._fit(stage, model, left, checkpoint, on_epoch) if stage.trains else []
        further = stage.finish(model)
        for constraint in constraints(model):
            further |= constraint.settle(model, self._deployed.write)
        _check_finite(model, f"{kind.name}.lr")  # the last step may have been too far
        accuracy = self.validation_accuracy(model)  # `finish` may have changed it
        round_biases(model.cpu())
        save_network(model, self.blueprint, folder)
        if own := stage.modules.state_dict():
            write_tensors(folder / MODULES, own)
        return {
            "epochs": len(history),
            # Of all epochs, also of those that an earlier process trained.
            "seconds": round(sum(epoch["seconds"] for epoch in history), 2),
            "loss": history[-1].get("loss") if history else None,
            "validation_accuracy": accuracy,
            "sparsity": sparsity(model),
            "history": history,
            **further,
        }

    def validation_accuracy(self, model: nn.Module) -> float:
        """Returns the accuracy of a network on the validation split, in %."""
        model.to(self.device)
        size, split = self.config.train.eval_batch_size, self.dataset.validation
        return training.evaluate(model, data.eval_batches(split, self.dataset, size, self.device))

    def _stage(self, kind: type[Stage], baseline: Path | None) -> Stage:
        seed, epochs = stage_seed(self.config.seed, kind.name), self.config.epochs(kind.name)
        torch.manual_seed(seed)  # of the weights of its own modules
        parts = (self.config, self.dataset, self.batches, self.device, epochs, seed, baseline)
        return kind(Context(*parts))

    def _fit(
        self,
        stage: Stage,
        model: fx.GraphModule,
        left: int,
        checkpoint: Path,
        on_epoch: Callable[[dict[str, float]], None],
    ) -> list[dict[str, float]]:
        epochs = stage.context.epochs
        with StageProgress(stage.name, epochs, stage.context.steps) as shown:

            def before_step(step: int) -> None:
                if self._forecast is None:  # not of a stage of which no step was left to be trained
                    self._forecast = _forecast(self, left, shown)
                self._forecast.step(step)
                shown.step(step)
                stage.before_step(model, step)
                for constraint in reversed(constraints(model)):  # bits before steps of their width
                    constraint.before_step(model, step, stage.context.steps, self._deployed.write)

            def after_epoch(metrics: dict[str, float]) -> None:
                shown.epoch(metrics)
                assert self._forecast
                self._forecast.epoch(metrics)
                on_epoch(metrics)

            network = fused(model.to(self.device))  # shares the layers, which have to stay in place
            return training.fit(
                model,
                self.batches,
                lambda _, batch: stage.loss(network, batch),
                modules=stage.modules,
                settings=self.config.train,
                epochs=epochs,
                lr=stage.options.lr,
                lr_key=f"{stage.name}.lr",
                seed=stage.context.seed,
                validate=self.validation_accuracy,
                before_step=before_step,
                on_epoch=after_epoch,
                checkpoint=checkpoint,
            )


def _forecast(trainer: Trainer, epochs: int, shown: StageProgress) -> Forecast:
    gpu = trainer.device.type == "cuda"
    wait = partial(torch.cuda.synchronize, trainer.device) if gpu else lambda: None
    budget, steps = None if gpu else trainer.config.budget, len(trainer.batches)
    stages = 1 + len(spelled(trainer.config.order.name))
    return Forecast(epochs, steps, budget=budget, stages=stages, wait=wait, console=shown.console)


def _check_finite(model: nn.Module, lr_key: str) -> None:
    if not all(tensor.isfinite().all() for tensor in model.state_dict().values()):
        raise UserError(f"the weights are not finite any more; a lower {lr_key} usually helps")


def stage_seed(seed: int, name: str) -> int:
    """Returns the seed of a stage of a run; the same wherever in the order the stage stands."""
    return int(hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()[:12], 16)
