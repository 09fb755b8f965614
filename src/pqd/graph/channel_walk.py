"""Runs a traced network with names of channels in place of values (see `pqd.graph.channels`)."""

import operator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.utils._pytree import tree_iter, tree_map

from pqd.graph.standardize import is_standardized
from pqd.graph.view import DROP_PATH, Graph, described, full_name

Side = Literal["out", "in"]

PADDING, PINNED = 0, 1  # names of no channel, and of those that stay


def _named(*names: str) -> set[Any]:
    found = {
        getattr(module, n) for module in (torch, F, operator) for n in names if n in dir(module)
    }
    return {*names} | found


_ACTIVATIONS = _named(
    *("relu", "relu_", "relu6", "silu", "gelu", "sigmoid", "sigmoid_", "tanh", "tanh_", "mish"),
    *("hardswish", "hardsigmoid", "hardtanh", "leaky_relu", "elu", "selu", "celu", "softplus"),
    *("clamp", "clamp_", "neg", "abs"),
)
_DROPS = {full_name(nn.Dropout), full_name(nn.Dropout2d), DROP_PATH}  # in training only
_FAKE_QUANT = "pqd.constraints.fake_quant.ActivationFakeQuant"
_ARITHMETIC = _named("add", "iadd", "add_", "sub", "isub", "sub_", "mul", "imul", "mul_")
_MEAN = _named("mean")
_MIXING = {nn.Softmax, nn.Softmax2d, nn.Softmin, nn.LogSoftmax, nn.GLU, nn.MultiheadAttention}


class Names:
    """The names of all channels, which of them are united, and where they are read."""

    def __init__(self) -> None:
        """Starts without any."""
        self.parent = [PADDING, PINNED]
        self.sides: dict[tuple[str, Side], Tensor] = {}
        self.unsupported: list[str] = []

    def open(self, layer: str, count: int) -> Tensor:
        """Returns the names [count] of what a layer writes, new ones at the first call."""
        if (layer, "out") not in self.sides:
            first = len(self.parent)
            self.parent += range(first, first + count)
            self.sides[layer, "out"] = torch.arange(first, first + count)
        return self.sides[layer, "out"]

    def root(self, name: int) -> int:
        """Returns the name that stands for all that a name is united with."""
        while self.parent[name] != name:
            self.parent[name] = self.parent[self.parent[name]]
            name = self.parent[name]
        return name

    def unite(self, some: Tensor, others: Tensor) -> None:
        """Unites names pairwise; the two are broadcast against each other."""
        pairs = torch.stack([t.flatten() for t in torch.broadcast_tensors(some, others)])
        for one, other in pairs.unique(dim=1).long().T.tolist():
            if PADDING not in (one, other):
                low, high = sorted((self.root(one), self.root(other)))
                self.parent[high] = low  # the pinned root is the lowest

    def pin(self, value: Any) -> bool:
        """Pins all names in a value; tells whether one was free."""
        free = {
            self.root(name)
            for tensor in tree_iter(value)
            if isinstance(tensor, Tensor)
            for name in _core(tensor).unique().long().tolist()
        } - {PADDING, PINNED}
        for name in free:
            self.parent[name] = PINNED
        return bool(free)

    def roots(self) -> Tensor:
        """Returns the root of every name, int64 [names]."""
        return torch.tensor([self.root(name) for name in range(len(self.parent))])

    def some(self, seed: int) -> Tensor:
        """Returns which names are kept, bool [names]: pinned ones, and of each layer some.

        With odd seeds more of a layer's first channels, with even ones more of its last.
        """
        roots, generator = self.roots(), torch.Generator().manual_seed(seed)
        kept = torch.ones(len(roots), dtype=torch.bool)
        for names in self.sides.values():
            share = torch.linspace(0.1, 0.9, len(names))
            drawn = torch.rand(len(names), generator=generator) < (
                share.flip(0) if seed % 2 else share
            )
            kept[roots[names]] = drawn
        kept[: PINNED + 1] = True
        for names in self.sides.values():
            if not kept[roots[names]].any():
                kept[roots[names[0]]] = True
        return kept[roots]


