"""Questions about the graph of a traced network, and the operators it knows."""

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn


def _named(*names: str) -> set[Any]:
    """Returns tensor methods by name, and the functions of torch that are called alike."""
    return {*names} | {getattr(torch, name) for name in names if hasattr(torch, name)}


_RELU6 = {nn.ReLU6, F.relu6}
_RELU = {nn.ReLU, F.relu} | _named("relu", "relu_") | _RELU6
_ADD = {operator.add, operator.iadd, "add_", "__iadd__"} | _named("add")
_AVERAGE_POOL = {
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    F.avg_pool2d,
    F.adaptive_avg_pool2d,
} | _named("mean")
_MAX_POOL = {
    nn.MaxPool2d,
    nn.AdaptiveMaxPool2d,
    F.max_pool2d,
    F.adaptive_max_pool2d,
    torch.max_pool2d,
}
_FUNCTIONAL = {F.conv2d, F.linear}
_JOIN = {torch.cat, torch.concat, torch.concatenate, torch.stack}
_SPLIT = _named("chunk", "split", "tensor_split", "unbind")
# Operations whose output holds values of their input only: quantized in, quantized out.
_PASS = (
    _MAX_POOL
    | {nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten, nn.Unflatten}
    | {nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle}
    | {nn.ReflectionPad2d, nn.ReplicationPad2d}
    | {operator.getitem}
    | _SPLIT
    | _named("channel_shuffle", "pixel_shuffle", "pixel_unshuffle", "clone", "contiguous")
    | _named("expand", "flatten", "flip", "movedim", "narrow", "permute", "repeat", "reshape")
    | _named("roll", "select", "squeeze", "swapaxes", "tile", "transpose", "unflatten")
    | _named("unsqueeze", "view", "expand_as", "reshape_as", "view_as")
)
# What these return depends on the shape of an activation, not on its values.
_SHAPE = {getattr, "size", "dim", "numel", "new_zeros", "new_ones", "new_full", "new_empty"} | {
    torch.numel,
    torch.zeros_like,
    torch.ones_like,
    torch.full_like,
}
_TRANSPOSED = {"T", "mT"}  # attributes that are activations
# timm's stochastic depth drops whole images, as dropout drops values: in training only.
DROP_PATH = "timm.layers.drop.DropPath"


