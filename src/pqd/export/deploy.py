"""From the trained network to the deployed one: batch norm folded, weights as integers."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pqd.constraints.fake_quant import ActivationFakeQuant, WeightFakeQuant
from pqd.constraints.parametrization import attached, bake
from pqd.errors import UserError
from pqd.export.layers import IntegerLayer, QuantizeDequantize
from pqd.export.repeat import repeat_quantizers
from pqd.graph.view import Graph


@torch.no_grad()
def deployed(model: fx.GraphModule) -> fx.GraphModule:
    """Returns the network as it is deployed; the given one stays as it is.

    Quantized layers become integer ones, batch norms that follow a convolution are folded
    (|gamma| / sqrt(var + eps) into the weight scale, its sign into the codes, the shift into the
    bias), masks become zeros. A batch norm that follows anything else stays.

    Args:
        model: a traced network with any constraints attached, `[B, C, H, W]` to `[B, K]`.
    """
    model = copy.deepcopy(model).cpu().eval()
    for layer in list(model.modules()):
        if attached(layer) is not None and not _is_quantized(layer):
            bake(layer)
    graph = Graph(model)
    for node in list(model.graph.nodes):
        if graph.is_layer(node):
            _deploy_layer(graph, node)
        elif _is_global_average_pool(graph, node):
            with model.graph.inserting_after(node):
                pool = model.graph.call_function(
                    torch.ops.pqd.global_average_pool.default, tuple(graph.activations(node))
                )
            node.replace_all_uses_with(pool)
            model.graph.erase_node(node)
    for name, module in list(model.named_modules()):
        if isinstance(module, ActivationFakeQuant):
            model.set_submodule(name, QuantizeDequantize(module))
    repeat_quantizers(model)
    model.delete_all_unused_submodules()
    model.graph.lint()
    model.recompile()
    return model


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
        layer, batch_norm = _with_batch_norm(graph, node)
        if not _is_quantized(layer):
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


def _deploy_layer(graph: Graph, node: fx.Node) -> None:
    layer, batch_norm = _with_batch_norm(graph, node)
    batch_norm_node = graph.folded_batch_norm(node)
    new: nn.Module
    if _is_quantized(layer):
        new = IntegerLayer(layer, *_folded(layer, batch_norm), _input_scale(graph, node))
    elif batch_norm is not None:
        assert isinstance(layer, nn.Conv2d)
        new = fuse_conv_bn_eval(layer, batch_norm)
    else:
        return
    _refuse_other_readers(graph, str(node.target))
    graph.model.set_submodule(str(node.target), new)
    node.args, node.kwargs = tuple(graph.activations(node)), {}
    if batch_norm_node is not None:
        batch_norm_node.replace_all_uses_with(node)
        graph.model.graph.erase_node(batch_norm_node)


def _refuse_other_readers(graph: Graph, layer: str) -> None:
    """Raises where the network reads a parameter of a layer that is deployed as another."""
    for node in graph.model.graph.nodes:
        owner, _, parameter = str(node.target).rpartition(".")
        if node.op == "get_attr" and owner == layer:
            readers = ", ".join(user.name for user in node.users)
            raise UserError(
                f"backbone layer {layer} cannot be deployed: its {parameter} is read outside the "
                f"layer as well ({readers}); only the layer itself may read it"
            )


def _with_batch_norm(
    graph: Graph, node: fx.Node
) -> tuple[nn.Conv2d | nn.Linear, nn.BatchNorm2d | None]:
    """Returns a layer and the batch norm that is folded into it."""
    layer = graph.module(node)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    following = graph.folded_batch_norm(node)
    batch_norm = None if following is None else graph.module(following)
    assert isinstance(batch_norm, nn.BatchNorm2d | None)
    return layer, batch_norm


def _is_global_average_pool(graph: Graph, node: fx.Node) -> bool:
    module = graph.module(node)
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return module.output_size in (1, (1, 1))
    size = node.kwargs.get("output_size", *node.args[1:2])
    return node.target is F.adaptive_avg_pool2d and size in (1, (1, 1))


def _folded(
    layer: nn.Conv2d | nn.Linear, batch_norm: nn.BatchNorm2d | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns codes [K, ...], weight scale [K] and float bias [K] after folding."""
    parametrizations = attached(layer)
    assert parametrizations is not None
    *before, fake_quant = parametrizations
    assert isinstance(fake_quant, WeightFakeQuant)
    weight = parametrizations.original
    for mask in before:
        weight = mask(weight)
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


def _is_quantized(layer: nn.Module) -> bool:
    return any(isinstance(p, WeightFakeQuant) for p in attached(layer) or ())
