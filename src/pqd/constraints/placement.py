"""Where fake-quantizers go in a traced network.

Every convolution and linear layer reads quantized values and (with the batch norm and ReLU that
follow it) writes one; so do residual adds and pools. One value has one fake-quantizer, whoever
reads it. After ReLU, not before it, so that a runtime fuses convolution and ReLU.
"""

import operator
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import fx, nn

from pqd.constraints.fake_quant import ActivationFakeQuant, WeightFakeQuant
from pqd.constraints.parametrization import attach, detach_last, find
from pqd.errors import UserError

PREFIX = "activation_quantizers"

_RELU = {nn.ReLU, nn.ReLU6, F.relu, F.relu_, F.relu6, torch.relu, torch.relu_, "relu", "relu_"}
_ADD = {operator.add, operator.iadd, torch.add, "add", "add_", "__iadd__"}
_CAT = {torch.cat, torch.concat, torch.concatenate}
_MAX_POOL = {nn.MaxPool2d, F.max_pool2d, torch.max_pool2d}
_AVERAGE_POOL = {
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    F.avg_pool2d,
    F.adaptive_avg_pool2d,
    torch.mean,
    "mean",
}
_FUNCTIONAL = {F.conv2d, F.linear}
# Operations whose output holds values of their input only: quantized in, quantized out.
_PASS = _MAX_POOL | {
    nn.Identity,
    nn.Flatten,
    nn.Dropout,
    nn.Dropout2d,
    torch.flatten,
    torch.squeeze,
    "flatten",
    "view",
    "reshape",
    "squeeze",
    "contiguous",
}


class Graph:
    """Answers what the nodes of a traced network are."""

    def __init__(self, model: fx.GraphModule) -> None:
        """Reads the modules of `model`."""
        self.model = model
        self.modules = dict(model.named_modules())

    def module(self, node: fx.Node) -> nn.Module | None:
        """Returns the module that a `call_module` node calls."""
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def is_layer(self, node: fx.Node) -> bool:
        """Tells whether the node is a convolution or a linear layer."""
        return isinstance(self.module(node), nn.Conv2d | nn.Linear)

    def is_batch_norm(self, node: fx.Node) -> bool:
        """Tells whether the node is a 2-d batch norm (and nothing derived that does more)."""
        return type(self.module(node)) is nn.BatchNorm2d

    def is_relu(self, node: fx.Node) -> bool:
        """Tells whether the node is a ReLU or ReLU6."""
        return self._is(node, _RELU)

    def is_sum(self, node: fx.Node) -> bool:
        """Tells whether the node adds two activations."""
        return self._is(node, _ADD) and len(_tensors(node)) == 2

    def is_pass(self, node: fx.Node) -> bool:
        """Tells whether the node only moves or selects values, so that a grid is kept."""
        # timm's stochastic depth drops whole images, as dropout drops values: in training only.
        return self._is(node, _PASS) or type(self.module(node)).__name__ == "DropPath"

    def reads_quantized(self, node: fx.Node) -> list[fx.Node]:
        """Returns the inputs of a node that should arrive quantized."""
        if self.is_layer(node) or self._is(node, _MAX_POOL | _AVERAGE_POOL):
            return _tensors(node)[:1]
        if self.is_sum(node) or self._is(node, _CAT):
            return _tensors(node)
        return []

    def follower(self, node: fx.Node) -> fx.Node | None:
        """Returns the only reader of a node, or None when it has several."""
        return next(iter(node.users)) if len(node.users) == 1 else None

    def folded_batch_norm(self, layer: fx.Node) -> fx.Node | None:
        """Returns the batch norm that can be folded into a convolution, if there is one."""
        follower = self.follower(layer)
        if follower is None or not self.is_batch_norm(follower):
            return None
        return follower if isinstance(self.module(layer), nn.Conv2d) else None

    def source(self, node: fx.Node) -> fx.Node:
        """Walks up over operations that only move values to the node that made them."""
        while self.is_pass(node):
            node = _tensors(node)[0]
        return node

    def end(self, node: fx.Node) -> fx.Node:
        """Walks down over the batch norm and ReLU that a runtime fuses into a layer or a sum."""
        if self.is_layer(node):
            node = self.folded_batch_norm(node) or node
        follower = self.follower(node)
        return follower if follower is not None and self.is_relu(follower) else node

    def _is(self, node: fx.Node, kinds: set) -> bool:
        if node.op == "call_module":
            return type(self.module(node)) in kinds
        return node.op in ("call_function", "call_method") and node.target in kinds


