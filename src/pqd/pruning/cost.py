"""What a network costs as a function of its shape: how many units each channel group keeps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import fx, nn

from pqd.graph.channels import Channels, Side

Units = NDArray[np.int64]  # of each group how many are kept, [groups]
Cost = Callable[[Units], float]


@dataclass(frozen=True)
class Layer:
    """A convolution, linear layer or batch norm.

    Attributes:
        name: in the network.
        module: of which the sizes do not count.
        positions: at how many places of an image it is applied.
    """

    name: str
    module: nn.Module
    positions: int = 1


class Shapes:
    """Rows and columns of all layers that a shape leaves."""

    def __init__(self, model: fx.GraphModule, channels: Channels) -> None:
        """Takes a network with all its channels."""
        modules = dict(model.named_modules())
        self.layers = [Layer(n, modules[n], count) for n, count in channels.positions.items()]
        called = dict.fromkeys(str(n.target) for n in model.graph.find_nodes(op="call_module"))
        norms = [name for name in called if type(modules[name]) is nn.BatchNorm2d]
        self.layers += [Layer(name, modules[name]) for name in norms]
        self.dense: Units = np.array([group.units for group in channels.groups])
        self._per_unit = {
            side: np.zeros((len(self.layers), len(self.dense)), np.int64) for side in ("out", "in")
        }
        index = {layer.name: i for i, layer in enumerate(self.layers)}
        for g, group in enumerate(channels.groups):
            for member in group.members:
                self._per_unit[member.side][index[member.layer], g] = member.index.shape[1]
        full = np.array([_full(layer.module) for layer in self.layers])
        self._fixed = {
            "out": full[:, 0] - self._per_unit["out"] @ self.dense,
            "in": full[:, 1] - self._per_unit["in"] @ self.dense,
        }
        self._kernel = np.array([_kernel(layer.module) for layer in self.layers])
        self._positions = np.array([layer.positions for layer in self.layers])
        self._vectors = np.array([_vectors(layer.module) for layer in self.layers])
        self._grouped = np.array([getattr(x.module, "groups", 1) for x in self.layers])
        self._in_of_group = full[:, 1] // self._grouped

    def size(self, side: Side, units: Units) -> NDArray[np.int64]:
        """Returns the rows or columns of each layer, [layers]."""
        sizes: NDArray[np.int64] = self._fixed[side] + self._per_unit[side] @ units
        return sizes

    def weights(self, units: Units) -> NDArray[np.int64]:
        """Returns the numbers in the weight of each layer, [layers]; none of batch norms."""
        columns = np.where(self._grouped > 1, self._in_of_group, self.size("in", units))
        numbers: NDArray[np.int64] = self._kernel * self.size("out", units) * columns
        return numbers

    def macs(self, units: Units) -> float:
        """Returns the multiply-accumulates of one image."""
        return float((self._positions * self.weights(units)).sum())

    def parameters(self, units: Units) -> float:
        """Returns the parameters of all layers."""
        vectors = self._vectors * self.size("out", units)
        return float((self.weights(units) + vectors).sum())

    def described(self, units: Units) -> dict[str, dict[str, list[int]]]:
        """Returns rows, MACs and weights by convolution or linear layer: each before and after."""
        named = {
            "channels": lambda shape: self.size("out", shape),
            "layer_macs": lambda shape: self._positions * self.weights(shape),
            "layer_parameters": self.weights,
        }
        return {
            name: {
                layer.name: [int(before), int(after)]
                for layer, before, after in zip(
                    self.layers, numbers(self.dense), numbers(units), strict=True
                )
                if not isinstance(layer.module, nn.BatchNorm2d)
            }
            for name, numbers in named.items()
        }


def levels(units: int, width: int, round_to: int, min_channels: int) -> list[int]:
    """Returns how many units a group may keep, descending: all, or a multiple of `round_to`.

    Args:
        units: of the group.
        width: channels of one unit.
        round_to: what the channels are a multiple of.
        min_channels: that are left at least.
    """
    step = round_to // np.gcd(round_to, width)
    lowest = step * max(1, -(-min_channels // (int(step) * width)))
    return [units, *range(int((units - 1) // step * step), int(lowest) - 1, -int(step))]


def allocate(
    importance: Sequence[NDArray[np.float64]], allowed: Sequence[list[int]], cost: Cost, most: float
) -> Units:
    """Chooses how many units each group keeps so that a shape costs at most `most`.

    Greedy: the next to go is the block of channels that holds the smallest share of what is still
    important in its group, for the share of the cost that it saves. Both are relative to the whole
    group, so that where all channels matter alike, all groups are narrowed alike. What fits again
    in the end comes back. Where nothing on the way costs so little, the cheapest on it is chosen:
    narrower is not always faster.

    Args:
        importance: of each group that of its units, not negative, [units].
        allowed: see `levels`.
        cost: of a shape.
        most: a cost.
    """
    units: Units = np.array([choice[0] for choice in allowed])
    level = [0] * len(allowed)
    # What the best k units of a group hold together.
    held = [np.cumsum(np.sort(values)[::-1] + 1e-12) for values in importance]
    whole = cost(units)
    now = whole
    removed: list[tuple[int, int]] = []  # group, and its level before
    cheapest = now, 0  # cost, and how many had gone then

    def at(group: int, place: int) -> Units:
        other = units.copy()
        other[group] = allowed[group][place]
        return other

    def saves(group: int, place: int) -> float:  # by unit, as if all units saved as much
        return (whole - cost(at(group, place))) / (allowed[group][0] - allowed[group][place])

    def weight(group: int) -> float:
        """Returns what a group would save, were it all removed: by its first step, if it saves."""
        for place in (1, -1) if len(allowed[group]) > 1 else ():
            if (saved := saves(group, place)) > 0:
                return allowed[group][0] * saved
        return whole  # it is the last to go

    weights = [weight(group) for group in range(len(allowed))]

    def step(group: int) -> tuple[float, int]:
        """Returns the price of the next level that saves anything, and that level."""
        choice, before = allowed[group], level[group]
        for place in range(before + 1, len(choice)):
            if (saved := now - cost(at(group, place))) > 1e-9 * whole:
                lost = np.log(held[group][choice[before] - 1] / held[group][choice[place] - 1])
                return float(lost * weights[group] / saved), place
        return np.inf, before + 1

    while now > most:
        left = [g for g, choice in enumerate(allowed) if level[g] + 1 < len(choice)]
        if not left:
            break
        (_, place), group = min((step(group), group) for group in left)
        removed.append((group, level[group]))
        units, level[group] = at(group, place), place
        now = cost(units)
        cheapest = min(cheapest, (now, len(removed)))
    if now > most:
        most, kept = cheapest
        for group, before in reversed(removed[kept:]):
            units = at(group, before)
        removed = removed[:kept]
    for group, before in reversed(removed):
        larger = at(group, before)
        if cost(larger) <= most:
            units = larger
    return units


def _full(layer: nn.Module) -> tuple[int, int]:
    """Returns the rows and columns of a layer; a batch norm has no columns."""
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels, layer.in_channels
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    assert isinstance(layer, nn.BatchNorm2d)
    return layer.num_features, 0


def _kernel(layer: nn.Module) -> int:
    return int(np.prod(layer.kernel_size)) if isinstance(layer, nn.Conv2d) else 1


def _vectors(layer: nn.Module) -> int:
    """Returns how many parameters a channel has besides the weights."""
    if isinstance(layer, nn.BatchNorm2d):
        return 2 if layer.affine else 0
    return int(layer.bias is not None)
