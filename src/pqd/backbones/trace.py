"""Turns a network into a `torch.fx` graph of whole layers, the form that stages rewrite."""

import operator
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from pqd.errors import UserError
from pqd.graph.strides import stride_before_narrow_convolutions


def trace(net: nn.Module, name: str) -> fx.GraphModule:
    """Traces a network; parameters keep their names, and train and eval mode stay what they were.

    In the graph every layer is one node. Timm's `BatchNormAct2d` becomes a batch norm and an
    activation, functional dropout becomes a layer, `a += b` becomes `a + b`, what computes nothing
    (`nn.Identity`, dropout of probability 0, adding 0) is left out, and a strided 1x1 convolution
    of less than 16 channels (RepVGG's first) becomes a 1x1 pool with that stride and a convolution.

    Args:
        net: the network, which is used up: its layers move into the result.
        name: the backbone's name, for messages.

    Raises:
        UserError: the network cannot be traced, calls different functions in training and
            evaluation, calls a convolution or linear layer at more than one place (each place has
            a range and a batch norm of its own), or has a batch norm without running statistics;
            the message names the operation and its layer.
    """
    tracer = _Tracer(name, _split_norm_act(net))
    graphs = []
    for training in (False, True):
        net.train(training)
        try:
            graph = tracer.trace(net)
        except UserError:
            raise
        except Exception as error:
            raise _untraceable(name, error, "the network's own forward") from error
        graphs.append(_simplify(graph, net))
    for evaluating, training_node in zip(graphs[0].nodes, graphs[1].nodes, strict=False):
        if evaluating.format_node() != training_node.format_node():
            raise UserError(
                f"backbone.name={name} cannot be traced by torch.fx: {training_node.name} differs "
                "between training and evaluation without being a layer of its own"
            )
    _check_layers(graphs[0], net, name)
    stride_before_narrow_convolutions(graphs[0], net)
    return fx.GraphModule(net, graphs[0], class_name=type(net).__name__)


class _Tracer(fx.Tracer):
    """Keeps layers whole and says where tracing fails."""

    def __init__(self, name: str, after: dict[nn.Module, nn.Module]):
        super().__init__()
        self.name = name
        self.after = after

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # What a childless layer does in train and eval mode, or with a shape, stays its own matter.
        childless = not any(m.children()) and not isinstance(m, nn.Sequential)
        return childless or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        try:
            out = super().call_module(m, forward, args, kwargs)
        except UserError:
            raise
        except Exception as error:
            layer = f"layer {self.path_of_module(m)} ({type(m).__name__})"
            raise _untraceable(self.name, error, layer) from error
        return self.after[m](out) if m in self.after else out


def _split_norm_act(net: nn.Module) -> dict[nn.Module, nn.Module]:
    """Makes each of timm's `BatchNormAct2d` a plain batch norm.

    Returns:
        for each of them the layers, now in the root of `net`, to call after it.
    """
    after: dict[nn.Module, nn.Module] = {}
    for path, layer in list(net.named_modules()):
        if isinstance(layer, nn.BatchNorm2d) and hasattr(layer, "act"):
            after[layer] = nn.Sequential(layer.get_submodule("drop"), layer.get_submodule("act"))
            net.add_module(f"{path.replace('.', '_')}_act", after[layer])
            del layer.drop, layer.act
            layer.__class__ = nn.BatchNorm2d
    return after


def _check_layers(graph: fx.Graph, net: nn.Module, name: str) -> None:
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    for path, count in calls.items():
        layer = net.get_submodule(path)
        if isinstance(layer, nn.Conv2d | nn.Linear) and count > 1:
            raise UserError(
                f"backbone.name={name} calls layer {path} {count} times; once is supported"
            )
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is None:
            raise UserError(
                f"backbone.name={name}: batch norm {path} keeps no running statistics; "
                "track_running_stats=True is supported"
            )


def _simplify(graph: fx.Graph, net: nn.Module) -> fx.Graph:
    for node in list(graph.nodes):
        if node.target is operator.iadd:
            node.target = operator.add
        if node.target is F.dropout:  # has the mode of the trace among its arguments
            p = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
            path = f"functional_{node.name}"
            net.add_module(path, nn.Dropout(p))
            node.op, node.target, node.args, node.kwargs = "call_module", path, node.args[:1], {}
        if (same := _unchanged(node, net)) is not None:
            node.replace_all_uses_with(same)
            graph.erase_node(node)
    return graph


def _unchanged(node: fx.Node, net: nn.Module) -> fx.Node | None:
    """The input that this node returns as it is, if it does."""
    if node.op == "call_module":
        layer = net.get_submodule(str(node.target))
        nothing = isinstance(layer, nn.Identity) or (isinstance(layer, nn.Dropout) and layer.p == 0)
        return node.all_input_nodes[0] if nothing else None
    if node.target is operator.add and 0 in [a for a in node.args if isinstance(a, int)]:
        return node.all_input_nodes[0]
    return None


def _untraceable(name: str, error: Exception, place: str) -> UserError:
    torch_folder = Path(torch.__file__).parent
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.line for frame in frames if torch_folder not in Path(frame.filename).parents]
    return UserError(
        f'backbone.name={name} cannot be traced by torch.fx: "{lines[-1]}" in {place}: '
        f"{first_line(error)}"
    )


def first_line(error: Exception) -> str:
    """An error's type and the first line of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
