"""INT8 quantization-aware training."""

from collections.abc import Iterable
from itertools import islice

import torch
from torch import Tensor, fx, nn

from pqd.config import QuantizeConfig
from pqd.constraints.fake_quant import activation_fake_quants
from pqd.constraints.placement import insert_fake_quants
from pqd.stages.base import Stage
from pqd.training import Batches


class Quantize(Stage):
    """Attaches fake-quantizers, and calibrates them before each epoch until they are frozen.

    Ranges come from a few batches run in eval mode rather than from observers inside the training
    step, so that a step costs nothing for them.
    """

    name = "quantize"
    version = 4

    def __init__(
        self,
        settings: QuantizeConfig,
        label_smoothing: float,
        batches: Batches,
        epochs: int,
        seed: int,
    ) -> None:
        """Takes the training batches, which calibration draws from with `seed`."""
        super().__init__(label_smoothing)
        self.settings = settings
        self.batches = batches
        self.seed = seed
        # At least one calibration, however short the stage.
        self.calibrated_epochs = max(1, round(settings.freeze_observers * epochs))
        self.batch_norm_epochs = round(settings.freeze_batch_norm * epochs)

    def attach(self, model: fx.GraphModule) -> None:
        """Inserts fake-quantizers of weights and activations."""
        insert_fake_quants(model, 2 ** (self.settings.weight_bits - 1) - 1)

    def before_step(self, model: fx.GraphModule, step: int) -> None:
        """At the start of an epoch: calibrates, or freezes batch norm, if it is time to."""
        epoch, within = divmod(step, len(self.batches))
        if within:
            return
        if epoch < self.calibrated_epochs:
            epoch_batches = self.batches.epoch(self.seed + epoch)
            drawn = islice(epoch_batches, self.settings.calibration_batches)
            calibrate(model, (batch.images for batch in drawn))
            model.train()
        if epoch >= self.batch_norm_epochs:
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()


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
