"""Convolutions whose weight gradient oneDNN gets wrong, rewritten into ones that it gets right.

They compute the very same numbers, and parameters keep their names.
"""

from collections.abc import Callable

from torch import fx, nn
from torch.nn.utils.parametrize import type_before_parametrizations

_VECTOR = 16  # float32 in AVX-512


def rewrite_strides(
    graph: fx.Graph, net: nn.Module, map_size: Callable[[fx.Node], tuple[int, int] | None]
) -> None:
    """Rewrites the strides of a graph's convolutions in place.

    Args:
        graph: of whole layers.
        net: holds the layers.
        map_size: height and width of the maps [B, C, H, W] that a node of the graph returns.
    """
    for node in list(graph.nodes):
        layer = net.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, nn.Conv2d) and type_before_parametrizations(layer) is nn.Conv2d:
            size = map_size(node.args[0])
            _take_before_narrow(graph, net, node, layer)
            if size is not None:
                _fit_into_map(graph, net, node, layer, size)


def call_before(
    graph: fx.Graph, net: nn.Module, node: fx.Node, layer: nn.Module, name: str
) -> None:
    """Calls a new layer, named after what `node` calls, on the input of `node`."""
    path = f"{str(node.target).replace('.', '_')}_{name}"
    net.add_module(path, layer)
    with graph.inserting_before(node):
        node.args = (graph.call_module(path, node.args[:1]), *node.args[1:])


def _take_before_narrow(graph: fx.Graph, net: nn.Module, node: fx.Node, layer: nn.Conv2d) -> None:
    """Takes the stride out of a narrow 1x1 convolution.

    In channels_last oneDNN writes past its buffer when the channels do not fill a vector: wrong
    gradients or a crash (oneDNN issue 6035). A 1x1 pool before it gives the very same numbers.
    """
    if (
        layer.kernel_size == (1, 1)
        and layer.stride != (1, 1)
        and layer.padding in ((0, 0), "valid")
        and layer.in_channels < _VECTOR
    ):
        call_before(graph, net, node, nn.MaxPool2d(1, layer.stride), "stride")
        layer.stride = (1, 1)


def _fit_into_map(
    graph: fx.Graph, net: nn.Module, node: fx.Node, layer: nn.Conv2d, size: tuple[int, int]
) -> None:
    """Takes a stride that is larger than the map out of a convolution.

    In bf16 (AVX512-BF16, AMX; torch 2.13) oneDNN leaves its weight gradient uninitialized. Where
    there is one output, the smallest stride that gives one gives the very same; where that is still
    too large, or there are several, a padding of its own makes the map large enough.
    """
    if isinstance(layer.padding, str):
        return
    sides = list(zip(size, layer.kernel_size, layer.padding, layer.dilation, strict=True))
    steps = [h + 2 * p - d * (k - 1) for h, k, p, d in sides]  # outputs with stride 1
    large = [k > 1 and h < s for (h, k, *_), s in zip(sides, layer.stride, strict=True)]
    if not any(large) or min(steps) < 1:
        return
    layer.stride = (min(layer.stride[0], steps[0]), min(layer.stride[1], steps[1]))
    if any(h < s for h, s in zip(size, layer.stride, strict=True)):
        top, left = layer.padding
        call_before(graph, net, node, nn.ZeroPad2d((left, left, top, top)), "padding")
        layer.padding = (0, 0)
