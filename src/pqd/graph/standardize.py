"""Weight standardization (Qiao et al. 2019, arXiv 1903.10520) as a parametrization of a weight."""

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, register_parametrization

from pqd.graph.view import full_name

_PLAIN = "timm.layers.std_conv.StdConv2d"
_SAME = "timm.layers.std_conv.StdConv2dSame"


class Standardize(nn.Module):
    """Each output channel's weights, with mean 0 and variance 1.

    It comes before masks and fake-quantizers: pruned weights stay zero.
    """

    def __init__(self, eps: float) -> None:
        """Takes what is added to the variance."""
        super().__init__()
        self.eps = eps

    def forward(self, weight: Tensor) -> Tensor:
        """Returns (w - mean) / sqrt(var + eps) of each row of `weight` [K, C, R, S]; same shape."""
        rows = weight.reshape(1, len(weight), -1)
        return F.batch_norm(rows, None, None, training=True, eps=self.eps).reshape_as(weight)


def take_standardized(net: nn.Module) -> dict[nn.Module, Standardize]:
    """Makes timm's `StdConv2d` and `StdConv2dSame` convolutions that do not standardize, in place.

    Returns:
        what has to be put on the weight of each for it to compute what it did.
    """
    found: dict[nn.Module, Standardize] = {}
    for layer in net.modules():
        kind = full_name(type(layer))
        if kind not in (_PLAIN, _SAME):
            continue
        from timm.layers import Conv2dSame

        assert isinstance(layer, nn.Conv2d)
        found[layer] = Standardize(cast(float, layer.eps))
        layer.__class__ = Conv2dSame if kind == _SAME and layer.same_pad else nn.Conv2d
    return found


def put_standardized(layers: dict[nn.Module, Standardize]) -> None:
    """Puts each layer's parametrization on its weight, in place."""
    for layer, standardize in layers.items():
        register_parametrization(layer, "weight", standardize)


def is_standardized(layer: nn.Module) -> bool:
    """Tells whether the weight of a layer is standardized."""
    if not is_parametrized(layer, "weight"):
        return False
    everything = cast(nn.ModuleDict, layer.parametrizations)
    return any(isinstance(p, Standardize) for p in everything["weight"].children())
