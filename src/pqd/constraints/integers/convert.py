"""From fake-quantizers to integers."""

from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from pqd.constraints.fake_quant import ActivationFakeQuant, WeightFakeQuant
from pqd.constraints.integers.layers import IntegerLayer, QuantizeDequantize
from pqd.constraints.integers.repeat import repeat_quantizers
from pqd.constraints.parametrization import attached, value_before
from pqd.graph.fold import replace_layer, with_batch_norm
from pqd.graph.view import Graph
from pqd.scheme import Scheme

_ONE = 64  # the code of a batch norm's gain


@torch.no_grad()
def to_integers(model: fx.GraphModule, scheme: Scheme) -> None:
    """Makes quantized layers integer ones, in place.

    The batch norm that follows a convolution is folded: |gamma| / sqrt(var + eps) into the weight
    scale, its sign into the codes, the shift into the bias.

    Args:
        model: a traced network with fake-quantizers, in evaluation mode.
        scheme: says what batch norms between two quantizers become.

    Raises:
        UserError: something else reads a parameter of such a layer.
    """
    graph = Graph(model)
    for node, form in [(node, _integer_form(graph, node)) for node in model.graph.nodes]:
        if form is not None and (graph.is_layer(node) or scheme.norms == "convolution"):
            replace_layer(graph, node, form.layer)
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
        if (form := _integer_form(graph, node)) is None:
            continue
        owner = form.owner
        change = form.layer.bias_codes * form.layer.bias_scale - form.bias
        if owner.bias is not None:
            owner.bias += change
        elif isinstance(owner, nn.BatchNorm2d):
            assert owner.running_mean is not None
            assert owner.running_var is not None
            owner.running_mean -= change * torch.sqrt(owner.running_var + owner.eps)


class _Form(NamedTuple):
    layer: IntegerLayer
    bias: Tensor  # [K], before it was rounded
    owner: nn.Conv2d | nn.Linear | nn.BatchNorm2d  # what holds the bias


def _integer_form(graph: Graph, node: fx.Node) -> _Form | None:
    """Returns what a node is deployed as; None if it computes in float, or is folded."""
    batch_norm: nn.Module | None
    if graph.is_layer(node):
        layer, batch_norm = with_batch_norm(graph, node)
        if not is_quantized(layer):
            return None
        codes, scale, bias = _quantized(layer)
    elif _is_between_quantizers(graph, node):
        batch_norm = graph.module(node)
        assert isinstance(batch_norm, nn.BatchNorm2d)
        layer, codes, scale, bias = _identity(batch_norm.num_features)
    else:
        return None
    if batch_norm is not None:
        codes, scale, bias = _folded(codes, scale, bias, batch_norm)
    new = IntegerLayer(layer, codes, scale, bias, _input_scale(graph, node))
    return _Form(new, bias, layer if batch_norm is None else batch_norm)


def _is_between_quantizers(graph: Graph, node: fx.Node) -> bool:
    """Tells whether a batch norm that follows no convolution reads and writes integers."""
    if not graph.is_batch_norm(node):
        return False
    around = [*graph.sources(graph.activations(node)[0]), *graph.readers(graph.end(node))]
    return all(isinstance(graph.module(other), ActivationFakeQuant) for other in around)


def _identity(channels: int) -> tuple[nn.Conv2d, Tensor, Tensor, Tensor]:
    """Returns a convolution of each channel by itself that changes nothing: see `_quantized`.

    A power of two makes its codes exact, and sums of few bits: also without VNNI none saturates.
    """
    layer = nn.Conv2d(channels, channels, 1, groups=channels)
    codes = torch.full((channels, 1, 1, 1), _ONE, dtype=torch.int8)
    return layer, codes, torch.full((channels,), 1 / _ONE), torch.zeros(channels)


def _quantized(layer: nn.Conv2d | nn.Linear) -> tuple[Tensor, Tensor, Tensor]:
    """Returns codes [K, ...], weight scale [K] and float bias [K] of a layer by itself."""
    parametrizations = attached(layer)
    assert parametrizations is not None
    fake_quant = parametrizations[-1]
    assert isinstance(fake_quant, WeightFakeQuant)
    weight = value_before(layer, WeightFakeQuant)
    codes = fake_quant.codes(weight)
    scale = fake_quant.scale(weight).flatten()
    return codes, scale, torch.zeros_like(scale) if layer.bias is None else layer.bias


def _folded(
    codes: Tensor, scale: Tensor, bias: Tensor, batch_norm: nn.BatchNorm2d
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the same of a layer and the batch norm behind it."""
    assert batch_norm.running_var is not None
    assert batch_norm.running_mean is not None
    gain = torch.rsqrt(batch_norm.running_var + batch_norm.eps)
    gain = gain if batch_norm.weight is None else gain * batch_norm.weight
    shift = 0.0 if batch_norm.bias is None else batch_norm.bias
    bias = shift + (bias - batch_norm.running_mean) * gain
    codes = codes * gain.sign().to(torch.int8).view(-1, *[1] * (codes.ndim - 1))
    return codes, scale * gain.abs(), bias


def _input_scale(graph: Graph, node: fx.Node) -> Tensor:
    source = graph.sources(graph.activations(node)[0])[0]
    quantizer = graph.module(source)
    assert isinstance(quantizer, ActivationFakeQuant), f"{node} reads {source}, not a quantizer"
    return quantizer.scale.float()


def is_quantized(layer: nn.Module) -> bool:
    """Tells whether a layer computes with fake-quantized weights."""
    return any(isinstance(p, WeightFakeQuant) for p in attached(layer) or ())
