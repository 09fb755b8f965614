"""Removes channels while a network trains: a budget, a shape, a ramp."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from pqd.constraints import attach
from pqd.constraints.channels import KeptChannels
from pqd.constraints.mask import masks
from pqd.errors import UserError
from pqd.graph.channels import ChannelGroup, Channels, channels
from pqd.pruning import importance
from pqd.pruning.cost import Cost, Shapes, Units, allocate, levels
from pqd.pruning.importance import Loss
from pqd.pruning.latency import Target, fit, table
from pqd.pruning.ramp import Ramp

if TYPE_CHECKING:
    from pqd.stages.base import Context

SHARES = "macs", "parameters"  # of the dense network's
TIMES = "speedup", "latency_ms"  # as measured


class ChannelPruning:
    """What a stage that removes channels does to its network."""

    def __init__(self, model: fx.GraphModule, context: Context, options: Any, loss: Loss) -> None:
        """Finds the channel groups of a network.

        Args:
            model: the network, with all its channels.
            context: of the stage.
            options: the settings `prune.*`.
            loss: the network's, for the importance.

        Raises:
            UserError: no channel can be removed, or the budget is out of reach.
        """
        self.context, self.options, self.loss = context, options, loss
        first = next(iter(context.batches.epoch(0)))
        _, *image = first.images.shape
        found = channels(model, (image[0], image[1], image[2]))
        self.image = image[0], image[1], image[2]
        self.found, self.groups, self.unsupported = found, found.groups, found.unsupported
        self.shapes = Shapes(model, found)
        self.allowed = _levels(found, options)
        self.ramp = Ramp(self.groups)
        self._removed: KeptChannels | None = None
        self._first = True
        ((self.budget, self.most),) = budgets(options).items()
        config = context.config
        where = config.runtime, config.target.scheme()
        self.target = Target(*where) if self.budget in TIMES else None
        if self.target is None:
            self._check()

    def step(self, model: fx.GraphModule, share: float | None) -> None:
        """Before a training step: removes channels, that is, makes them zero.

        Again in every step, as the optimizer's momentum moves them on.

        Args:
            model: in training mode.
            share: of the channels that have to go; None where none has to go now.
        """
        if self._first and not self.ramp.chosen:  # a resumed stage has chosen
            values = self._importance(model)
            self.ramp.final.copy_(torch.from_numpy(self._shape(model, values)))
            self.ramp.chosen.fill_(True)
            self.ramp.lower(0.0, values)
        self._first = False  # what is on the device is asked for once
        if share is not None:
            self.ramp.lower(share, self._importance(model))
            self._removed = None
        self._constraint(model).zero(model)

    def left(self, model: fx.GraphModule) -> dict[str, Tensor]:
        """Returns of the layers with masks which weights belong to no removed channel."""
        constraint = self._constraint(model)
        return {name: constraint.left(model, name) for name in masks(model)}

    def penalty(self, model: torch.nn.Module) -> Tensor:
        """Returns the group lasso of the channels that are still there and have to go."""
        return torch.stack([norms.sum() for norms in self.ramp.norms(model)]).sum()

    def finish(self, model: fx.GraphModule) -> dict[str, Any]:
        """Takes the removed channels away, in place.

        Returns:
            What was asked for, the shares of the dense network's MACs and parameters that are
            left, and channels, MACs and weights of each layer, before and after.
        """
        attach(model, self._constraint(model))
        units, dense = self.ramp.final.cpu().numpy(), self.shapes.dense
        return {
            "asked": {self.budget: self.most},
            "measured": self._measured(),
            "macs": self.shapes.macs(units) / self.shapes.macs(dense),
            "parameters": self.shapes.parameters(units) / self.shapes.parameters(dense),
            **self.shapes.described(units),
        }

    def _measured(self) -> dict[str, Any] | None:
        """Returns the measurement that chose the shape; None where the budget is no time."""
        if self.target is None:
            return None
        before, after = self.ramp.measured.tolist()
        return {
            "dense_ms": before,
            "pruned_ms": after,
            "runtime": self.target.runtime.name,
            "threads": self.target.threads,
            "batch_size": self.target.batch_size,
        }

    def _constraint(self, model: fx.GraphModule) -> KeptChannels:
        if self._removed is None:
            self._removed = KeptChannels.of(model, self.groups, self.ramp.keep())
        return self._removed

    def _check(self) -> None:
        """Sees to it that a shape reaches a budget that is a share."""
        cost: Cost = getattr(self.shapes, self.budget)
        least = cost(self._smallest()) / cost(self.shapes.dense)
        if self.most < least:
            raise UserError(
                f"prune.{self.budget}={self.most} is out of reach; the smallest that "
                f"prune.round_to and prune.min_channels allow is {least + 5e-5:.4f}"
            )

    def _smallest(self) -> Units:
        units: Units = self.shapes.dense.copy()
        units[:] = [choice[-1] for choice in self.allowed]
        return units

    def _importance(self, model: fx.GraphModule) -> Sequence[Tensor]:
        if self.options.importance == "magnitude":
            return importance.magnitude(model, self.groups)
        batches = self.context.batches.epoch(self.context.seed)
        drawn = islice(batches, self.options.calibration_batches)
        try:
            return importance.taylor(model, self.groups, drawn, self.loss)
        finally:
            model.train()

    def _shape(self, model: fx.GraphModule, values: Sequence[Tensor]) -> Units:
        """Returns the shape that fits the budget best."""
        weights = [value.double().cpu().numpy() for value in values]
        if self.target is None:
            cost: Cost = getattr(self.shapes, self.budget)
            return allocate(weights, self.allowed, cost, self.most * cost(self.shapes.dense))
        cost = table(self.target, self.found, self.shapes, self.options.round_to)
        units, ms = fit(
            self.target,
            {self.budget: self.most},
            model,
            lambda network, shape: narrowed(network, self.groups, shape),
            lambda most: allocate(weights, self.allowed, cost, most),
            cost,
            self.image,
        )
        self.ramp.measured.copy_(torch.tensor(ms, dtype=torch.float64))
        return units


def budgets(options: Any, *, every: bool = False) -> dict[str, float]:
    """Returns the budgets among the settings `prune.*` by name: those given, or every one."""
    named = {name: getattr(options, name) for name in (*SHARES, *TIMES)}
    return {name: value for name, value in named.items() if every or value is not None}


def narrowed(model: fx.GraphModule, groups: Sequence[ChannelGroup], units: Units) -> KeptChannels:
    """Returns a constraint that leaves a shape; which channels it keeps does not matter."""
    keep = [torch.arange(g.units) < int(n) for g, n in zip(groups, units, strict=True)]
    return KeptChannels.of(model, groups, keep)


def _levels(found: Channels, options: Any) -> list[list[int]]:
    """Returns how many units each group may keep."""
    if not found.groups:
        names = ", ".join(found.unsupported) or "the image and the logits"
        raise UserError(
            f"prune.what={options.what}: no channel of this network can be removed, for "
            f"all reach what keeps its channels: {names}"
        )
    smallest = options.round_to, options.min_channels
    allowed = [levels(group.units, group.width, *smallest) for group in found.groups]
    if all(len(choice) == 1 for choice in allowed):
        widest = max(group.units * group.width for group in found.groups)
        raise UserError(
            f"prune.round_to={smallest[0]} and prune.min_channels={smallest[1]} leave no "
            f"channels to remove; the widest layer has {widest}"
        )
    return allowed
