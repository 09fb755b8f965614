"""The bits of each layer, where `quantize.size_kib` chooses them."""

from dataclasses import dataclass

from pqd.report.cases import Case
from pqd.report.statistics import Estimate, estimate
from pqd.result import Allocation


@dataclass(frozen=True)
class Bits:
    """What the orders of one case gave to the layers."""

    orders: list[str]
    layers: list[tuple[str, int, list[Estimate | None]]]  # name, weights, bits by order
    means: list[Estimate | None]  # bits over all weights, by order


def bits(case: Case) -> Bits | None:
    """Returns the bits of each layer, means over seeds; None where no run chose any."""
    found = {
        order: [run.result.bits for run in case.of(order) if run.result.bits]
        for order in case.orders()
    }
    found = {order: allocations for order, allocations in found.items() if allocations}
    weights: dict[str, int] = {}
    for allocations in found.values():
        for name, layer in allocations[0].layers.items():
            weights[name] = max(weights.get(name, 0), layer.weights)  # of fewer channels, fewer
    if not weights:
        return None
    return Bits(
        orders=list(found),
        layers=[
            (name, count, [_of(name, allocations) for allocations in found.values()])
            for name, count in weights.items()
        ],
        means=[estimate([a.mean_bits for a in allocations]) for allocations in found.values()],
    )


def _of(name: str, allocations: list[Allocation]) -> Estimate | None:
    return estimate([a.layers[name].bits for a in allocations if name in a.layers])
