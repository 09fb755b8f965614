"""Networks of timm, by name."""

import difflib
from typing import Any

import timm
import timm.layers
from torch import nn

from pqd.backbones.trace import first_line
from pqd.errors import UserError


def create(name: str, classes: int, channels: int, **kwargs: Any) -> nn.Module:
    """Builds timm's network `name`.

    Args:
        name: as in `timm.list_models()`.
        classes: number of logits.
        channels: of the images.
        kwargs: further arguments of `timm.create_model`, such as `pretrained` or `drop_path_rate`.

    Raises:
        UserError: timm does not know the name (the message names the nearest ones), cannot build
            the network from these arguments, or it has convolutions that pqd cannot compress.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.5)
        hint = f"nearest: {', '.join(near)}" if near else "timm.list_models() lists the known names"
        raise UserError(f"backbone.name={name} is unknown to timm {timm.__version__}; {hint}")
    try:
        net = timm.create_model(name, num_classes=classes, in_chans=channels, **kwargs)
    except Exception as error:  # timm's networks check their arguments in many ways
        raise UserError(
            f"timm cannot build backbone.name={name} with backbone.kwargs={kwargs}: "
            f"{first_line(error)}"
        ) from error
    for path, layer in net.named_modules():
        if type(layer) is timm.layers.Linear:
            # The two differ in TorchScript only.
            layer.__class__ = nn.Linear  # type: ignore[assignment]
        if isinstance(layer, nn.Conv2d) and type(layer) is not nn.Conv2d:
            # What would be pruned and quantized is not the weight that it multiplies with
            # (StdConv2d), or its padding depends on the size of its input (Conv2dSame).
            raise UserError(
                f"backbone.name={name} cannot be compressed: layer {path} "
                f"({type(layer).__name__}) is no plain convolution; choose another network"
            )
    return net
