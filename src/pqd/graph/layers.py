"""Which layers of a traced network are plain, so that constraints may reach their weights."""

from collections import Counter

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pqd.errors import UserError
from pqd.graph.tracer import is_changed

# What a subclass may define and still compute what its base does.
_HOW_IT_IS_MADE = {
    *("__init__", "__module__", "__qualname__", "__doc__", "__annotations__", "__parameters__"),
    *("__repr__", "__constants__", "__firstlineno__", "__static_attributes__", "__annotate_func__"),
    *("__annotations_cache__", "reset_parameters", "extra_repr"),
}
_ARGUMENTS = {
    F.conv2d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    F.linear: ("input", "weight", "bias"),
}
_DEFAULTS = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}


def unwrap_constructors(net: nn.Module) -> None:
    """Makes every layer of a class that only changes how torch's layer is made, torch's layer.

    Convolutions and linear layers need none of this: they are traced into.
    """
    for layer in net.modules():
        if any(layer.children()):
            continue
        kinds = type(layer).__mro__
        base = next(kind for kind in kinds if kind.__module__.startswith("torch.nn."))
        derived = kinds[: kinds.index(base)]
        if base is not nn.Module and all(vars(k).keys() <= _HOW_IT_IS_MADE for k in derived):
            layer.__class__ = base


def lift_layers(graph: fx.Graph, net: nn.Module, entered: list[str], name: str) -> None:
    """Makes plain layers of the convolutions and linear layers that were traced into.

    Raises:
        UserError: one multiplies with something else than its own weight.
    """
    for path in entered:
        layer = net.get_submodule(path)
        calls = [node for node in graph.nodes if _multiplies_with(node, f"{path}.weight")]
        weight = layer._parameters.get("weight")
        if weight is None or not calls:
            raise _not_plain(layer, path, name)
        for node in calls:
            given = _DEFAULTS | dict(zip(_ARGUMENTS[node.target], node.args, strict=False))
            given |= node.kwargs
            bias = given["bias"]
            own = f"{path}.bias" if layer._parameters.get("bias") is not None else None
            if (bias.target if isinstance(bias, fx.Node) else bias) != own:
                raise _not_plain(layer, path, name)
            with graph.inserting_before(node):
                call = graph.call_module(path, (given["input"],))
            node.replace_all_uses_with(call)
            graph.erase_node(node)
            for argument in [given["weight"], bias]:
                if isinstance(argument, fx.Node) and not argument.users:
                    graph.erase_node(argument)
        # What the layer's own forward and hooks do is in the graph now.
        vars(layer).pop("forward", None)
        layer._forward_hooks.clear()
        layer._forward_pre_hooks.clear()
        if node.target is F.linear:
            layer.__class__ = nn.Linear
            continue
        layer.__class__ = nn.Conv2d
        given["padding_mode"] = "zeros"
        for key in ("stride", "padding", "dilation", "groups", "padding_mode"):
            value = given[key]
            pair = key != "groups" and isinstance(value, int)
            setattr(layer, key, (value, value) if pair else value)


def check_layers(graph: fx.Graph, net: nn.Module, name: str) -> None:
    """Checks that constraints may reach the weights of all layers.

    Raises:
        UserError: a layer is called at several places (each has a range and a batch norm of its
            own), carries a hook, or something else reads its weight; a batch norm is called at
            several places (each has a bias, and all have their statistics in common), or has no
            running statistics; or layers share a tensor.
    """
    where = f"backbone.name={name}"
    counts = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    owners: dict[Tensor, str] = {}
    for path, count in counts.items():
        layer = net.get_submodule(path)
        if type(layer).__module__.startswith("torch.nn.") and is_changed(layer):
            raise UserError(
                f"{where} cannot be compressed: layer {path} ({type(layer).__name__}) carries a "
                "hook or a forward of its own; a layer without them is accepted"
            )
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is None:
            raise UserError(
                f"{where}: batch norm {path} keeps no running statistics; "
                "track_running_stats=True is supported"
            )
        for kind, tensor in (*layer.named_parameters(), *layer.named_buffers()):
            if (other := owners.setdefault(tensor, path)) != path:
                raise UserError(
                    f"{where}: layers {other} and {path} share their {kind}; "
                    f"layers with a {kind} each are supported"
                )
        plain_layer = isinstance(layer, nn.Conv2d | nn.Linear)
        if count > 1 and (plain_layer or type(layer) is nn.BatchNorm2d):
            raise UserError(f"{where} calls layer {path} {count} times; once is supported")
        if not plain_layer:
            continue
        for node in graph.nodes:
            if node.op == "get_attr" and node.target == f"{path}.weight":
                raise UserError(
                    f"{where} cannot be compressed: {next(iter(node.users)).name} reads the weight "
                    f"of layer {path}, which pruning and quantization change; only the layer "
                    "itself may read it"
                )


def _multiplies_with(node: fx.Node, weight: str) -> bool:
    if node.op != "call_function" or node.target not in _ARGUMENTS:
        return False
    given = (*node.args[1:2], *(node.kwargs[k] for k in ("weight",) if k in node.kwargs))
    return any(isinstance(a, fx.Node) and a.target == weight for a in given)


def _not_plain(layer: nn.Module, path: str, name: str) -> UserError:
    kind, plain, call = (
        ("convolution", "nn.Conv2d", "F.conv2d")
        if isinstance(layer, nn.Conv2d)
        else ("linear layer", "nn.Linear", "F.linear")
    )
    parametrized = torch.nn.utils.parametrize.is_parametrized(layer)
    own = " with a parametrized weight" if parametrized else ""
    return UserError(
        f"backbone.name={name} cannot be compressed: layer {path} ({type(layer).__name__}{own}) is "
        f"no plain {kind}: it computes its weight; accepted are {plain} and "
        f"subclasses that call {call} with their own weight and bias"
    )
