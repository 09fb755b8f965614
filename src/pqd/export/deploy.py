"""From the trained network to the deployed one: constraints as they run, batch norms folded."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pqd.constraints import constraints
from pqd.constraints.parametrization import attached, bake
from pqd.graph.fold import replace_layer, with_batch_norm
from pqd.graph.view import Graph


@torch.no_grad()
def deployed(model: fx.GraphModule) -> fx.GraphModule:
    """Returns the network as it is deployed; the given one stays as it is.

    Each constraint brings it to its deployed form. What is left of parametrized weights becomes
    their values, and batch norms that follow a convolution are folded into it. A batch norm that
    follows anything else stays.

    Args:
        model: a traced network with any constraints attached, `[B, C, H, W]` to `[B, K]`.

    Raises:
        UserError: the network cannot be deployed; the message names the layer.
    """
    model = copy.deepcopy(model).cpu().eval()
    for constraint in constraints(model):
        constraint.deploy(model)
    for layer in list(model.modules()):
        if attached(layer) is not None:
            bake(layer)
    graph = Graph(model)
    for node in list(model.graph.nodes):
        if graph.is_layer(node):
            layer, batch_norm = with_batch_norm(graph, node)
            if batch_norm is not None:
                assert isinstance(layer, nn.Conv2d)
                replace_layer(graph, node, fuse_conv_bn_eval(layer, batch_norm))
        elif _is_global_average_pool(graph, node):
            with model.graph.inserting_after(node):
                pool = model.graph.call_function(
                    torch.ops.pqd.global_average_pool.default, tuple(graph.activations(node))
                )
            node.replace_all_uses_with(pool)
            model.graph.erase_node(node)
    model.delete_all_unused_submodules()
    model.graph.lint()
    model.recompile()
    return model


def _is_global_average_pool(graph: Graph, node: fx.Node) -> bool:
    module = graph.module(node)
    size: Any = None
    if isinstance(module, nn.AdaptiveAvgPool2d):
        size = module.output_size
    elif node.target is F.adaptive_avg_pool2d:
        size = node.kwargs.get("output_size", *node.args[1:2])
    return size == 1 or (isinstance(size, list | tuple) and tuple(size) == (1, 1))
