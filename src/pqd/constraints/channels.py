"""Fewer channels: a network that is smaller, not one with zeros."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from pqd.constraints.base import CONSTRAINTS, Constraint
from pqd.constraints.parametrization import attached
from pqd.graph.channel_walk import Side
from pqd.graph.channels import ChannelGroup
from pqd.graph.strides import rewrite_strides

Kept = Mapping[str, Mapping[Side, list[int]]]


@CONSTRAINTS.register
class KeptChannels(Constraint):
    """Which channels of some layers are kept; attaching it takes the others away.

    Weight scales follow the weights, and activation ranges are per tensor: so it can be attached
    before or after masks and fake-quantizers.
    """

    name = "channels"

    def __init__(self, kept: Kept) -> None:
        """Takes the positions kept, in ascending order, by layer and side (see `Member`)."""
        self.kept = kept
        self._others: dict[tuple[str, Side, torch.device], Tensor] = {}

    @classmethod
    def of(
        cls, model: nn.Module, groups: Iterable[ChannelGroup], keep: Iterable[Tensor]
    ) -> "KeptChannels":
        """Returns what is kept of a network's channels.

        Args:
            model: the network, with all its channels.
            groups: of the network (see `pqd.graph.channels`).
            keep: of each group which units to keep, bool [units].
        """
        there: dict[tuple[str, Side], Tensor] = {}
        for group, kept in zip(groups, keep, strict=True):
            for member in group.members:
                key = member.layer, member.side
                if key not in there:
                    size = _size(model.get_submodule(member.layer), member.side)
                    there[key] = torch.ones(size, dtype=torch.bool)
                there[key][member.index[~kept.cpu()]] = False
        found: dict[str, dict[Side, list[int]]] = {}
        for (layer, side), kept in there.items():
            if not kept.all():
                found.setdefault(layer, {})[side] = kept.nonzero().flatten().tolist()
        return cls(found)

    def attach(self, model: fx.GraphModule) -> None:
        """Takes the other channels away."""
        for name, sides in self.kept.items():
            _shrink(model.get_submodule(name), sides)
        rewrite_strides(model.graph, model, lambda node: None)  # maps are as large as before
        model.recompile()

    def describe(self, model: fx.GraphModule) -> dict[str, Any]:
        """Lists the positions kept."""
        return {"kept": self.kept}

    @classmethod
    def rebuild(cls, description: dict[str, Any]) -> "KeptChannels":
        """Returns the constraint of a description."""
        return cls(description["kept"])

    @torch.no_grad()
    def zero(self, model: nn.Module) -> None:
        """Makes zero, in place, what `attach` would take away; the network computes the same."""
        for name, sides in self.kept.items():
            layer = model.get_submodule(name)
            for side in sides:
                for tensor, dim in _tensors(layer, side):
                    tensor.index_fill_(dim, self._gone(name, side, tensor, dim), 0.0)

    def left(self, model: nn.Module, layer: str) -> Tensor:
        """Returns which entries of a layer's weight `attach` leaves, bool as the weight."""
        stored = model.get_submodule(layer)
        found = torch.ones_like(_stored(stored), dtype=torch.bool)
        for side in self.kept.get(layer, {}):
            for tensor, dim in _tensors(stored, side)[:1]:  # the weight
                found.index_fill_(dim, self._gone(layer, side, tensor, dim), False)
        return found

    def _gone(self, layer: str, side: Side, tensor: Tensor, dim: int) -> Tensor:
        """Returns the positions along a dimension that are not kept, on the tensor's device."""
        key = layer, side, tensor.device
        if key not in self._others:
            gone = torch.ones(tensor.shape[dim], dtype=torch.bool)
            gone[self.kept[layer][side]] = False
            self._others[key] = gone.nonzero().flatten().to(tensor.device)
        return self._others[key]


def _size(layer: nn.Module, side: Side) -> int:
    if isinstance(layer, nn.BatchNorm2d):
        return layer.num_features
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    rows, columns = layer.weight.shape[:2]
    return rows if side == "out" else columns * getattr(layer, "groups", 1)


def _stored(layer: nn.Module) -> Tensor:
    """Returns the weight of a layer as it is trained, or a batch norm's mean."""
    there = attached(layer)
    stored = layer.running_mean if isinstance(layer, nn.BatchNorm2d) else layer.weight
    return cast(Tensor, stored if there is None else there.original)


def _tensors(layer: nn.Module, side: Side) -> list[tuple[Tensor, int]]:
    """Returns what a side's channels are computed with, and along which dimension they stand."""
    found: list[tuple[Tensor | None, int]]
    if isinstance(layer, nn.BatchNorm2d):
        found = [(layer.weight, 0), (layer.bias, 0)]
    elif side == "out":
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        found = [(_stored(layer), 0), (layer.bias, 0)]
    else:  # the columns of a grouped convolution go with its rows
        found = [] if getattr(layer, "groups", 1) > 1 else [(_stored(layer), 1)]
    return [(tensor, dim) for tensor, dim in found if tensor is not None]


def _shrink(layer: nn.Module, sides: Mapping[Side, list[int]]) -> None:
    if isinstance(layer, nn.BatchNorm2d):
        _keep(layer, sides["out"], 0, _size(layer, "out"))
        layer.num_features = len(sides["out"])
        return
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    grouped = getattr(layer, "groups", 1) > 1
    for side, kept in sides.items():
        size = _size(layer, side)
        if side == "out" or not grouped:
            for owner in (layer, *_parametrizations(layer)):
                _keep(owner, kept, 0 if side == "out" else 1, size)
        if isinstance(layer, nn.Linear):
            setattr(layer, "out_features" if side == "out" else "in_features", len(kept))
        else:
            setattr(layer, "out_channels" if side == "out" else "in_channels", len(kept))
    if grouped:
        assert isinstance(layer, nn.Conv2d)
        layer.groups = layer.in_channels // layer.weight.shape[1]


def _parametrizations(layer: nn.Module) -> list[nn.Module]:
    there = attached(layer)
    return [] if there is None else [there, *there]


@torch.no_grad()
def _keep(owner: nn.Module, kept: list[int], dim: int, size: int) -> None:
    """Keeps some positions along a dimension of all that an object holds itself.

    What is broadcast along the dimension stays as it is.
    """
    tensors = [*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)]
    for name, tensor in tensors:
        if tensor.ndim > dim and tensor.shape[dim] == size:
            new = tensor.index_select(dim, torch.tensor(kept, device=tensor.device))
            parameter = isinstance(tensor, nn.Parameter)
            setattr(owner, name, nn.Parameter(new, tensor.requires_grad) if parameter else new)
