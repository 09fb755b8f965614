"""Quantizers that a deployed network repeats: they change no value and tell runtimes what to do."""

from torch import fx

from pqd.constraints.integers.layers import IntegerLayer, QuantizeDequantize
from pqd.graph.view import Graph, read_instead


def repeat_quantizers(model: fx.GraphModule) -> None:
    """Repeats quantizers where a runtime needs them to compute with integers, or to round.

    Args:
        model: a network with `IntegerLayer` and `QuantizeDequantize`, changed in place.
    """
    _keep_grids(Graph(model))
    _round_before_sums(Graph(model))
    _round_before_relus(Graph(model))


def _keep_grids(graph: Graph) -> None:
    """Repeats a quantizer behind operations that only move values.

    It changes nothing (the values are on its grid already) and tells the runtime that, say, a
    max-pool can run on the codes.
    """
    for node in list(graph.model.graph.nodes):
        if not graph.is_pass(node) or graph.is_tuple(node):
            continue
        if _becomes_part_of_convolutions(graph, node):
            continue
        sources = graph.sources(node)
        shared = len({source.target for source in sources}) == 1
        if shared and isinstance(graph.module(sources[0]), QuantizeDequantize):
            _quantize_again(graph, sources[0], after=node)


def _becomes_part_of_convolutions(graph: Graph, node: fx.Node) -> bool:
    """Tells whether runtimes pad in the convolutions behind a pad, if nothing is in between."""
    pad = graph.zero_pad(node)
    around_image = pad is not None and len(pad) == 4
    return around_image and all(isinstance(graph.module(u), IntegerLayer) for u in node.users)


def _round_before_sums(graph: Graph) -> None:
    """Repeats the quantizer between a layer and a sum.

    It changes nothing, and ONNX Runtime removes it. Without it OpenVINO, which runs all three as
    one operation, does not round before it adds ("drop rounding", dnnl_postops_composer.cpp): two
    ResNet-20s agreed with ONNX Runtime on 99.1 % of CIFAR-10, and on 99.9 % once rounded. A
    quantizer that was trained not to round is therefore left alone.
    """
    for node in filter(graph.is_sum, list(graph.model.graph.nodes)):
        for quantizer in node.all_input_nodes:
            module = graph.module(quantizer)
            if not isinstance(module, QuantizeDequantize) or not module.rounds:
                continue
            layer = graph.module(quantizer.all_input_nodes[0])  # behind a ReLU it does round
            if isinstance(layer, IntegerLayer) and graph.follower(quantizer) is node:
                _quantize_again(graph, quantizer, after=quantizer)


def _round_before_relus(graph: Graph) -> None:
    """Repeats the quantizer behind a ReLU in front of it, where its range is wider than the ReLU's.

    Such a range comes from values that are joined with those of the ReLU. It changes nothing, as
    rounding keeps the order of values and zero; without it ONNX Runtime computes the layer or sum
    in float, because the quantizer cannot stand for the ReLU.
    """
    for node in filter(graph.is_relu, list(graph.model.graph.nodes)):
        made, quantizer = graph.activations(node)[0], graph.follower(node)
        in_integers = isinstance(graph.module(made), IntegerLayer) or graph.is_sum(made)
        if in_integers and quantizer is not None:
            module = graph.module(quantizer)
            if isinstance(module, QuantizeDequantize) and (
                module.zero_point > 0 or module.largest() > graph.relu_ceiling(node) + 1e-3
            ):
                _quantize_again(graph, quantizer, after=made)


def _quantize_again(graph: Graph, quantizer: fx.Node, after: fx.Node) -> None:
    """Calls the module of a quantizer on the value of `after` as well."""
    with graph.model.graph.inserting_after(after):
        again = graph.model.graph.call_module(str(quantizer.target), (after,))
    read_instead(after, again)