def left_alone(model: fx.GraphModule) -> list[str]:
    """Returns what has weights in a traced network but is no layer that constraints reach."""
    graph = Graph(model)
    found = [f"{n.name} (functional)" for n in model.graph.nodes if n.target in _FUNCTIONAL]
    for node in model.graph.nodes:
        module = None if graph.is_layer(node) else graph.module(node)
        if module is not None and any(parameter.ndim > 1 for parameter in module.parameters()):
            found.append(f"{node.target} ({type(module).__name__})")
    return found


def quantized_values(graph: Graph) -> Iterator[fx.Node]:
    """Yields the nodes whose output gets a fake-quantizer, in the network's order."""
    nodes = list(graph.model.graph.nodes)
    chosen: set[fx.Node] = set()
    for node in nodes:
        chosen.update(graph.source(value) for value in graph.reads_quantized(node))
        if graph.is_layer(node) or graph.is_sum(node):
            end = graph.end(node)
            if not _reaches_output(graph, end):
                chosen.add(end)
    return (node for node in nodes if node in chosen)


def insert_fake_quants(model: fx.GraphModule, code_max: int) -> None:
    """Attaches fake-quantizers to a traced network, in place.

    Args:
        model: a traced network whose convolutions and linear layers may carry masks.
        code_max: the largest weight code, 127 for 8 bits.

    Raises:
        UserError: a layer pads with something else than zeros, which ONNX's convolutions do not.
    """
    graph = Graph(model)
    for name in [str(node.target) for node in model.graph.nodes if graph.is_layer(node)]:
        padding = getattr(graph.modules[name], "padding_mode", "zeros")
        if padding != "zeros":
            raise UserError(f"backbone layer {name} pads with padding_mode={padding}; only zeros")
        attach(graph.modules[name], WeightFakeQuant(code_max), first=False)
    for node in list(quantized_values(graph)):
        name = f"{PREFIX}.{node.name}"
        model.add_submodule(name, ActivationFakeQuant())
        with model.graph.inserting_after(node):
            quantized = model.graph.call_module(name, (node,))
        read_instead(node, quantized)
    model.graph.lint()
    model.recompile()


def remove_fake_quants(model: fx.GraphModule) -> None:
    """Undoes `insert_fake_quants`, in place; masks and stored weights stay."""
    graph = Graph(model)
    for node in list(model.graph.nodes):
        if isinstance(graph.module(node), ActivationFakeQuant):
            node.replace_all_uses_with(node.args[0])
            model.graph.erase_node(node)
    model.delete_all_unused_submodules()
    model.recompile()
    for name in find(model, WeightFakeQuant):
        detach_last(model.get_submodule(name))


def read_instead(node: fx.Node, new: fx.Node) -> None:
    """Makes every reader of `node` but `new` itself read `new`."""
    node.replace_all_uses_with(new, lambda user: user is not new)


def _tensors(node: fx.Node) -> list[fx.Node]:
    """Returns the nodes among a node's positional arguments (and in its list arguments)."""
    found: list[fx.Node] = []
    for argument in node.args:
        nested = argument if isinstance(argument, list | tuple) else [argument]
        found += [item for item in nested if isinstance(item, fx.Node)]
    return found


def _reaches_output(graph: Graph, node: fx.Node) -> bool:
    """Tells whether the value, moved or not, is what the network returns."""
    return any(
        user.op == "output" or (graph.is_pass(user) and _reaches_output(graph, user))
        for user in node.users
    )
