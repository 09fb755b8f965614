"""How much the channels of a group matter."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, fx, nn

from pqd.constraints.parametrization import attached
from pqd.data import Batch
from pqd.graph.channels import ChannelGroup, Member
from pqd.graph.view import Graph

Loss = Callable[[Tensor, Batch], Tensor]  # of logits [B, K] and their batch


@torch.no_grad()
def magnitude(model: fx.GraphModule, groups: Sequence[ChannelGroup]) -> list[Tensor]:
    """Returns the mean over a group's members of the energy of each unit's weights.

    The energy is the sum of squares, batch norms folded in, divided by its mean over the units,
    so that neither large nor many weights make a layer count more (as `GroupMagnitudeImportance`
    of Torch-Pruning; Fang et al. 2023, arXiv 2301.12900, section 3.3).

    Args:
        model: a traced network with any constraints.
        groups: its groups.

    Returns:
        Of each group float32 [units].
    """
    folded = _folded(model)
    found = []
    for group in groups:
        members = [m for m in group.members if m.layer in folded]
        members = [m for m in members if m.side == "out" or _reads(model, m)]
        energies = [_energy(folded[member.layer], member) for member in members]
        found.append(torch.stack([e / e.mean().clamp_min(1e-30) for e in energies]).mean(0))
    return found


def taylor(
    model: fx.GraphModule, groups: Sequence[ChannelGroup], batches: Iterable[Batch], loss: Loss
) -> list[Tensor]:
    """Returns what the loss changes, to first order, when a unit becomes zero: squared, averaged.

    Molchanov et al. 2019, arXiv 1906.10771, eq. 8, with the gate where a channel is read: its
    factor's gradient is the sum over all that read it of weight times gradient.

    Args:
        model: a traced network with any constraints; in evaluation mode afterwards.
        groups: its groups.
        batches: to average over, at least one.
        loss: of the logits.

    Returns:
        Of each group float32 [units], with mean 1.
    """
    model.eval()
    readers = {m.layer for group in groups for m in group.members if _reads(model, m)}
    weights = {name: stored_weight(model.get_submodule(name)) for name in readers}
    sums = [
        torch.zeros(group.units, device=next(iter(weights.values())).device) for group in groups
    ]
    for batch in batches:
        gradients = torch.autograd.grad(loss(model(batch.images), batch), list(weights.values()))
        change = {
            name: (weight.detach() * gradient).transpose(0, 1).flatten(1).sum(1)
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
        }
        for total, group in zip(sums, groups, strict=True):
            read = [m for m in group.members if _reads(model, m)]
            changes = [change[m.layer][m.index.to(total.device)].sum(1) for m in read]
            total += torch.stack(changes).sum(0).square()
    return [total / total.mean().clamp_min(1e-30) for total in sums]


def stored_weight(layer: nn.Module) -> Tensor:
    """Returns the weight of a layer as it is trained."""
    there = attached(layer)
    weight = layer.weight if there is None else there.original
    assert isinstance(weight, Tensor)
    return weight


def _reads(model: fx.GraphModule, member: Member) -> bool:
    """Tells whether a member's weights are columns of their own."""
    return member.side == "in" and getattr(model.get_submodule(member.layer), "groups", 1) == 1


def _folded(model: fx.GraphModule) -> dict[str, Tensor]:
    """Returns squared weights by layer, each row with the batch norm that follows.

    A batch norm that follows no convolution stands for itself, with its squared scale [C].
    """
    graph, folded = Graph(model), dict[str, Tensor]()
    norms: set[str] = set()
    for node in filter(graph.is_layer, model.graph.nodes):
        weight = graph.modules[str(node.target)].weight.detach().square()
        norm = graph.folded_batch_norm(node)
        if norm is not None:
            norms.add(str(norm.target))
            gain = _gain(graph.module(norm))
            weight = weight * gain.view(-1, *[1] * (weight.ndim - 1))
        folded[str(node.target)] = weight
    for node in filter(graph.is_batch_norm, model.graph.nodes):
        if str(node.target) not in norms:
            folded[str(node.target)] = _gain(graph.module(node))
    return folded


def _gain(norm: nn.Module | None) -> Tensor:
    """Returns the squared factor [C] of a batch norm."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    scale = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight.detach()
    return scale.square() / (norm.running_var + norm.eps)


def _energy(squares: Tensor, member: Member) -> Tensor:
    """Returns the sum of squares of a member's units, [units]."""
    rows = squares if member.side == "out" else squares.transpose(0, 1)
    energy = rows.flatten(1).sum(1) if rows.ndim > 1 else rows
    return energy[member.index.to(energy.device)].sum(1)
