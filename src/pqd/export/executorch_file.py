"""Writing a network as an ExecuTorch program for XNNPACK, the CPU of phones and ARM boards."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401  (registers quantized_decomposed)

from pqd.constraints.integers.layers import IntegerLayer, QuantizeDequantize
from pqd.export.deploy import deployed
from pqd.files import write
from pqd.graph.view import Graph
from pqd.notices import silenced
from pqd.runtimes.executorch import NOISY

METADATA = "metadata"  # the method that returns it

_INT8 = (-128, 127, torch.int8)
_integer = torch.ops.quantized_decomposed


def write_executorch(
    model: fx.GraphModule,
    path: Path,
    input_shape: tuple[int, int, int],
    metadata: Mapping[str, object],
) -> None:
    """Writes the deployed form of a network; in integers where it is quantized, float elsewhere.

    The program takes one image at a time.

    Args:
        model: a traced network with any constraints attached.
        path: the file, replaced atomically.
        input_shape: (C, H, W).
        metadata: the method `metadata` of the program returns it, as JSON.
    """
    with silenced(*NOISY):
        import executorch.kernels.quantized  # noqa: F401  (quantizers outside XNNPACK)
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

        network = for_xnnpack(deployed(model))
        program = torch.export.export(network, (torch.zeros(1, *input_shape),))
        edge = to_edge_transform_and_lower(
            program,
            partitioner=[XnnpackPartitioner()],
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
            constant_methods={METADATA: json.dumps(metadata)},
        )
        write(path, edge.to_executorch().buffer)


def for_xnnpack(model: fx.GraphModule) -> fx.GraphModule:
    """Spells a deployed network in the operators that ExecuTorch's XNNPACK partitioner knows.

    Quantizers are INT8, with codes and zero point less 128. XNNPACK computes a layer in integers
    where a quantizer follows it, with or without a ReLU in between. Another one, such as the last,
    computes in float what the integers stand for.

    Args:
        model: what `deployed` returns; changed in place.

    Returns:
        The same network.
    """
    graph = Graph(model)
    _drop_repeats(graph)
    for node in list(model.graph.nodes):
        module = graph.module(node)
        if isinstance(module, IntegerLayer):
            kind = IntegerWeights if _is_rounded(graph, node) else FloatWeights
            model.set_submodule(str(node.target), kind(module))
        elif node.target is torch.ops.pqd.global_average_pool.default:
            node.target, node.args = torch.mean, (*node.args, (2, 3), True)
    for node in list(model.graph.nodes):
        if isinstance(quantizer := graph.module(node), QuantizeDequantize):
            _spell(model.graph, node, quantizer)
    model.delete_all_unused_submodules()
    model.graph.lint()
    model.recompile()
    return model


class IntegerWeights(nn.Module):
    """A layer whose weight is INT8; XNNPACK rounds its float bias back to INT32."""

    def __init__(self, layer: IntegerLayer) -> None:
        """Takes codes and scales over."""
        super().__init__()
        self.convolution = layer.convolution
        self.register_buffer("codes", layer.codes)
        self.register_buffer("scale", layer.scale)
        self.register_buffer("zero_point", layer.zero_point.long())
        self.bias = _constant(layer.bias_codes.double() * layer.bias_scale.double())

    def weight(self) -> Tensor:
        """Returns the weight [K, ...]."""
        parameters = (self.codes, self.scale, self.zero_point)
        return _integer.dequantize_per_channel.default(*parameters, 0, -127, 127, torch.int8)

    def forward(self, x: Tensor) -> Tensor:
        """Computes the layer on `[B, C, H, W]` (convolution) or `[..., C]` (linear)."""
        if self.convolution is None:
            return F.linear(x, self.weight(), self.bias)
        return F.conv2d(x, self.weight(), self.bias, **self.convolution)


class FloatWeights(IntegerWeights):
    """A layer whose weight is float, with the values of the integers."""

    def __init__(self, layer: IntegerLayer) -> None:
        """Multiplies codes by scales."""
        super().__init__(layer)
        scale = layer.scale.view(-1, *[1] * (layer.codes.ndim - 1))
        self.values = _constant(layer.codes * scale)
        del self.codes, self.scale, self.zero_point

    def weight(self) -> Tensor:
        """Returns the weight [K, ...]."""
        return self.values


def _constant(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.float(), requires_grad=False)


def _drop_repeats(graph: Graph) -> None:
    """Drops quantizers whose values the same quantizer rounds again, with or without a ReLU.

    Other runtimes need both (see `repeat_quantizers`). XNNPACK adds rounded values, and gives any
    layer or sum the bounds of a ReLU.
    """
    for node in list(graph.model.graph.nodes):
        if not isinstance(graph.module(node), QuantizeDequantize):
            continue
        follower = graph.follower(node)
        if follower is not None and graph.is_relu(follower):
            follower = graph.follower(follower)
        made = graph.module(node.args[0])
        in_integers = isinstance(made, IntegerLayer) or graph.is_sum(node.args[0])
        if in_integers and follower is not None and follower.target == node.target:
            node.replace_all_uses_with(node.args[0])
            graph.model.graph.erase_node(node)


def _is_rounded(graph: Graph, layer: fx.Node) -> bool:
    """Tells whether all that a layer gives, but for a ReLU, goes into one quantizer."""
    follower = graph.follower(layer)
    if follower is not None and graph.is_relu(follower):
        follower = graph.follower(follower)
    return follower is not None and isinstance(graph.module(follower), QuantizeDequantize)


def _spell(graph: fx.Graph, node: fx.Node, quantizer: QuantizeDequantize) -> None:
    """Replaces the call of a quantizer.

    Every reader gets an operator that dequantizes of its own: those that share one, the partitioner
    puts into a delegate together, and a network with branches into a dozen delegates.
    """
    shift = torch.iinfo(quantizer.zero_point.dtype).min - torch.iinfo(torch.int8).min
    parameters: tuple[Any, ...] = (
        quantizer.scale.item(),
        int(quantizer.zero_point.item()) - shift,
        *_INT8,
    )
    with graph.inserting_after(node):
        codes = graph.call_function(
            _integer.quantize_per_tensor.default, (node.args[0], *parameters)
        )
    for reader in list(node.users):
        with graph.inserting_before(reader):
            values = graph.call_function(
                _integer.dequantize_per_tensor.default, (codes, *parameters)
            )
        reader.replace_input_with(node, values)
    graph.erase_node(node)
