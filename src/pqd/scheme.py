"""How an engine wants networks quantized: what its runtime declares and training sees."""

from dataclasses import dataclass
from typing import Literal

Sums = Literal["both", "clip", "skip"]


@dataclass(frozen=True)
class Scheme:
    """Where quantizers of activations go, of which kind they are, and what is between them.

    Attributes:
        sums: what becomes of the inputs of a sum: `both` are quantized; or, where one comes
            straight from a convolution, that one is only clipped to the range of its codes (`clip`)
            or left as it is (`skip`), for engines that add in the convolution, before they round.
        symmetric: activations are INT8 with zero point 0; else UINT8 with any zero point.
        norms: what a batch norm between two quantizers is deployed as: a `convolution` of each
            channel by itself, in integers; or a `norm`, for engines that fuse it with the second.
    """

    sums: Sums = "both"
    symmetric: bool = False
    norms: Literal["convolution", "norm"] = "convolution"
