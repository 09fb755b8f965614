"""Initial weights."""

from torch import nn


def init_he(net: nn.Module) -> None:
    """Draws convolution weights from N(0, 2 / fan_out) and sets biases to 0, in place.

    He et al. 2015, arXiv 1502.01852, eq. 14. Batch norm starts at scale 1 and shift 0, and linear
    weights keep torch's default.
    """
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
