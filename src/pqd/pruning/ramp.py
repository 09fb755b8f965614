"""Which units are still there while channels go, step by step."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from pqd.graph.channels import ChannelGroup
from pqd.pruning.importance import stored_weight


class Ramp(nn.Module):
    """The shape to reach and the units that are left; saved with a stage under way.

    A resumed stage so keeps the shape that was chosen, whatever is measured since.
    """

    chosen: Tensor
    final: Tensor
    measured: Tensor
    kept: Tensor
    leaving: Tensor

    def __init__(self, groups: Sequence[ChannelGroup]) -> None:
        """Starts with all units, and no shape chosen."""
        super().__init__()
        self.groups = groups
        self.units = [group.units for group in groups]
        total = sum(self.units)
        self.register_buffer("chosen", torch.tensor(False))
        self.register_buffer("final", torch.tensor(self.units))
        self.register_buffer("measured", torch.zeros(2, dtype=torch.float64))  # ms: dense, pruned
        self.register_buffer("kept", torch.ones(total, dtype=torch.bool))  # all groups in a row
        self.register_buffer("leaving", torch.zeros(total, dtype=torch.bool))  # kept for now

    def keep(self) -> tuple[Tensor, ...]:
        """Returns of each group which units are left, bool [units]."""
        return self.kept.split(self.units)

    @torch.no_grad()
    def lower(self, share: float, importance: Sequence[Tensor]) -> None:
        """Removes the least important units until a share of what has to go is gone."""
        parts = zip(
            self.keep(),
            self.leaving.split(self.units),
            self.final.tolist(),
            importance,
            strict=True,
        )
        for kept, leaving, final, values in parts:
            count = len(kept) - round(share * (len(kept) - final))
            ranked = torch.where(kept, values, -1.0).argsort(descending=True, stable=True)
            kept.zero_()
            kept[ranked[:count]] = True
            leaving.zero_()
            leaving[ranked[final:count]] = True

    def norms(self, model: nn.Module) -> Iterator[Tensor]:
        """Yields of each group the norms of the units that leave; others are 0 (group lasso)."""
        for group, leaving in zip(self.groups, self.leaving.split(self.units), strict=True):
            squares: Tensor | float = 0.0
            for member in group.members:
                layer = model.get_submodule(member.layer)
                if isinstance(layer, nn.BatchNorm2d):
                    continue
                if member.side == "in" and getattr(layer, "groups", 1) > 1:
                    continue
                weight = stored_weight(layer)
                rows = weight if member.side == "out" else weight.transpose(0, 1)
                energy = rows.square().flatten(1).sum(1)
                squares = squares + energy[member.index.to(energy.device)].sum(1)
            yield torch.sqrt(torch.as_tensor(squares) + 1e-12) * leaving
