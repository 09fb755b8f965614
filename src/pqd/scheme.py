"""How an engine wants networks quantized: what its runtime declares and training sees."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Scheme:
    """Where quantizers of activations go, of which kind they are, and what is between them.

    Attributes:
        sums: which inputs of a sum are quantized: `both`; or, where one comes straight from a
            convolution, the other one alone (`skip`), for engines that add before they round.
        symmetric: activations are INT8 with zero point 0; else UINT8 with any zero point.
        norms: what a batch norm between two quantizers is deployed as: a `convolution` of each
            channel by itself, in integers; or a `norm`, for engines that fuse it with the second.
    """

    sums: Literal["both", "skip"] = "both"
    symmetric: bool = False
    norms: Literal["convolution", "norm"] = "convolution"
