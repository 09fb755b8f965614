"""Replaces operations in place by ones that return a new value, which all later readers get.

Constraints and exporters take for granted that a value in the graph never changes.
"""

import operator
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from pqd.errors import UserError
from pqd.graph.fakes import Fakes

_NAMES = ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift")
OPERATORS: dict[str, Any] = {
    name: getattr(operator, f"__{name}__") for name in (*_NAMES, "and", "or", "xor")
}
_NEW = {getattr(operator, f"i{name}"): function for name, function in OPERATORS.items()}


def without_writes(graph: fx.Graph, fakes: Fakes, name: str) -> None:
    """Lets every reader of a value that was written in place read what was written.

    Args:
        graph: as traced; `a += b` becomes `a + b`.
        fakes: the values of its nodes.
        name: the backbone's name, for messages.

    Raises:
        UserError: a later reader sees another part or shape of what was written.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    sharing: dict[int, list[fx.Node]] = defaultdict(list)  # by memory, the nodes that return it
    for node in graph.nodes:
        for written in fakes.written(node):
            for alias in sharing[_memory(written)]:
                for user in [user for user in alias.users if order[user] > order[node]]:
                    if not _reads(user, alias, written, fakes):
                        continue
                    if not _same(fakes.of(alias), written) or not _same(fakes.of(node), written):
                        raise _refused(name, node, user)
                    user.replace_input_with(alias, node)
        if fakes.of(node) is None and _is_in_place(node):  # what it writes is not known
            for user in [u for n in node.all_input_nodes[:1] for u in n.users]:
                if order[user] > order[node]:
                    raise _refused(name, node, user)
        for memory in {_memory(tensor) for tensor in _tensors(fakes.of(node))}:
            sharing[memory].append(node)
        node.target = _NEW.get(node.target, node.target)


def _reads(user: fx.Node, alias: fx.Node, written: Tensor, fakes: Fakes) -> bool:
    """Tells whether a node reads, of a value, anything that was written."""
    value = fakes.of(user)
    if value is not None and not _tensors(value):  # a number of its shape
        return False
    # Of a view that it makes, only what the view shows.
    views = [t for t in _tensors(value) if _memory(t) == _memory(written)]
    return any(_overlap(t, written) for t in views or _tensors(fakes.of(alias)))


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _same(value: Any, written: Tensor) -> bool:
    """Tells whether a value is all of what was written, and nothing else."""
    return isinstance(value, Tensor) and _place(value) == _place(written)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    where = _memory(tensor), tensor.storage_offset()
    return *where, tensor.shape, tensor.stride(), tensor.dtype


def _overlap(one: Tensor, other: Tensor) -> bool:
    if _memory(one) != _memory(other):
        return False
    if one.dtype != other.dtype or _place(one) == _place(other):
        return True
    marks = torch.zeros(one.untyped_storage().nbytes() // one.element_size(), dtype=torch.bool)
    marks.as_strided(one.shape, one.stride(), one.storage_offset()).fill_(True)
    return bool(marks.as_strided(other.shape, other.stride(), other.storage_offset()).any())


def _is_in_place(node: fx.Node) -> bool:
    """Tells by torch's names whether an operation writes to what it reads."""
    name = str(getattr(node.target, "__name__", node.target))
    named = name.endswith("_") and not name.endswith("__")
    return node.op != "call_module" and (node.target in _NEW or named)


def _refused(name: str, node: fx.Node, user: fx.Node) -> UserError:
    return UserError(
        f"backbone.name={name} cannot be traced by torch.fx: {node.name} changes in place what "
        f"{user.name} reads later through another view; a new value is supported "
        "(x = x + y, not x += y; inplace=False)"
    )
