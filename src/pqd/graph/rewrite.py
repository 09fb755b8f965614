"""Rewrites of a traced network that compute the same and run right everywhere."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from pqd.errors import UserError
from pqd.graph.strides import call_before

_AVERAGE = (
    "kernel_size",
    "stride",
    "padding",
    "ceil_mode",
    "count_include_pad",
    "divisor_override",
)
_MAX = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_POOLS: dict[Any, tuple[type[nn.Module], tuple[str, ...]]] = {
    F.avg_pool2d: (nn.AvgPool2d, _AVERAGE),
    F.max_pool2d: (nn.MaxPool2d, _MAX),
    torch.max_pool2d: (nn.MaxPool2d, _MAX),
    F.adaptive_max_pool2d: (nn.AdaptiveMaxPool2d, ("output_size", "return_indices")),
}


class Rewriter:
    """Rewrites one graph; the size of every map is known, as that of the images is.

    Parameters keep their names, and convolutions their place.
    """

    def __init__(
        self,
        graph: fx.Graph,
        net: nn.Module,
        name: str,
        map_size: Callable[[fx.Node], tuple[int, int] | None],
    ) -> None:
        """Takes the graph, the network that holds its layers, the backbone's name and map sizes."""
        self.graph = graph
        self.net = net
        self.name = name
        self.map_size = map_size

    def run(self) -> None:
        """Rewrites the graph in place.

        Raises:
            UserError: it holds an operation that ONNX or a runtime computes differently.
        """
        for node in list(self.graph.nodes):
            self._name_pool(node)
        for node in list(self.graph.nodes):
            self._pad(node)
        for node in list(self.graph.nodes):
            layer = self.layer(node)
            if node.target is F.interpolate and (*node.args[6:], node.kwargs.get("antialias"))[0]:
                raise self.refused(
                    node, "antialias=True, which OpenVINO ignores", "antialias=False"
                )
            if type(layer) is nn.AvgPool2d:
                _average_pool(self, node, layer)
            if type(layer) is nn.AdaptiveMaxPool2d:
                _adaptive_max_pool(self, node, layer)

    def layer(self, node: fx.Node) -> nn.Module | None:
        """Returns the layer that a node calls."""
        return self.net.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _name_pool(self, node: fx.Node) -> None:
        """Makes a layer of a functional pool, so that there is one form of each."""
        if node.op != "call_function" or node.target not in _POOLS:
            return
        kind, names = _POOLS[node.target]
        given = dict(zip(names, node.args[1:], strict=False)) | node.kwargs
        if not given.pop("return_indices", False):
            self.call(node, kind(**given))

    def call(self, node: fx.Node, layer: nn.Module) -> None:
        """Makes a node call a new layer, of its own, on its first argument."""
        path = f"rewritten_{node.name}"
        self.net.add_module(path, layer)
        node.op, node.target, node.args, node.kwargs = "call_module", path, node.args[:1], {}

    def refused(self, node: fx.Node, what: str, accepted: str) -> UserError:
        """Builds the error for what ONNX or a runtime computes differently."""
        return UserError(
            f"backbone.name={self.name} cannot be exported: {node.name} has {what}; "
            f"{accepted} is supported"
        )

    # Paddings

    def _pad(self, node: fx.Node) -> None:
        """Moves a constant padding into the layers that read it where they can pad so."""
        found = self._padding(node)
        if found is None:
            return
        padding, value = found
        reader = next(iter(node.users)) if len(node.users) == 1 else None
        if not any(padding) or (reader and self._pad_inside(reader, padding, value)):
            node.replace_all_uses_with(_input(node))
            self.graph.erase_node(node)
        elif value == 0 and node.op == "call_function":
            self.call(node, nn.ZeroPad2d(padding))
        elif math.isinf(value):
            raise self.refused(node, f"value={value}", "a finite value, or a max-pool behind it,")

    def _padding(self, node: fx.Node) -> tuple[tuple[int, int, int, int], float] | None:
        """Returns (left, right, top, bottom) and the value of a constant padding of maps."""
        layer = self.layer(node)
        if isinstance(layer, nn.CircularPad2d):
            raise self.refused(node, "mode=circular, which OpenVINO lacks", "constant or reflect")
        if isinstance(layer, nn.ConstantPad2d):  # nn.ZeroPad2d is one
            return layer.padding, float(layer.value)
        if node.op != "call_function" or node.target is not F.pad:
            return None
        given: dict[str, Any] = dict(
            zip(("input", "pad", "mode", "value"), node.args, strict=False)
        )
        given |= node.kwargs
        mode, pad = given.get("mode", "constant"), given["pad"]
        if mode == "circular":
            raise self.refused(node, "mode=circular, which OpenVINO lacks", "constant or reflect")
        if mode != "constant" or not all(isinstance(p, int) for p in pad) or len(pad) % 2:
            return None
        sides = (*pad, 0, 0, 0, 0)
        return None if any(sides[4:]) else (sides[:4], float(given.get("value") or 0))

    def _pad_inside(self, node: fx.Node, padding: tuple[int, ...], value: float) -> bool:
        """Lets a layer pad by itself if it can do just that; tells whether it can."""
        left, right, top, bottom = padding
        layer = self.layer(node)
        if min(padding) < 0:
            return False
        if type(layer) is nn.Conv2d and value == 0 and (left, top) == (right, bottom):
            if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
                return False
            layer.padding = (layer.padding[0] + top, layer.padding[1] + left)
            return True
        if type(layer) is nn.MaxPool2d and value == -math.inf:
            return self._max_pool_inside(node, layer, padding)
        return False

    def _max_pool_inside(self, node: fx.Node, pool: nn.MaxPool2d, padding: tuple[int, ...]) -> bool:
        """A max-pool pads with -inf, at the end as far as its last window with `ceil_mode`."""
        left, _, top, _ = padding
        wanted, given = self.map_size(node), self.map_size(_input(_input(node)))
        if wanted is None or given is None or _pair(pool.padding) != (0, 0):
            return False
        for ceil in (False, True):
            made = nn.MaxPool2d(
                pool.kernel_size, pool.stride, (top, left), pool.dilation, ceil_mode=ceil
            )
            try:
                size = made(torch.zeros(1, 1, *given, device="meta")).shape[2:]
            except RuntimeError:  # more padding than half a window
                return False
            if tuple(size) == wanted:
                self.call(node, made)
                return True
        return False


