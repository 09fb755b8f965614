"""INT8 quantization-aware training."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pqd import data
from pqd.config import Config, ExportConfig, StageSettings
from pqd.constraints import attach
from pqd.constraints.bits.allocation import WIDTHS, code_max_of
from pqd.constraints.bits.measured import loss_increases
from pqd.constraints.fake_quant import activation_fake_quants
from pqd.constraints.lsq import LearnedSteps
from pqd.constraints.package_size import PackageSize
from pqd.constraints.quantization import FakeQuantization
from pqd.errors import UserError
from pqd.options import option
from pqd.stages.base import Context, Digest, Stage
from pqd.stages.registry import STAGES

NORMS = nn.BatchNorm1d, nn.BatchNorm2d
_LEARNED = "lsq"
QUANTIZERS = ("abs_max", _LEARNED)
_TRIED_ON = 512  # images of the validation split that each layer is tried on, at each width


@dataclass
class QuantizeSettings(StageSettings):
    """INT8 weights per output channel, activations per tensor as the target wants them."""

    epochs: int = option(40, low=1)
    lr: float = option(0.01, above=0)
    # codes of b bits lie in [-(2^(b-1) - 1), 2^(b-1) - 1]; fewer make the package smaller and run
    # in the same INT8 kernels
    weight_bits: int = option(8, low=2, high=8, tag="w")
    # at most so large a package (model.pqd) at the end of the run, in KiB: each layer gets 2 to
    # weight_bits bits, so that the validation loss rises least (see `pqd.constraints.package_size`)
    size_kib: float | None = option(None, above=0, axis="size in KiB", tag="kib")
    # abs_max: scales follow the largest weights and calibrated ranges; lsq: they are trained
    quantizer: str = option("abs_max", choices=QUANTIZERS)
    # the learning rate of lsq's steps is so many times that of the weights; 1 in the paper
    step_lr: float = option(1.0, above=0)
    calibration_batches: int = option(16, low=1)  # before each epoch until ranges are fixed
    freeze_observers: float = option(0.5, low=0, high=1)  # share of epochs; then ranges are fixed
    freeze_batch_norm: float = option(0.75, low=0, high=1)  # likewise batch-norm statistics
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
        learned = self.options.quantizer == _LEARNED
        followed = 1 if learned else round(self.options.freeze_observers * context.epochs)
        self.calibrated_epochs = max(1, followed)
        self.batch_norm_epochs = round(self.options.freeze_batch_norm * context.epochs)
        self.size: PackageSize | None = None
        if self.options.size_kib is not None:
            self.size = PackageSize(self.options.size_kib, self.options.weight_bits)

    @classmethod
    def check(cls, config: Config) -> None:
        """Sees to it that the targets share a scheme, and that a size leaves bits to choose.

        Raises:
            UserError: they do not.
        """
        config.target.scheme()
        settings = config.of(cls.name)
        assert isinstance(settings, QuantizeSettings)
        if settings.size_kib is not None and settings.weight_bits == WIDTHS[0]:
            raise UserError(
                f"quantize.size_kib={settings.size_kib:g} chooses between 2 and "
                "quantize.weight_bits bits; give it more than weight_bits=2, or leave one out"
            )

    @classmethod
    def identity(
        cls, config: Config, keys: Mapping[str, str], digest: Digest | None
    ) -> dict[str, Any]:
        """Counts what the targets want, not which they are, and the form that a size is kept in.

        The learning rate of steps counts where there are any.
        """
        found = super().identity(config, keys, digest) | {"scheme": asdict(config.target.scheme())}
        settings = config.of(cls.name)
        assert isinstance(settings, QuantizeSettings)
        if settings.quantizer != _LEARNED:
            del found[f"{cls.name}.step_lr"]
        if settings.size_kib is None or config.export == ExportConfig():
            return found  # a key of before forms counted stays
        return found | {"export": asdict(config.export)}

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
        code_max = code_max_of(self.options.weight_bits)
        scheme = self.context.config.target.scheme()
        if self.options.quantizer == _LEARNED:
            attach(model, LearnedSteps(code_max, scheme, self.options.step_lr))
        else:
            attach(model, FakeQuantization(code_max, scheme))
        if self.size is not None:
            attach(model, self.size)

    def before_step(self, model: fx.GraphModule, step: int) -> None:
        """At the start of an epoch: calibrates, or freezes batch norm, if it is time to."""
        epoch, within = divmod(step, len(self.context.batches))
        if within:
            return
        if epoch < self.calibrated_epochs:
            epoch_batches = self.context.batches.epoch(self.context.seed + epoch)
            drawn = islice(epoch_batches, self.options.calibration_batches)
            calibrate(model, (batch.images for batch in drawn))
            if self.size is not None and step == 0:
                self.size.learn(model, loss_increases(model, self._validation_loss))
            model.train()
        if epoch >= self.batch_norm_epochs:
            for module in model.modules():
                if isinstance(module, NORMS):
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
    def _validation_loss(self, model: nn.Module) -> float:
        """Returns the mean cross-entropy of some images of the validation split."""
        context = self.context
        split = context.dataset.validation
        split = split.take(torch.arange(0, len(split), -(-len(split) // _TRIED_ON)))
        size = context.config.train.eval_batch_size
        losses = [
            F.cross_entropy(model(images).float(), labels, reduction="sum")
            for images, labels in data.eval_batches(split, context.dataset, size, context.device)
        ]
        return float(torch.stack(losses).sum()) / len(split)


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
    norms = [module for module in model.modules() if isinstance(module, NORMS)]
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
