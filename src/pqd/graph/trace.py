"""Turns a network into a `torch.fx` graph of whole layers, the form that stages rewrite."""

import operator

from torch import fx, nn
from torch.nn import functional as F

from pqd.errors import UserError
from pqd.graph.inplace import without_writes
from pqd.graph.layers import check_layers, lift_layers, unwrap_constructors
from pqd.graph.rewrite import Rewriter
from pqd.graph.standardize import put_standardized, take_standardized
from pqd.graph.strides import rewrite_strides
from pqd.graph.tracer import Tracer
from pqd.graph.view import full_name


def trace(net: nn.Module, name: str, shape: tuple[int, int, int]) -> fx.GraphModule:
    """Traces a network; parameters keep their names, and train and eval mode stay what they were.

    In the graph every layer is one node, and what a network computes from the size of its images
    is a constant. Timm's `BatchNormAct2d` becomes a batch norm and an activation, functional
    dropout becomes a layer, `a += b` becomes `a + b`, which all later readers of `a` get (see
    `without_writes`), and what computes nothing (`nn.Identity`, dropout of probability 0, adding
    0) is left out. A convolution or linear layer that does more than torch's is traced into and
    becomes what it does: a padding and a plain convolution, say. Timm's convolutions with
    standardized weights become plain ones with a parametrization. Paddings, pools and
    convolutions that a runtime or a kernel gets wrong are rewritten (see `Rewriter` and
    `rewrite_strides`).

    Args:
        net: the network, which is used up: its layers move into the result.
        name: the backbone's name, for messages.
        shape: (C, H, W) of its images.

    Raises:
        UserError: the network cannot be traced, calls different functions in training and
            evaluation, computes a weight, has a layer that constraints cannot reach (see
            `check_layers`) or one that cannot be exported; the message names the operation and
            its layer.
    """
    unwrap_constructors(net)
    standardized = take_standardized(net)
    tracer = Tracer(name, shape, _split_norm_act(net))
    graphs = []
    for training in (False, True):
        net.train(training)
        try:
            graph = tracer.trace(net)
        except UserError:
            raise
        except Exception as error:
            raise tracer.untraceable(error, "the network's own forward") from error
        without_writes(graph, tracer.fakes, name)
        graphs.append(_simplify(graph, net))
    for evaluating, training_node in zip(graphs[0].nodes, graphs[1].nodes, strict=False):
        if evaluating.format_node() != training_node.format_node():
            raise UserError(
                f"backbone.name={name} cannot be traced by torch.fx: {training_node.name} differs "
                "between training and evaluation without being a layer of its own"
            )
    lift_layers(graphs[0], net, list(tracer.entered), name)
    check_layers(graphs[0], net, name)
    Rewriter(graphs[0], net, name, tracer.map_size).run()
    rewrite_strides(graphs[0], net, tracer.map_size)
    put_standardized(standardized)
    return fx.GraphModule(net, graphs[0], class_name=type(net).__name__)


def _split_norm_act(net: nn.Module) -> dict[nn.Module, nn.Module]:
    """Makes each of timm's `BatchNormAct2d` a plain batch norm.

    Returns:
        for each of them the layers, now in the root of `net`, to call after it.
    """
    after: dict[nn.Module, nn.Module] = {}
    for path, layer in list(net.named_modules()):
        if full_name(type(layer)) == "timm.layers.norm_act.BatchNormAct2d":
            after[layer] = nn.Sequential(layer.get_submodule("drop"), layer.get_submodule("act"))
            net.add_module(f"{path.replace('.', '_')}_act", after[layer])
            del layer.drop, layer.act
            layer.__class__ = nn.BatchNorm2d
    return after


def _simplify(graph: fx.Graph, net: nn.Module) -> fx.Graph:
    for node in list(graph.nodes):
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
        nothing = type(layer) is nn.Identity or (type(layer) is nn.Dropout and layer.p == 0)
        return node.all_input_nodes[0] if nothing else None
    if node.target is operator.add and 0 in [a for a in node.args if isinstance(a, int)]:
        return node.all_input_nodes[0]
    return None
