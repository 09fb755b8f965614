"""One colour and one marker per order, the same in every figure, table and file."""

import colorsys
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import cycle
from zlib import crc32

from pqd.report.cases import REFERENCE
from pqd.result import DENSE
from pqd.stages import NO_STAGES, STAGES, Stage

# Okabe and Ito (2008), "Color universal design": told apart with every common colour blindness.
COLOURS = {
    "pqd": "#0072B2",
    "pdq": "#56B4E9",
    "qpd": "#009E73",
    "qdp": "#E69F00",
    "dpq": "#D55E00",
    "dqp": "#CC79A7",
}
GREY = Stage.colour  # shorter orders, and the dense baseline

# Marker names of plotly; `polygon` draws the same shapes for legends and for matplotlib.
SYMBOLS = {
    "pqd": "circle",
    "pdq": "square",
    "qpd": "diamond",
    "qdp": "triangle-up",
    "dpq": "triangle-down",
    "dqp": "pentagon",
    DENSE: "star",
    NO_STAGES: "hexagon",
    "p": "triangle-left",
    "q": "triangle-right",
    "d": "cross",
    "pq": "bowtie",
    "qp": "hourglass",
    "pd": "x",
    "dp": "diamond-tall",
    "qd": "diamond-wide",
    "dq": "octagon",
}
OTHER_SYMBOLS = (  # of orders with stages of other people's
    *("hexagram", "star-square", "star-diamond", "star-triangle-up", "star-triangle-down"),
    *("triangle-ne", "triangle-se", "triangle-sw", "triangle-nw", "hexagon2"),
)

# Round ticks in a decade, from coarse to fine; where none will do, multiples of round steps are.
STEPS: tuple[tuple[float, ...], ...] = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7))


def _colour(order: str) -> str:
    """The colour of an order; with letters that the reference lacks, one drawn."""
    if order in SYMBOLS:
        return COLOURS.get(order, GREY)
    # Dark, as none of those above is.
    red, green, blue = colorsys.hls_to_rgb(crc32(order.encode()) / 2**32, 0.3, 0.75)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def stage_colour(stage: str) -> str:
    """The colour of a stage, as #rrggbb; grey for one that is not registered here."""
    return STAGES[stage].colour if stage in STAGES else GREY


def sort_stages(names: Iterable[str]) -> list[str]:
    """Sorts stages by the places of their letters in the reference: the baseline, p, q, d."""

    def rank(name: str) -> tuple[int, str]:
        letter = STAGES[name].letter if name in STAGES else name
        return (REFERENCE + letter).find(letter), name

    return sorted(names, key=rank)


def _symbol(order: str) -> str:
    return SYMBOLS.get(order) or OTHER_SYMBOLS[crc32(order.encode()) % len(OTHER_SYMBOLS)]


@dataclass(frozen=True)
class Look:
    """How an order is drawn, or a setting in its place."""

    colour: str  # #rrggbb
    symbol: str  # of plotly

    @property
    def polygon(self) -> list[tuple[float, float]]:
        """The marker's corners, (x, y) in [-1, 1] with y upwards."""
        return _polygon(self.symbol)


Looks = dict[str, Look]


def looks(orders: Iterable[str]) -> Looks:
    """The look of each order and, first, of the dense baseline."""
    return {name: Look(_colour(name), _symbol(name)) for name in (DENSE, *orders)}


def looks_of_settings(names: Iterable[str]) -> Looks:
    """As `looks`, where settings take the place of orders: each has the next look."""
    free = zip(cycle(COLOURS.values()), cycle(s for s in SYMBOLS.values() if s != SYMBOLS[DENSE]))
    return looks(()) | {name: Look(*look) for name, look in zip(names, free, strict=False)}


def _polygon(symbol: str) -> list[tuple[float, float]]:
    third = 0.35
    plus = [(-third, 1), (third, 1), (third, third), (1, third), (1, -third), (third, -third)]
    plus += [(-x, -y) for x, y in plus]
    shapes: dict[str, list[tuple[float, float]]] = {
        "circle": _regular(24),
        "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
        "diamond": _regular(4),
        "triangle-up": _regular(3),
        "triangle-down": [(x, -y) for x, y in _regular(3)],
        "triangle-left": [(-y, x) for x, y in _regular(3)],
        "triangle-right": [(y, -x) for x, y in _regular(3)],
        "pentagon": _regular(5),
        "hexagon": _regular(6),
        "hexagon2": [(y, x) for x, y in _regular(6)],
        "octagon": _regular(8),
        "star": _regular(10, 0.45),
        "hexagram": _regular(12, 0.58),
        "star-square": [(x * 0.9, y * 0.9) for x, y in _regular(8, 0.5)],
        "star-diamond": _regular(8, 0.35),
        "star-triangle-up": _regular(6, 0.3),
        "star-triangle-down": [(x, -y) for x, y in _regular(6, 0.3)],
        "triangle-ne": [(-0.8, 0.8), (0.8, 0.8), (0.8, -0.8)],
        "triangle-se": [(0.8, 0.8), (0.8, -0.8), (-0.8, -0.8)],
        "triangle-sw": [(0.8, -0.8), (-0.8, -0.8), (-0.8, 0.8)],
        "triangle-nw": [(-0.8, -0.8), (-0.8, 0.8), (0.8, 0.8)],
        "cross": plus,
        "x": [((x - y) * 0.7, (x + y) * 0.7) for x, y in plus],
        "bowtie": [(-1, -0.8), (1, 0.8), (1, -0.8), (-1, 0.8)],
        "hourglass": [(-0.8, -1), (0.8, 1), (-0.8, 1), (0.8, -1)],
        "diamond-tall": [(x * 0.6, y) for x, y in _regular(4)],
        "diamond-wide": [(x, y * 0.6) for x, y in _regular(4)],
    }
    return shapes[symbol]


def _regular(corners: int, inner: float = 1.0) -> list[tuple[float, float]]:
    """Corners of a regular polygon, the first at the top; every other one at radius `inner`."""
    return [
        (-radius * math.sin(turn), radius * math.cos(turn))
        for i in range(corners)
        for turn, radius in [(2 * math.pi * i / corners, inner if i % 2 else 1.0)]
    ]


def log_axis(values: list[float]) -> tuple[tuple[float, float], list[float]]:
    """Limits of a logarithmic axis that shows all values, and three to seven round ticks.

    Less than a decade has no power of ten to label, which is where common locators fail. The
    page's script does the same for what a filter leaves.
    """
    low, high = math.log10(min(values)), math.log10(max(values))
    pad = max(0.06 * (high - low), 0.02)
    limits = 10 ** (low - pad), 10 ** (high + pad)
    return limits, _ticks(*limits)


def _ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    for steps in STEPS:
        inside = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
        if len(inside) >= 4:
            return inside
    decade = math.floor(math.log10(high - low))
    multiples: list[float] = []
    for step in (s * 10.0**d for d in (decade, decade - 1) for s in (5, 2.5, 2, 1)):
        multiples = [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
        if len(multiples) >= 3:
            break
    return multiples
