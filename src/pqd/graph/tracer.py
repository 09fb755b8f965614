"""A `torch.fx` tracer that knows the shape of every value."""

import operator
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from pqd.errors import UserError, one_line
from pqd.graph.calls import tensors_first
from pqd.graph.fakes import Fakes
from pqd.graph.inplace import OPERATORS

_OF_SHAPE = {"shape", "size", "ndim", "dim"}


class Tracer(fx.Tracer):
    """Keeps layers whole, knows shapes, and says where tracing fails.

    The image size is fixed, so every number of a shape that does not depend on the batch is a
    plain int during the trace: networks may branch on it. Tensors are positional arguments in
    every call of the graph, however the network passes them. Convolutions and linear layers that
    are more than `nn.Conv2d` and `nn.Linear` are traced into.
    """

    def __init__(
        self, name: str, shape: tuple[int, int, int], after: dict[nn.Module, nn.Module]
    ) -> None:
        """Takes the backbone's name, (C, H, W) of its images, and layers to call after others."""
        super().__init__()
        self.name = name
        self.fakes = Fakes(shape)
        self.after = after
        self.entered: dict[str, None] = {}  # layers that were traced into, in order

    def trace(self, root: nn.Module | Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Graph:
        """As `fx.Tracer.trace`; numbers that nobody reads are left out of the graph."""
        graph = super().trace(root, *args, **kwargs)
        for node in reversed(graph.nodes):
            number = self.fakes.is_number(node) and node.op != "output"
            if (number or node.op == "get_attr") and not node.users:
                graph.erase_node(node)
        return graph

    def map_size(self, node: fx.Node) -> tuple[int, int] | None:
        """Returns height and width of the maps [B, C, H, W] that a node returns, if it does."""
        value = self.fakes.of(node)
        known = isinstance(value, Tensor) and value.ndim == 4
        return (int(value.shape[2]), int(value.shape[3])) if known else None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Tells whether a layer is one node of the graph."""
        if isinstance(m, nn.Conv2d | nn.Linear):
            return is_plain(m)
        # What a childless layer does in train and eval mode, or with a shape, stays its own matter.
        childless = not any(m.children()) and not isinstance(m, nn.Sequential)
        leaf = childless or isinstance(m, nn.BatchNorm2d)
        return leaf or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Calls a layer, or traces into it, and then what comes `after` it."""
        if self.fakes.computing:
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        if isinstance(m, nn.Conv2d | nn.Linear) and not self.is_leaf_module(m, path):
            self.entered[path] = None
        try:
            out = super().call_module(m, forward, args, kwargs)
        except UserError:
            raise
        except Exception as error:
            raise self.untraceable(error, f"layer {path} ({type(m).__name__})") from error
        return self.after[m](out) if m in self.after else out

    def untraceable(self, error: Exception, place: str) -> UserError:
        """Builds the error for what torch.fx cannot trace, with the line that it fails at."""
        torch_folder = Path(torch.__file__).parent
        frames = traceback.extract_tb(error.__traceback__)
        own = (torch_folder, Path(__file__).parent)
        lines = [f.line for f in frames if not any(o in Path(f.filename).parents for o in own)]
        where = f'"{lines[-1]}" in {place}' if lines else place
        return UserError(
            f"backbone.name={self.name} cannot be traced by torch.fx: {where}: "
            f"{one_line(error, named=True)}"
        )

    def create_arg(self, a: Any) -> Any:
        """Turns an argument into a node or constant; equal tensors become one constant."""
        if isinstance(a, Tensor) and a not in self.tensor_attrs:
            for constant in self.tensor_attrs:
                if isinstance(constant, Tensor) and _equal(constant, a):
                    return super().create_arg(constant)
        return super().create_arg(a)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Returns a layer's attribute, a proxy where it is a parameter."""
        if self.fakes.computing:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Returns a proxy whose shape is known."""
        return _Proxy(node, self)

    def iter(self, obj: Any) -> Any:
        """Iterates over a value of known length, such as the parts of a split."""
        value = self.fakes.of(obj.node)
        if isinstance(value, tuple | list):
            return iter([obj[i] for i in range(len(value))])
        return super().iter(obj)

    def create_proxy(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *more: Any,
        **further: Any,
    ) -> Any:
        """Adds a node; of what asks for a shape, returns the numbers."""
        if kind.startswith("call_"):
            args, kwargs = tensors_first(self.root, kind, target, args, kwargs)
        proxy = super().create_proxy(kind, target, args, kwargs, *more, **further)
        values = self.fakes.add(self.root, proxy.node)
        asks = target is getattr and args[1] in _OF_SHAPE
        asks = asks or (kind == "call_method" and target in _OF_SHAPE)
        return self._numbers(proxy, *values) if asks and values else proxy

    def _numbers(self, proxy: Any, one: Any, other: Any) -> Any:
        if isinstance(one, tuple):
            return tuple(
                pair[0] if pair[0] == pair[1] else proxy[i]
                for i, pair in enumerate(zip(one, other, strict=True))
            )
        return one if one == other else proxy


class _Proxy(fx.Proxy):
    def __getattr__(self, k: str) -> Any:
        if k in _OF_SHAPE and k not in ("size", "dim"):  # those two are methods
            return self.tracer.create_proxy("call_function", getattr, (self, k), {})
        return super().__getattr__(k)


def _in_place(name: str) -> Callable[[_Proxy, Any], Any]:
    """Returns the method of `a += b` and its like; torch's proxy makes `a = a + b` of it."""

    def method(proxy: _Proxy, other: Any) -> Any:
        function, called = getattr(operator, f"i{name}"), OPERATORS[name].__name__
        return proxy.tracer.create_proxy("call_function", function, (proxy, other), {}, called)

    return method


for _name in OPERATORS:
    setattr(_Proxy, f"__i{_name}__", _in_place(_name))


def is_plain(layer: nn.Module) -> bool:
    """Tells whether a convolution or linear layer does what its type does and nothing else."""
    return type(layer) in (nn.Conv2d, nn.Linear) and not is_changed(layer)


def is_changed(layer: nn.Module) -> bool:
    """Tells whether one layer does something else than its type: by a hook or its own forward."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer))


def _equal(one: Tensor, other: Tensor) -> bool:
    plain = not isinstance(one, nn.Parameter) and not isinstance(other, nn.Parameter)
    same = plain and (one.dtype, one.device) == (other.dtype, other.device)
    return same and not one.is_meta and torch.equal(one, other)
