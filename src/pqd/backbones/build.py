"""From the configuration to a traced network."""

import importlib
from collections.abc import Callable

import torch
from torch import fx, nn

from pqd.backbones import _torchvision  # noqa: F401  before the first import of torchvision
from pqd.backbones.resnet import resnet8, resnet18, resnet18_imagenet_stem, resnet20
from pqd.backbones.vgg import vgg16_bn
from pqd.backbones.wrn import wrn28_10
from pqd.config import BackboneConfig
from pqd.errors import UserError, choices, one_line
from pqd.graph.trace import trace

# A network of one's own needs no entry: `backbone.builder` may be its function's dotted path.
BUILDERS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "resnet18": resnet18,
    "resnet18_imagenet_stem": resnet18_imagenet_stem,
    "resnet20": resnet20,
    "resnet8": resnet8,
    "vgg16_bn": vgg16_bn,
    "wrn28_10": wrn28_10,
}


def build(cfg: BackboneConfig, classes: int, channels: int, image_size: int) -> fx.GraphModule:
    """Builds a network and traces it with torch.fx.

    Weights are drawn from torch's global generator, which nothing else here uses. Parameter names
    are those of the untraced network. The result is in training mode.

    Args:
        cfg: which network.
        classes: number of logits.
        channels: of the images.
        image_size: height and width of the images in pixels.

    Returns:
        a network from images [B, channels, image_size, image_size] to logits [B, classes].

    Raises:
        UserError: an unknown builder or timm name, arguments that do not fit, a network that
            torch.fx cannot trace, that fails on images of this size, or that does not return
            logits of shape [B, classes].
    """
    shape = (channels, image_size, image_size)
    net = trace(_create(cfg, classes, channels, image_size), cfg.name, shape)
    _check(net, cfg.name, classes, shape)
    return net


def _create(cfg: BackboneConfig, classes: int, channels: int, image_size: int) -> nn.Module:
    if cfg.builder == "timm":
        from pqd.backbones import timm_nets  # importing timm takes seconds

        return timm_nets.create(cfg.name, classes, channels, **cfg.kwargs)
    if "." in cfg.builder:
        return _create_custom(cfg, classes, channels, image_size)
    if cfg.builder not in BUILDERS:
        raise choices("backbone.builder", cfg.builder, [*BUILDERS, "timm", "my.module.function"])
    if cfg.kwargs:
        raise UserError(
            f"backbone.kwargs={cfg.kwargs}: only backbone.builder=timm takes any, "
            "and a function of one's own"
        )
    return BUILDERS[cfg.builder](classes, channels, image_size)


def _create_custom(cfg: BackboneConfig, classes: int, channels: int, image_size: int) -> nn.Module:
    """Calls the function (classes, channels, image_size, **kwargs) at a dotted path."""
    where = f"backbone.builder={cfg.builder}"
    module, _, name = cfg.builder.rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # importing runs the user's code
        raise UserError(
            f"{where} cannot be imported: {one_line(error, named=True)}; a function "
            "(classes, channels, image_size, **kwargs) -> nn.Module in a module on PYTHONPATH is "
            "accepted"
        ) from error
    try:
        net = function(classes, channels, image_size, **cfg.kwargs)
    except Exception as error:
        raise UserError(
            f"{where} fails with classes={classes}, channels={channels}, image_size={image_size} "
            f"and backbone.kwargs={cfg.kwargs}: {one_line(error, named=True)}"
        ) from error
    if not isinstance(net, nn.Module):
        raise UserError(f"{where} returns {type(net).__name__}; an nn.Module is needed")
    return net


def _check(net: fx.GraphModule, name: str, classes: int, shape: tuple[int, int, int]) -> None:
    images = torch.zeros(2, *shape).contiguous(memory_format=torch.channels_last)
    run = fx.Interpreter(net)  # a GraphModule of its own prints the error to stderr as well
    run.extra_traceback = False
    net.eval()
    try:
        with torch.no_grad():
            logits = run.run(images)
    except Exception as error:  # layers check their input in many ways
        raise UserError(
            f"backbone.name={name} fails on images of shape {list(shape)} "
            f"(is dataset.image_size too small for it?): {one_line(error, named=True)}"
        ) from error
    net.train()
    given = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if given != [2, classes]:
        raise UserError(
            f"backbone.name={name} returns {given} for 2 images of {classes} classes; "
            f"logits of shape [2, {classes}] are needed"
        )
