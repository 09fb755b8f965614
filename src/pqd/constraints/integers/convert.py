"""From fake-quantizers to integers."""

import torch
from torch import Tensor, fx, nn

from pqd.constraints.fake_quant import ActivationFakeQuant, WeightFakeQuant
from pqd.constraints.integers.layers import IntegerLayer, QuantizeDequantize
from pqd.constraints.integers.repeat import repeat_quantizers
from pqd.constraints.parametrization import attached, value_before
from pqd.graph.fold import replace_layer, with_batch_norm
from pqd.graph.view import Graph


@torch.no_grad()
def to_integers(model: fx.GraphModule) -> None:
    """Makes quantized layers integer ones, in place.

    The batch norm that follows a convolution is folded: |gamma| / sqrt(var + eps) into the weight
    scale, its sign into the codes, the shift into the bias.

    Args:
        model: a traced network with fake-quantizers, in evaluation mode.

    Raises:
        UserError: something else reads a parameter of such a layer.
    """
    graph = Graph(model)
    for node in filter(graph.is_layer, list(model.graph.nodes)):
        layer, batch_norm = with_batch_norm(graph, node)
        if is_quantized(layer):
            codes, scale, bias = _folded(layer, batch_norm)
            new = IntegerLayer(layer, codes, scale, bias, _input_scale(graph, node))
            replace_layer(graph, node, new)
    for name, module in list(model.named_modules()):
        if isinstance(module, ActivationFakeQuant):
            model.set_submodule(name, QuantizeDequantize(module))
    repeat_quantizers(model)


@torch.no_grad()
def round_biases(model: fx.GraphModule) -> None:
    """Moves the biases of quantized layers, in place, onto the INT32 grid of their deployed form.

    Off the grid, a bias shifts its whole channel by up to half a step of the accumulator. A few
    codes then round the other way, and every further layer multiplies the difference: a ResNet-20
    agreed with its deployed form on 99.3 % of CIFAR-10, and on all images once rounded.

    Args:
        model: a traced network with any constraints attached.
    """
    graph = Graph(model)
    for node in model.graph.nodes:
        if not graph.is_layer(node):
            continue
        layer, batch_norm = with_batch_norm(graph, node)
        if not is_quantized(layer):
            continue
        codes, scale, bias = _folded(layer, batch_norm)
        deployed_layer = IntegerLayer(layer, codes, scale, bias, _input_scale(graph, node))
        change = deployed_layer.bias_codes * deployed_layer.bias_scale - bias
        owner = layer if batch_norm is None else batch_norm
        if owner.bias is not None:
            owner.bias += change
        elif batch_norm is not None:
            assert batch_norm.running_mean is not None
            assert batch_norm.running_var is not None
            batch_norm.running_mean -= change * torch.sqrt(batch_norm.running_var + batch_norm.eps)


def _folded(
    layer: nn.Conv2d | nn.Linear, batch_norm: nn.BatchNorm2d | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns codes [K, ...], weight scale [K] and float bias [K] after folding."""
    parametrizations = attached(layer)
    assert parametrizations is not None
    fake_quant = parametrizations[-1]
    assert isinstance(fake_quant, WeightFakeQuant)
    weight = value_before(layer, WeightFakeQuant)
    codes = fake_quant.codes(weight)
    scale = fake_quant.scale(weight).flatten()
    bias = torch.zeros_like(scale) if layer.bias is None else layer.bias
    if batch_norm is not None:
        assert batch_norm.running_var is not None
        assert batch_norm.running_mean is not None
        gain = torch.rsqrt(batch_norm.running_var + batch_norm.eps)
        gain = gain if batch_norm.weight is None else gain * batch_norm.weight
        shift = 0.0 if batch_norm.bias is None else batch_norm.bias
        bias = shift + (bias - batch_norm.running_mean) * gain
        scale = scale * gain.abs()
        codes = codes * gain.sign().to(torch.int8).view(-1, *[1] * (codes.ndim - 1))
    return codes, scale, bias


def _input_scale(graph: Graph, node: fx.Node) -> Tensor:
    source = graph.sources(graph.activations(node)[0])[0]
    quantizer = graph.module(source)
    assert isinstance(quantizer, ActivationFakeQuant), f"{node} reads {source}, not a quantizer"
    return quantizer.scale.float()


def is_quantized(layer: nn.Module) -> bool:
    """Tells whether a layer computes with fake-quantized weights."""
    return any(isinstance(p, WeightFakeQuant) for p in attached(layer) or ())
