"""Channel groups: the channels of a traced network that can only be removed together.

The graph is run with names of channels in place of values: a convolution or linear layer writes new
names, what is elementwise passes them on, a sum unites two, and what moves values (concatenation,
flattening, slices) moves names. Anything else pins what it reads and writes. Then the graph is run
again as it would be with some channels removed; an operation that does not fit (a reshape to a
fixed size, say) pins its channels, too.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from pqd.graph.channel_walk import PINNED, Misfit, Names, Shapes, Side, Walk, pinned
from pqd.graph.view import Graph

_WORLDS = 4  # random choices of removed channels that the graph must bear


@dataclass(frozen=True)
class Member:
    """Where the units of a group stand in one layer.

    Attributes:
        layer: the name of a convolution, linear layer or batch norm.
        side: `out`: rows of the weight, or a batch norm's channels; `in`: columns of the weight.
        index: the positions of each unit, int64 [units, k]; k > 1 behind a flatten, and at a
            grouped convolution.
    """

    layer: str
    side: Side
    index: Tensor


@dataclass(frozen=True)
class ChannelGroup:
    """Units of which any can be removed, each from all members at once."""

    members: tuple[Member, ...]

    @property
    def units(self) -> int:
        """How many there are."""
        return len(self.members[0].index)

    @property
    def width(self) -> int:
        """The channels of one unit, where it has most."""
        return max(member.index.shape[1] for member in self.members if member.side == "out")

    @property
    def name(self) -> str:
        """The first layer that writes the channels."""
        return next(member.layer for member in self.members if member.side == "out")


@dataclass(frozen=True)
class Channels:
    """The channels of a network.

    Attributes:
        groups: in the order of the graph.
        unsupported: operations that are not understood and whose channels stay for that.
        positions: for each layer at how many places of one image it is applied.
        read: for each layer the shape of what it reads of one image, e.g. (C, H, W).
    """

    groups: tuple[ChannelGroup, ...]
    unsupported: tuple[str, ...]
    positions: dict[str, int]
    read: dict[str, tuple[int, ...]]


def channels(model: fx.GraphModule, shape: tuple[int, int, int]) -> Channels:
    """Finds the channel groups of a network.

    Args:
        model: a traced network, with or without constraints; left as it is.
        shape: of an image, (C, H, W).
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        return _find(model, shape)
    finally:
        for module, training in modes.items():
            module.training = training


def _find(model: fx.GraphModule, shape: tuple[int, int, int]) -> Channels:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    shapes = Shapes(model)
    with torch.no_grad():
        shapes.run(torch.zeros(1, *shape, device=device))
        names = Names()
        image = pinned(torch.zeros(1, *shape))
        Walk(model, shapes.found, names, None).run(image)
        for seed in range(_WORLDS):
            while True:  # until the graph bears it, with ever more pinned
                walk = Walk(model, shapes.found, names, names.some(seed))
                try:
                    walk.run(image)
                    break
                except Misfit:
                    continue
    graph = Graph(model)
    layers = {str(node.target): node for node in filter(graph.is_layer, model.graph.nodes)}
    made = shapes.found
    return Channels(
        tuple(_groups(names)),
        tuple(dict.fromkeys(names.unsupported)),
        {name: _positions(graph.module(node), made[node]) for name, node in layers.items()},
        {name: tuple(made[graph.activations(n)[0]].shape[1:]) for name, n in layers.items()},
    )


def _positions(layer: nn.Module | None, written: Tensor) -> int:
    """Returns at how many places of one image [1, C, H, W] or [1, ..., C] a layer is applied."""
    shape = written.shape[2:] if isinstance(layer, nn.Conv2d) else written.shape[1:-1]
    return shape.numel()


def _groups(names: Names) -> Iterator[ChannelGroup]:
    """Yields the groups: free channels that are at the same sides of the same layers."""
    places: dict[int, dict[tuple[str, Side], list[int]]] = {}
    for side, written in names.sides.items():
        for position, name in enumerate(written.tolist()):
            if (root := names.root(name)) != PINNED:
                places.setdefault(root, {}).setdefault(side, []).append(position)
    alike: dict[tuple[tuple[str, Side, int], ...], list[dict[tuple[str, Side], list[int]]]] = {}
    for place in places.values():
        signature = tuple((layer, side, len(index)) for (layer, side), index in place.items())
        alike.setdefault(signature, []).append(place)
    for signature, units in alike.items():
        read = any(side == "in" for _, side, _ in signature)
        if len(units) == 1 or not read:  # the last one cannot go; nor what no layer reads
            continue
        yield ChannelGroup(
            tuple(
                Member(layer, side, torch.tensor([unit[layer, side] for unit in units]))
                for layer, side, _ in signature
            )
        )
