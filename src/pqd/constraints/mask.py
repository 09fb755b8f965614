"""Unstructured sparsity: a mask on a weight, and where the zeros go."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from pqd.constraints.base import CONSTRAINTS, Constraint
from pqd.constraints.parametrization import attach, attached, find


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
        attach(layer, Mask(layer.weight), first=True)


def masks(model: nn.Module) -> dict[str, Mask]:
    """Returns the masks of a network by layer name."""
    return find(model, Mask)


@torch.no_grad()
def set_masks(
    model: nn.Module, sparsity: float, scope: str, left: Mapping[str, Tensor] | None = None
) -> None:
    """Prunes the smallest weights by magnitude; what is pruned already stays pruned.

    Args:
        model: a network with masks attached.
        sparsity: share of zeros to reach among all masked weights, in [0, 1).
        scope: `global` ranks all weights together, `layer` each layer's by themselves.
        left: by layer which weights count, bool; others belong to channels that are removed.
    """
    found = masks(model)
    # The stored weight under a False entry may drift by momentum; ranked below 0 it stays pruned.
    counted = {name: True if left is None else left[name] for name in found}
    magnitudes = {
        name: torch.where(mask.mask, _stored(model, name).abs(), -1.0)[counted[name]].flatten()
        for name, mask in found.items()
    }
    if scope == "global":
        everything = torch.cat(list(magnitudes.values()))
        kept = _keep_largest(everything, sparsity).split([m.numel() for m in magnitudes.values()])
    else:
        kept = tuple(_keep_largest(m, sparsity) for m in magnitudes.values())
    for (name, mask), keep in zip(found.items(), kept, strict=True):
        mask.mask[counted[name]] = keep.view_as(mask.mask[counted[name]])


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


def _stored(model: nn.Module, layer: str) -> Tensor:
    parametrizations = attached(model.get_submodule(layer))
    assert parametrizations is not None
    return parametrizations.original
