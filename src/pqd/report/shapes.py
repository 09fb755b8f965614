"""What is left of networks that lost channels: MACs, parameters, and channels of each layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pqd.report.cases import Case
from pqd.report.load import Run
from pqd.report.statistics import Estimate, estimate, sure_estimate
from pqd.report.style import Looks

PARTS = "channels", "macs", "parameters"  # of a layer


@dataclass(frozen=True)
class Layer:
    """One convolution or linear layer of the networks of an order."""

    name: str
    dense: dict[str, float]  # channels, MACs and parameters before
    kept: dict[str, Estimate]  # and after, over runs

    def share(self, part: str) -> float:
        """What is kept of a part on average, in %."""
        return 100 * self.kept[part].mean / self.dense[part] if self.dense[part] else 100.0


@dataclass(frozen=True)
class Shape:
    """What is left of the dense network in one order of a case, over its runs."""

    order: str
    shares: dict[str, Estimate]  # of MACs and parameters, in %
    left: dict[str, float]  # MACs of one image and parameters, means over runs; as far as known
    reached: Estimate | None  # speed-up as measured in the stage, where the budget is a time
    layers: list[Layer]


def shapes(case: Case) -> list[Shape]:
    """The shapes of all orders that removed channels in every run; none where none did."""
    found = []
    for order in case.orders():
        runs = case.of(order)
        there = [shape for run in runs if (shape := _recorded(run))]
        if len(there) == len(runs):
            found.append(_shape(order, runs, there))
    return found


def _recorded(run: Run) -> dict[str, Any] | None:
    return next((stage.shape for stage in run.result.stages if stage.shape), None)


def _shape(order: str, runs: Sequence[Run], there: Sequence[dict[str, Any]]) -> Shape:
    shares = {part: sure_estimate([100 * shape[part] for shape in there]) for part in PARTS[1:]}
    left: dict[str, Estimate | None] = {
        "macs": estimate(
            [r.final.macs * s["macs"] for r, s in zip(runs, there, strict=True) if r.final.macs]
        ),
        "parameters": estimate([r.final.parameters for r in runs if r.final.parameters]),
    }
    times = [shape["measured"] for shape in there if shape.get("measured")]
    layers = []
    for name in there[0]["channels"]:
        sizes = {part: [_sizes(shape, name, part) for shape in there] for part in PARTS}
        known = {part: pairs for part, pairs in sizes.items() if all(pairs)}
        layers.append(
            Layer(
                name,
                {part: pairs[0][0] for part, pairs in known.items()},
                {
                    part: sure_estimate([after for _, after in pairs])
                    for part, pairs in known.items()
                },
            )
        )
    return Shape(
        order=order,
        shares=shares,
        left={part: found.mean for part, found in left.items() if found},
        reached=estimate([time["dense_ms"] / time["pruned_ms"] for time in times]),
        layers=layers,
    )


def _sizes(shape: dict[str, Any], layer: str, part: str) -> list[float]:
    """Before and after; nothing where an older version did not record it."""
    key = part if part == "channels" else f"layer_{part}"
    found: list[float] = shape.get(key, {}).get(layer, [])
    return found


def figure(found: Sequence[Shape], looks: Looks) -> dict[str, Any]:
    """Kept channels of each layer in %, from the first layer to the last, a line per order."""
    data = [
        {
            "x": [layer.name for layer in shape.layers],
            "y": [layer.share("channels") for layer in shape.layers],
            "text": [
                f"<b>{shape.order}</b> {layer.name}<br>{layer.kept['channels'].mean:.3g} of "
                f"{layer.dense['channels']:g} channels"
                for layer in shape.layers
            ],
            "hoverinfo": "text",
            "mode": "lines+markers",
            "line": {"width": 2, "color": look.colour, "shape": "hvh"},
            "marker": {"color": look.colour, "size": 8, "symbol": look.symbol},
            "meta": shape.order,
        }
        for shape in found
        for look in [looks[shape.order]]
    ]
    return {
        "data": data,
        "layout": {
            "xaxis": {"type": "category", "tickangle": -60},
            "yaxis": {"title": {"text": "Channels kept (%)"}, "range": [0, 105]},
            "height": 420,
        },
    }
