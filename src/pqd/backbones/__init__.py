"""Networks as `torch.fx` graphs: the named ones and any timm CNN."""

from pqd.backbones.build import build

__all__ = ["build"]