class Graph:
    """Answers what the nodes of a traced network are."""

    def __init__(self, model: fx.GraphModule) -> None:
        """Reads the modules of `model`."""
        self.model = model
        self.modules = dict(model.named_modules())
        self._activations: dict[fx.Node, bool] = {}
        for node in model.graph.nodes:  # in order, so that no recursion is deep
            self.is_activation(node)

    def module(self, node: fx.Node) -> nn.Module | None:
        """Returns the module that a `call_module` node calls."""
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def is_activation(self, node: fx.Node) -> bool:
        """Tells whether values of the image reach the node: no constant, parameter or shape."""
        if node not in self._activations:
            read = node.all_input_nodes
            if self._is(node, _PASS):  # what else it reads is a shape
                read = read[:1]
            shape = node.target in _SHAPE
            if node.target is getattr and node.args[1] in _TRANSPOSED:
                shape = False
            self._activations[node] = node.op == "placeholder" or (
                not shape and any(map(self.is_activation, read))
            )
        return self._activations[node]

    def activations(self, node: fx.Node) -> list[fx.Node]:
        """Returns the activations that a node reads, in the order of its arguments."""
        return [value for value in _nodes(node.args, node.kwargs) if self.is_activation(value)]

    def readers(self, node: fx.Node) -> list[fx.Node]:
        """Returns the nodes that read the values of an activation, not only its shape."""
        return [user for user in node.users if self.is_activation(user)]

    def follower(self, node: fx.Node) -> fx.Node | None:
        """Returns the only reader of a node, or None when it has several."""
        readers = self.readers(node)
        return readers[0] if len(readers) == 1 else None

    def is_layer(self, node: fx.Node) -> bool:
        """Tells whether the node is a convolution or a linear layer that reads an activation."""
        return isinstance(self.module(node), nn.Conv2d | nn.Linear) and self.is_activation(node)

    def is_batch_norm(self, node: fx.Node) -> bool:
        """Tells whether the node is a 2-d batch norm (and nothing derived that does more)."""
        return type(self.module(node)) is nn.BatchNorm2d

    def is_relu(self, node: fx.Node) -> bool:
        """Tells whether the node is a ReLU or ReLU6."""
        return self._is(node, _RELU)

    def relu_ceiling(self, node: fx.Node) -> float:
        """Returns the largest value that a ReLU gives: 6 of a ReLU6, else infinity."""
        return 6.0 if self._is(node, _RELU6) else math.inf

    def is_sum(self, node: fx.Node) -> bool:
        """Tells whether the node adds two activations."""
        return self._is(node, _ADD) and len(self.activations(node)) == 2

    def is_average_pool(self, node: fx.Node) -> bool:
        """Tells whether the node averages values of an activation."""
        return self._is(node, _AVERAGE_POOL) and self.is_activation(node)

    def is_max_pool(self, node: fx.Node) -> bool:
        """Tells whether the node takes the largest of several values of an activation."""
        return self._is(node, _MAX_POOL) and self.is_activation(node)

    def is_join(self, node: fx.Node) -> bool:
        """Tells whether the node joins activations, and nothing else, to one."""
        if not self._is(node, _JOIN):
            return False
        parts = _nodes(node.args[:1], node.kwargs)
        return bool(parts) and all(self.is_activation(part) for part in parts)

    def zero_pad(self, node: fx.Node) -> tuple[Any, ...] | None:
        """Returns how many zeros a node puts around its input, in torch's order (last axis first).

        None if the node does something else.
        """
        if isinstance(module := self.module(node), nn.ConstantPad2d):
            return tuple(module.padding) if module.value == 0 else None
        if node.target is not F.pad:
            return None
        names = ("input", "pad", "mode", "value")
        given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | node.kwargs
        constant = given.get("mode", "constant") == "constant"
        return tuple(given["pad"]) if constant and not given.get("value") else None

    def brings_constants(self, node: fx.Node) -> bool:
        """Tells whether the node puts constants other than zero beside an activation."""
        joins = self._is(node, _JOIN) and not self.is_join(node)
        pads = isinstance(self.module(node), nn.ConstantPad2d) or node.target is F.pad
        return self.is_activation(node) and (joins or (pads and self.zero_pad(node) is None))

    def is_tuple(self, node: fx.Node) -> bool:
        """Tells whether the node returns several activations."""
        if node.target is operator.getitem:
            return isinstance(node.args[1], slice) and self.is_tuple(_nodes(node.args)[0])
        return self._is(node, _SPLIT)

    def is_pass(self, node: fx.Node) -> bool:
        """Tells whether the node only moves or selects values, so that a grid is kept.

        Zeros may come in: every grid has them.
        """
        if not self.is_activation(node):
            return False
        if self._is(node, _PASS) or self.is_join(node) or self.zero_pad(node) is not None:
            return True
        transposes = node.target is getattr
        return transposes or full_name(type(self.module(node))) == DROP_PATH

    def folded_batch_norm(self, layer: fx.Node) -> fx.Node | None:
        """Returns the batch norm that can be folded into a convolution, if there is one."""
        follower = self.follower(layer)
        if follower is None or not self.is_batch_norm(follower):
            return None
        return follower if isinstance(self.module(layer), nn.Conv2d) else None

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """Walks up over operations that only move values to the nodes that made them.

        Several nodes where activations are joined on the way; the node itself if it moves nothing.
        """
        found: dict[fx.Node, bool] = {}  # whether it made values, in the order of the walk
        left = [node]
        while left:
            node = left.pop()
            if node in found:
                continue
            found[node] = not self.is_pass(node)
            if not found[node]:
                read = self.activations(node)
                left += reversed(read if self.is_join(node) else read[:1])
        return [node for node, made in found.items() if made]

    def end(self, node: fx.Node) -> fx.Node:
        """Walks down over the batch norm and ReLU that a runtime fuses into a layer or a sum."""
        if self.is_layer(node):
            node = self.folded_batch_norm(node) or node
        follower = self.follower(node)
        return follower if follower is not None and self.is_relu(follower) else node

    def _is(self, node: fx.Node, kinds: set[Any]) -> bool:
        if node.op == "call_module":
            return type(self.module(node)) in kinds
        return node.op in ("call_function", "call_method") and node.target in kinds


def full_name(kind: type) -> str:
    """Returns a class's name with its module's: to know one that is not to be imported here."""
    return f"{kind.__module__}.{kind.__qualname__}"


def unsupported_layers(model: fx.GraphModule) -> list[str]:
    """Returns what has weights in a traced network but is no layer that constraints reach."""
    graph = Graph(model)
    found = [f"{n.name} (functional)" for n in model.graph.nodes if n.target in _FUNCTIONAL]
    for node in model.graph.nodes:
        module = graph.module(node)
        if module is None or isinstance(module, nn.Conv2d | nn.Linear):
            continue
        if any(parameter.ndim > 1 for parameter in module.parameters()):
            found.append(f"{node.target} ({type(module).__name__})")
    return found


def read_instead(node: fx.Node, new: fx.Node) -> None:
    """Makes every reader of `node` but `new` itself read `new`."""
    node.replace_all_uses_with(new, lambda user: user is not new)


def _nodes(*arguments: Any) -> list[fx.Node]:
    """Returns the nodes among arguments, with those in lists; one that is given twice comes twice.

    `Node.all_input_nodes` names it once.
    """
    found: list[fx.Node] = []
    fx.map_arg(arguments, found.append)
    return found


def described(view: Graph, node: fx.Node) -> str:
    """Names an operation, for messages."""
    module = view.module(node)
    if module is not None:
        return f"{node.target} ({type(module).__name__})"
    return f"{node.name} ({getattr(node.target, '__name__', node.target)})"
