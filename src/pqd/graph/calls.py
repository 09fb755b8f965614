"""Calls in one form: tensors are passed by position."""

import inspect
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._jit_internal import boolean_dispatched
from torch.fx.node import map_aggregate
from torch.fx.operator_schemas import get_signature_for_torch_op


def tensors_first(
    root: nn.Module, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Passes by position what is passed by name, up to the last tensor among it."""
    if not any(map(_holds_tensor, kwargs.values())):
        return args, kwargs
    for signature in _signatures(root, kind, target):
        names = [p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            continue
        if len(args) > len(names):
            continue
        bound.apply_defaults()
        moved = [i for i, n in enumerate(names) if n in kwargs and _holds_tensor(kwargs[n])]
        first = names[: max([len(args) - 1, *moved]) + 1]
        rest = {name: value for name, value in kwargs.items() if name not in first}
        return tuple(bound.arguments[name] for name in first), rest
    return args, kwargs


def _signatures(root: nn.Module, kind: str, target: Any) -> list[inspect.Signature]:
    if kind == "call_module":
        return [inspect.signature(root.get_submodule(target).forward)]
    function = getattr(torch, target, None) if kind == "call_method" else target
    if function is not None and function in boolean_dispatched:
        function = boolean_dispatched[function]["if_true"]
    found = get_signature_for_torch_op(function) if callable(function) else None
    if found or not inspect.isfunction(function):
        return found or []
    return [inspect.signature(function)]


def _holds_tensor(value: Any) -> bool:
    found = []
    map_aggregate(value, lambda v: found.append(v) if isinstance(v, fx.Proxy | Tensor) else None)
    return bool(found)
