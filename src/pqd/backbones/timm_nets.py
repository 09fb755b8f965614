"""Networks of timm, by name."""

import difflib
from typing import Any

import timm
from torch import nn

from pqd.errors import UserError, one_line


def create(name: str, classes: int, channels: int, /, **kwargs: Any) -> nn.Module:
    """Builds timm's network `name`.

    Args:
        name: as in `timm.list_models()`.
        classes: number of logits.
        channels: of the images.
        kwargs: further arguments of `timm.create_model`, such as `pretrained` or `drop_path_rate`.

    Raises:
        UserError: timm does not know the name (the message names the nearest ones), cannot build
            the network from these arguments.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.5)
        hint = f"nearest: {', '.join(near)}" if near else "timm.list_models() lists the known names"
        raise UserError(f"backbone.name={name} is unknown to timm {timm.__version__}; {hint}")
    try:
        net: nn.Module = timm.create_model(name, num_classes=classes, in_chans=channels, **kwargs)
    except Exception as error:  # timm's networks check their arguments in many ways
        raise UserError(
            f"timm cannot build backbone.name={name} with backbone.kwargs={kwargs}: "
            f"{one_line(error, named=True)}"
        ) from error
    return net