def _average_pool(rewriter: Rewriter, node: fx.Node, pool: nn.AvgPool2d) -> None:
    """Takes the windows that overhang a padded map out of integer average pools.

    ONNX Runtime's integer kernel, and OpenVINO's with padding, divide by the whole window.
    Without counted padding both are right.
    """
    if pool.divisor_override is not None:
        what = f"divisor_override={pool.divisor_override}, which ONNX lacks"
        raise rewriter.refused(node, what, "divisor_override=None")
    if not pool.ceil_mode or not pool.count_include_pad:
        return
    kernel, stride, padding = map(_pair, (pool.kernel_size, pool.stride, pool.padding))
    if any(padding):
        size, out = rewriter.map_size(_input(node)), rewriter.map_size(node)
        if size is None or out is None:
            raise rewriter.refused(
                node, "ceil_mode=True on maps of unknown size", "ceil_mode=False"
            )
        covered = [(o - 1) * s + k for o, s, k in zip(out, stride, kernel, strict=True)]
        end = [min(p, c - h - p) for p, c, h in zip(padding, covered, size, strict=True)]
        if all(c <= h + 2 * p for c, h, p in zip(covered, size, padding, strict=True)):
            rewriter.call(node, nn.AvgPool2d(kernel, stride, padding))
            return
        around = (padding[1], end[1], padding[0], end[0])
        call_before(rewriter.graph, rewriter.net, node, nn.ZeroPad2d(around), "padding")
    new = nn.AvgPool2d(kernel, stride, ceil_mode=True, count_include_pad=False)
    rewriter.call(node, new)


def _adaptive_max_pool(rewriter: Rewriter, node: fx.Node, pool: nn.AdaptiveMaxPool2d) -> None:
    """Makes it a max-pool, the only one that ONNX has: all windows must be of one size."""
    size = rewriter.map_size(_input(node))
    if size is None or pool.return_indices:
        return
    wanted = [h if o is None else o for o, h in zip(_pair(pool.output_size), size, strict=True)]
    windows = [list(_windows(h, o)) for h, o in zip(size, wanted, strict=True)]
    kernels = [{end - start for start, end in axis} for axis in windows]
    strides = [{b[0] - a[0] for a, b in pairwise(axis)} for axis in windows]
    if any(len(k) > 1 for k in kernels) or any(len(s) > 1 or 0 in s for s in strides):
        what = f"output_size={tuple(wanted)} of maps of {size}, which ONNX lacks"
        raise rewriter.refused(node, what, "a size that divides the map's")
    kernel = [k.pop() for k in kernels]
    stride = [s.pop() if s else k for s, k in zip(strides, kernel, strict=True)]
    rewriter.call(node, nn.MaxPool2d(tuple(kernel), tuple(stride)))


def _input(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def _pair(value: Any) -> tuple[Any, Any]:
    return (value, value) if value is None or isinstance(value, int) else tuple(value)


def _windows(size: int, count: int) -> Iterator[tuple[int, int]]:
    """Start and end of torch's adaptive windows along one axis."""
    for i in range(count):
        yield i * size // count, -(-(i + 1) * size // count)
