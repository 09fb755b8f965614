"""Which layer gets how many bits: the least loss for the bytes there are."""

import heapq

import numpy as np
from numpy.typing import NDArray

WIDTHS = tuple(range(2, 9))  # bits of a weight that can be chosen

Floats = NDArray[np.float64]
Choice = NDArray[np.int64]  # of each layer an index of WIDTHS, [L]

_TIE = 1e-6  # of losses that measure alike, more bits are better: their rounding error is smaller


def bits_of(code_max: int) -> int:
    """Returns the bits of codes in [-code_max, code_max]: 8 of 127, 2 of 1."""
    return code_max.bit_length() + 1


def code_max_of(bits: int) -> int:
    """Returns the largest code of some bits: 127 of 8, 1 of 2."""
    return 2 ** (bits - 1) - 1


def allocate(losses: Floats, sizes: Floats, limit: float, most: Choice) -> Choice:
    """Chooses a width for every layer so that all layers together take at most `limit` bytes.

    What layers lose is taken to add up. Then the widths on each layer's lower convex hull of loss
    over bytes are the solutions of the Lagrangian min sum(loss + price * bytes) (Shoham and Gersho
    1988, IEEE Trans. ASSP 36(9)); from the cheapest widths on, the step that lowers the loss most
    per byte is taken next, as long as it fits.

    Args:
        losses: increase of the loss by layer and width, [L, W].
        sizes: bytes by layer and width, [L, W].
        limit: bytes; where even the cheapest widths take more, they are returned.
        most: of each layer the largest width that is allowed.

    Returns:
        The width of each layer.
    """
    # A layer with more bits loses no more; what measures otherwise is noise.
    falling = np.maximum.accumulate(losses[:, ::-1], axis=1)[:, ::-1]
    falling = falling + _TIE * 4.0 ** -np.arange(losses.shape[1])
    hulls = [
        _hull(falling[layer, : top + 1], sizes[layer, : top + 1]) for layer, top in enumerate(most)
    ]
    chosen = np.array([hull[0] for hull in hulls], np.int64)
    used = sum(sizes[layer, width] for layer, width in enumerate(chosen))
    steps: list[tuple[float, int, int]] = []  # loss per byte, layer, position in its hull

    def offer(layer: int, position: int) -> None:
        if position < len(hulls[layer]):
            before, after = hulls[layer][position - 1], hulls[layer][position]
            gained = falling[layer, before] - falling[layer, after]
            paid = sizes[layer, after] - sizes[layer, before]
            heapq.heappush(steps, (-gained / paid, layer, position))

    for layer in range(len(hulls)):
        offer(layer, 1)
    while steps:
        _, layer, position = heapq.heappop(steps)
        width = hulls[layer][position]
        after = used + sizes[layer, width] - sizes[layer, chosen[layer]]
        if after <= limit:
            chosen[layer], used = width, after
            offer(layer, position + 1)
    return chosen


def _hull(losses: Floats, sizes: Floats) -> list[int]:
    """Returns the widths on the lower convex hull of loss over bytes, the cheapest first."""
    hull: list[int] = []
    for width in np.lexsort((losses, sizes)).tolist():
        if hull and losses[width] >= losses[hull[-1]]:
            continue
        while len(hull) > 1 and _slope(losses, sizes, *hull[-2:]) >= _slope(
            losses, sizes, hull[-1], width
        ):
            hull.pop()
        hull.append(width)
    return hull


def _slope(losses: Floats, sizes: Floats, one: int, other: int) -> float:
    return float((losses[other] - losses[one]) / (sizes[other] - sizes[one]))
