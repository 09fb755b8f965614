"""Unstructured sparsity: a mask on a weight, and where the zeros go."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from pqd.constraints.base import CONSTRAINTS, Constraint
from pqd.constraints.fake_quant import WeightFakeQuant
from pqd.constraints.parametrization import attach, find, value_before

log = logging.getLogger(__name__)


class Mask(nn.Module):
    """Parametrization of a weight: zero where the mask is False.

    A product: `torch.where` takes twice as long on a CPU.
    """

    mask: Tensor

    def __init__(self, weight: Tensor) -> None:
        """Starts with a mask that keeps all of `weight` (any shape)."""
        super().__init__()
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        """Returns `weight` with its pruned entries zero; same shape."""
        return (weight * self.mask).add_(0.0)  # -0.0 + 0.0 = 0.0


@CONSTRAINTS.register
class Masks(Constraint):
    """A mask on the weight of each of some layers, before any fake-quantizer that is there."""

    name = "mask"

    def __init__(self, layers: Iterable[str]) -> None:
        """Takes the names of the layers."""
        self.layers = list(layers)

    def attach(self, model: fx.GraphModule) -> None:
        """Starts with masks that keep every weight."""
        attach_masks(model.get_submodule(name) for name in self.layers)

    def describe(self, model: fx.GraphModule) -> dict[str, Any]:
        """Names the layers."""
        return {"layers": self.layers}

    @classmethod
    def rebuild(cls, description: dict[str, Any]) -> "Masks":
        """Returns the masks of a description."""
        return cls(description["layers"])


def attach_masks(layers: Iterable[nn.Module]) -> None:
    """Puts a `Mask` on the weight of each layer, before any fake-quantizer that is there."""
    for layer in layers:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        attach(layer, Mask(layer.weight), before=WeightFakeQuant)


def masks(model: nn.Module) -> dict[str, Mask]:
    """Returns the masks of a network by layer name."""
    return find(model, Mask)


@torch.no_grad()
def set_masks(
    model: nn.Module, sparsity: float, scope: str, left: Mapping[str, Tensor] | None = None
) -> None:
    """Prunes the smallest weights by magnitude; what is pruned already stays pruned.

    A layer that would lose all its weights, and with it what the network has learned, keeps the
    largest one of each output instead, where as many weights are kept at all.

    Args:
        model: a network with masks attached.
        sparsity: share of zeros to reach among all masked weights, in [0, 1).
        scope: `global` ranks all weights together, `layer` each layer's by themselves.
        left: by layer which weights count, bool; others belong to channels that are removed.
    """
    found = masks(model)
    counted = {
        name: torch.ones_like(mask.mask).flatten(1) if left is None else left[name].flatten(1)
        for name, mask in found.items()
    }
    values = {name: value_before(model.get_submodule(name), Mask) for name in found}
    # The stored weight under a False entry may drift by momentum; ranked below 0 it stays pruned.
    magnitudes = {
        name: torch.where(mask.mask, values[name].abs(), -1.0).flatten(1)
        for name, mask in found.items()
    }
    kept = _largest(magnitudes, counted, sparsity, scope)
    while lost := [name for name, keep in kept.items() if not keep.any()]:
        spared = {name: m.clone() for name, m in magnitudes.items()}
        for name in lost:
            best = spared[name].amax(1, keepdim=True)
            spared[name].masked_fill_((spared[name] == best) & (best >= 0), torch.inf)
        again = _largest(spared, counted, sparsity, scope)
        if not all(again[name].any() for name in lost):
            log.warning(
                "sparsity %g leaves no weight in %s; a lower one, or prune=layerwise, does",
                sparsity,
                ", ".join(lost),
            )
            break
        magnitudes, kept = spared, again
    for name, mask in found.items():
        now = torch.where(counted[name], kept[name], mask.mask.flatten(1))
        mask.mask.copy_(now.view(mask.mask.shape))


def _largest(
    magnitudes: dict[str, Tensor], counted: dict[str, Tensor], sparsity: float, scope: str
) -> dict[str, Tensor]:
    """Returns which of the counted weights [K, N] of each layer are kept, as bool."""
    ranked = [magnitudes[name][counted[name]] for name in magnitudes]
    if scope == "layer":
        flat = [_keep_largest(weights, sparsity) for weights in ranked]
    else:
        everything = _keep_largest(torch.cat(ranked), sparsity)
        flat = list(everything.split([len(weights) for weights in ranked]))
    kept = {name: torch.zeros_like(where) for name, where in counted.items()}
    for (name, where), keep in zip(counted.items(), flat, strict=True):
        kept[name][where] = keep
    return kept


def sparsity(model: nn.Module) -> float:
    """Returns the share of zeros the masks impose among the masked weights; 0 without masks."""
    found = masks(model).values()
    total = sum(mask.mask.numel() for mask in found)
    kept = sum(int(mask.mask.sum()) for mask in found)
    return (total - kept) / total if total else 0.0


def _keep_largest(magnitudes: Tensor, sparsity: float) -> Tensor:
    """Returns a bool mask [N] with exactly `round(sparsity * N)` False entries.

    Choosing indices rather than a threshold keeps the count exact when magnitudes tie.
    """
    zeros = round(sparsity * magnitudes.numel())
    keep = torch.ones_like(magnitudes, dtype=torch.bool)
    keep[torch.topk(magnitudes, zeros, largest=False, sorted=False).indices] = False
    return keep
