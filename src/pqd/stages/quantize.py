"""INT8 quantization-aware training."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx, nn

from pqd.config import Config, StageSettings
from pqd.constraints import attach
from pqd.constraints.fake_quant import activation_fake_quants
from pqd.constraints.lsq import LearnedSteps
from pqd.constraints.quantization import FakeQuantization
from pqd.options import option
from pqd.stages.base import Context, Digest, Stage
from pqd.stages.registry import STAGES

QUANTIZERS = {"abs_max": FakeQuantization, "lsq": LearnedSteps}


@dataclass
class QuantizeSettings(StageSettings):
    """INT8 weights per output channel, activations per tensor as the target wants them."""

    epochs: int = option(40, low=1)
    lr: float = option(0.01, above=0)
    # codes of b bits lie in [-(2^(b-1) - 1), 2^(b-1) - 1]; fewer make the package smaller and run
    # in the same INT8 kernels
    weight_bits: int = option(8, low=2, high=8, tag="w")
    # abs_max: scales follow the largest weights and calibrated ranges; lsq: they are trained
    quantizer: str = option("abs_max", choices=tuple(QUANTIZERS))
    calibration_batches: int = option(16, low=1)  # before each epoch until ranges are fixed
    freeze_observers: float = option(0.5, low=0, high=1)  # share of the epochs; then ranges are
    freeze_batch_norm: float = option(0.75, low=0, high=1)  # then batch-norm statistics are, too
    # at the end, estimate these anew from calibration_batches; meant for few bits
    reestimate_batch_norm: bool = False


@STAGES.register
class Quantize(Stage):
    """Attaches fake-quantizers, and calibrates them before each epoch until they are frozen.

    Ranges come from a few batches run in eval mode rather than from observers inside the training
    step, so that a step costs nothing for them.
    """

    name = "quantize"
    letter = "q"
    settings = QuantizeSettings
    version = 4
    colour = "#b279a2"

    def __init__(self, context: Context) -> None:
        """Plans until when ranges and batch-norm statistics follow the network."""
        super().__init__(context)
        # At least one calibration, however short the stage; learned steps only start from it.
        learned = self.options.quantizer == "lsq"
        followed = 1 if learned else round(self.options.freeze_observers * context.epochs)
        self.calibrated_epochs = max(1, followed)
        self.batch_norm_epochs = round(self.options.freeze_batch_norm * context.epochs)

    @classmethod
    def check(cls, config: Config) -> None:
        """Sees to it that the targets share a scheme.

        Raises:
            UserError: they do not.
        """
        config.target.scheme()

    @classmethod
    def identity(
        cls, config: Config, keys: Mapping[str, str], digest: Digest | None
    ) -> dict[str, Any]:
        """Counts what the targets want, not which they are."""
        return super().identity(config, keys, digest) | {"scheme": asdict(config.target.scheme())}

    @classmethod
    def notes(cls, config: Config) -> list[str]:
        """Warns of 8-bit weights where the CPU's INT8 sums saturate."""
        from pqd.measure import has_vnni

        settings = config.of(cls.name)
        assert isinstance(settings, QuantizeSettings)
        if settings.weight_bits < 8 or has_vnni():
            return []
        return [
            "this CPU has no VNNI: the 16-bit sums of its INT8 kernels saturate with 8-bit "
            "weights, which can cost accuracy here; quantize=int7 (7-bit weights) avoids it"
        ]

    def attach(self, model: fx.GraphModule) -> None:
        """Inserts fake-quantizers of weights and activations."""
        constraint = QUANTIZERS[self.options.quantizer]
        scheme = self.context.config.target.scheme()
        attach(model, constraint(2 ** (self.options.weight_bits - 1) - 1, scheme))

    def before_step(self, model: fx.GraphModule, step: int) -> None:
        """At the start of an epoch: calibrates, or freezes batch norm, if it is time to."""
        epoch, within = divmod(step, len(self.context.batches))
        if within:
            return
        if epoch < self.calibrated_epochs:
            epoch_batches = self.context.batches.epoch(self.context.seed + epoch)
            drawn = islice(epoch_batches, self.options.calibration_batches)
            calibrate(model, (batch.images for batch in drawn))
            model.train()
        if epoch >= self.batch_norm_epochs:
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()

    def finish(self, model: fx.GraphModule) -> dict[str, Any]:
        """Estimates batch-norm statistics anew, where that is asked for.

        With few bits they lag behind: weights jump between codes from step to step (Nagel et al.
        2022, arXiv 2203.11086, section 3.2).
        """
        if self.options.reestimate_batch_norm:
            batches = self.context.batches.epoch(self.context.seed + self.context.epochs)
            drawn = islice(batches, self.options.calibration_batches)
            reestimate_batch_norm(model, (batch.images for batch in drawn))
        return {}


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Sets every activation range to the mean of its batches' ranges; leaves eval mode on.

    Args:
        model: a network with fake-quantizers; activations pass unquantized meanwhile.
        batches: images, [B, C, H, W] each; at least one batch.
    """
    model.eval()
    quantizers = activation_fake_quants(model).values()
    for quantizer in quantizers:
        quantizer.observing = True
    for images in batches:
        model(images)
    for quantizer in quantizers:
        quantizer.end_observation()


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Sets batch-norm statistics to the mean of those of some batches; leaves eval mode on.

    Args:
        model: the network as it will be deployed, but for its batch norms.
        batches: images, [B, C, H, W] each; at least one batch.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    usual = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch then averages over all batches alike
        norm.train()
    for images in batches:
        model(images)
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
        norm.eval()
