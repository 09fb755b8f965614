"""A stage, a constraint, a loss and a runtime that exist in the tests alone.

This is all that an extension writes: nothing in `src/` or `conf/` names any of them.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from pqd.config import StageSettings
from pqd.constraints import CONSTRAINTS, Constraint, attach
from pqd.constraints.fake_quant import WeightFakeQuant
from pqd.constraints.mask import Mask
from pqd.constraints.parametrization import attach as parametrize
from pqd.options import option
from pqd.runtimes import REFERENCE, RUNTIMES
from pqd.runtimes import register as register_runtime
from pqd.stages import STAGES, Stage
from pqd.stages.losses import LOSSES, Loss


class Bound(nn.Module):
    """Parametrization of a weight: clipped to a learned bound, which is not decayed."""

    def __init__(self, weight):
        super().__init__()
        self.bound = nn.Parameter(weight.detach().abs().max().view(1, 1, 1, 1))

    def no_weight_decay(self):
        return ["bound"]

    def forward(self, weight):
        return torch.minimum(torch.maximum(weight, -self.bound), self.bound)


class Bounded(Constraint):
    """Clips the weights of one layer."""

    name = "bounded"

    def __init__(self, layer):
        self.layer = layer

    def attach(self, model):
        layer = model.get_submodule(self.layer)
        parametrize(layer, Bound(layer.weight), before=(Mask, WeightFakeQuant))

    def describe(self, model):
        return {"layer": self.layer}

    @classmethod
    def rebuild(cls, description):
        return cls(description["layer"])


@dataclass
class ToySettings(StageSettings):
    epochs: int = option(2, low=1)
    lr: float = option(0.01, above=0)
    layer: str = "conv2"
    strength: float = option(0.1, low=0, tag="x")


class Toy(Stage):
    """Bounds a layer, and trains a projection of its own that must predict the brightness."""

    name = "toy"
    letter = "x"
    settings = ToySettings

    def __init__(self, context):
        super().__init__(context)
        self.modules["projection"] = nn.Linear(10, 1)

    def attach(self, model):
        attach(model, Bounded(self.options.layer))

    def loss(self, model, batch):
        logits = model(batch.images)
        task_loss = self.task_loss(logits, batch)
        brightness = self.modules["projection"](logits).flatten()
        toy_loss = F.mse_loss(brightness.float(), batch.images.mean((1, 2, 3)))
        loss = task_loss + self.options.strength * toy_loss
        return {"loss": loss, "task_loss": task_loss, "toy_loss": toy_loss, "logits": logits}


@dataclass
class ToyLossSettings:
    power: float = option(2.0, above=0)


class ToyLoss(Loss):
    """Distance of the logits themselves."""

    name = "toy_loss"
    settings = ToyLossSettings

    def __call__(self, logits, targets, labels):
        return (logits.float() - targets).abs().pow(self.options.power).mean()


class ToyRuntime(type(RUNTIMES[REFERENCE])):
    """The reference under another name."""

    name, title = "toy_runtime", "Toy Runtime"


def register():
    """Makes pqd know them."""
    STAGES.register(Toy)
    CONSTRAINTS.register(Bounded)
    LOSSES.register(ToyLoss)
    register_runtime(ToyRuntime())


def unregister():
    """Makes pqd forget them."""
    del STAGES["toy"], CONSTRAINTS["bounded"], LOSSES["toy_loss"], RUNTIMES["toy_runtime"]