class Shapes(fx.Interpreter):
    """Notes the shape of every value, as one full of pinned channels."""

    def __init__(self, model: fx.GraphModule) -> None:
        """Takes the network, in evaluation mode."""
        super().__init__(model)
        self.extra_traceback = False
        self.found: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Computes a value."""
        value = super().run_node(n)
        self.found[n] = tree_map(lambda v: pinned(v) if isinstance(v, Tensor) else v, value)
        return value


def pinned(tensor: Tensor) -> Tensor:
    """Returns names [1, ...] for a tensor [B, ...], all of them pinned."""
    shape = tensor.shape[1:] if tensor.ndim else tensor.shape
    return torch.tensor(float(PINNED), dtype=torch.float64).expand(1, *shape)


class Misfit(Exception):
    """An operation does not bear that channels are removed; they are pinned now."""


class Walk(fx.Interpreter):
    """Runs a graph on names of channels, float64 [1, ...] shaped as the activations are."""

    def __init__(
        self, model: fx.GraphModule, full: dict[fx.Node, Any], names: Names, kept: Tensor | None
    ) -> None:
        """Takes the shapes of all values, and which names are kept; None keeps all."""
        super().__init__(model)
        self.extra_traceback = False
        self.view, self.full, self.names, self.kept = Graph(model), full, names, kept
        self.roots = names.roots()
        # A layer whose weight something else reads, too, is not understood.
        self.shared = {
            str(n.target).rpartition(".")[0] for n in model.graph.find_nodes(op="get_attr")
        }

    def run_node(self, n: fx.Node) -> Any:
        """Returns the names in what a node writes.

        Raises:
            Misfit: it does not bear that channels are removed.
        """
        if not self.view.is_activation(n):
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if n.op in ("placeholder", "output"):
            return self.names.pin(args) if n.op == "output" else super().run_node(n)
        try:
            value = self._understood(n, args, kwargs)
        except (RuntimeError, ValueError, IndexError, TypeError):
            value = None  # it takes a fixed number of channels, and says so in some way
        if value is not None:
            return value
        read = [self.env[node] for node in self.view.activations(n)]  # constants hold no names
        return self._unknown(n, read)

    def _unknown(self, node: fx.Node, read: Any) -> Any:
        """Pins what a node reads and writes, and names it if that costs anything."""
        if self.names.pin(read):
            self.names.unsupported.append(described(self.view, node))
            if self.kept is not None:
                raise Misfit
        return self.full[node]

    def _understood(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """Returns the names in what a node writes; None if it is not understood."""
        view, module = self.view, self.view.module(node)
        if view.is_layer(node):
            return self._layer(node, module, args[0])
        if view.is_batch_norm(node):
            return self._batch_norm(node, args[0])
        if _is_elementwise(view, node, args):
            return args[0] if isinstance(args[0], Tensor) else args[1]
        if node.target in _ARITHMETIC and len(view.activations(node)) == 2:
            return self._sum(*args[:2])
        if view.is_average_pool(node) or view.is_max_pool(node):
            return self._pool(node, args, kwargs)
        if view.is_pass(node):
            return getattr(self, node.op)(node.target, args, kwargs)
        return None

    def _layer(self, node: fx.Node, layer: Any, value: Tensor) -> Tensor | None:
        name, convolution = str(node.target), isinstance(layer, nn.Conv2d)
        kind = type_before_parametrizations(layer)
        usual = kind in (nn.Conv2d, nn.Linear) or kind.__name__ == "Conv2dSame"  # padding apart
        usual &= not is_standardized(layer)  # by the mean over what it reads
        if not usual or name in self.shared or (convolution and value.ndim != 4):
            return None
        read = self._channels(node, "in", value, 1 if convolution else -1)
        written = self.names.open(name, layer.weight.shape[0])
        if convolution and layer.groups > 1 and self.kept is None:  # whole groups go
            of_group = read.unflatten(0, (layer.groups, -1))
            self.names.unite(of_group, of_group[:, :1])
            self.names.unite(written.unflatten(0, (layer.groups, -1)), of_group[:, :1])
        return self._like(node, written, 1 if convolution else -1)

    def _batch_norm(self, node: fx.Node, value: Tensor) -> Tensor:
        self._channels(node, "out", value, 1)
        return value

    def _sum(self, one: Tensor, other: Tensor) -> Tensor | None:
        """Unites two; what is broadcast over channels is pinned instead."""
        if one.ndim != other.ndim:
            return None
        for few, many in ((one, other), (other, one)):
            dims = [d for d in range(1, few.ndim) if few.shape[d] == 1 < many.shape[d]]
            if any((_core(many) != _core(many).narrow(d, 0, 1)).any() for d in dims):
                self._pin(few)
                return many.expand(torch.broadcast_shapes(few.shape, many.shape))
        one, other = torch.broadcast_tensors(one, other)
        ones, others = _core(one).long(), _core(other).long()
        padding = (ones == PADDING) | (others == PADDING)
        if self.kept is None:
            self.names.unite(ones, others)
        elif not ((self.roots[ones] == self.roots[others]) | padding).all():
            return None
        return torch.where(one == PADDING, other, one) if padding.any() else one

    def _pool(self, node: fx.Node, args: Any, kwargs: Any) -> Tensor | None:
        if not isinstance(self.full[node], Tensor):  # a max-pool that tells where it found them
            return None
        if node.target not in _MEAN:
            return self._like(node, self._channels(node, "in", args[0], 1, noted=False), 1)
        run = getattr(self, node.op)
        mean = run(node.target, args, kwargs)
        squares = run(node.target, (args[0].square(), *args[1:]), kwargs)
        return mean if torch.equal(mean.square(), squares) else None  # over equal names only

    def _channels(
        self, node: fx.Node, side: Side, value: Tensor, dim: int, *, noted: bool = True
    ) -> Tensor:
        """Returns the names [C] along a dimension, and notes that a layer reads them there."""
        rows = _core(value).movedim(dim, 0).flatten(1)
        names = rows.amax(1)
        if not ((rows == names[:, None]) | (rows == PADDING)).all():
            self._unknown(self._maker(node), value)
            names = torch.full_like(names, PINNED)
        names = names.long().expand(value.shape[dim]).clone()
        names[names == PADDING] = PINNED
        if not noted:
            return names
        before = self.names.sides.setdefault((str(node.target), side), names)
        if self.kept is None:
            self.names.unite(before, names)
        elif not torch.equal(names, before[self.kept[before]]):
            self._unknown(self._maker(node), (value, before))
        return names

    def _maker(self, node: fx.Node) -> fx.Node:
        """Returns what made the value that a layer reads, of several that came out the first."""
        node = self.view.activations(node)[0]
        while node.target is operator.getitem or self.view.is_relu(node):
            node = self.view.activations(node)[0]
        return node

    def _pin(self, value: Any) -> None:
        if self.names.pin(value) and self.kept is not None:
            raise Misfit

    def _like(self, node: fx.Node, names: Tensor, dim: int) -> Tensor:
        """Returns what a node writes with these names along a dimension."""
        if self.kept is not None:
            names = names[self.kept[names]]
        shape = list(self.full[node].shape)
        shape[dim] = len(names)
        return names.double().unflatten(0, (-1, *[1] * ((-dim - 1) % len(shape)))).expand(shape)


def _is_elementwise(view: Graph, node: fx.Node, args: Any) -> bool:
    """Tells whether each value that a node writes depends on the one in its place alone."""
    module = view.module(node)
    if module is not None:
        home, kinds = type(module).__module__, type(module).__mro__
        activation = home.startswith(("torch.nn.modules.activation", "timm.layers.act"))
        mixes = type(module) in _MIXING or any(True for _ in module.parameters())
        passes = full_name(type(module)) in _DROPS or _FAKE_QUANT in map(full_name, kinds)
        return passes or (activation and not mixes)
    numbers = all(isinstance(a, int | float) for a in args[:2] if not isinstance(a, Tensor))
    one = len(view.activations(node)) == 1 == sum(isinstance(a, Tensor) for a in args)
    return node.target in _ACTIVATIONS or (node.target in _ARITHMETIC and one and numbers)


def _core(value: Tensor) -> Tensor:
    """Leaves out what a tensor only repeats."""
    for dim, stride in enumerate(value.stride()):
        if stride == 0:
            value = value.narrow(dim, 0, 1)
    return value
