"""The values of a graph's nodes on tensors without content: shapes, and numbers from these."""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

BATCHES = (2, 3)  # sizes: a number that both agree on does not depend on the batch


class Fakes:
    """Fake values of every node, one for each of `BATCHES`.

    Attributes:
        computing: whether a node is just being called, on fake tensors.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        """Takes the (C, H, W) of images."""
        self.shape = shape
        self.computing = False
        self._values: dict[fx.Node, tuple[Any, ...]] = {}
        self._written: dict[fx.Node, list[Tensor]] = {}
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)

    def of(self, node: fx.Node) -> Any:
        """Returns the first value of a node; None where it is not known."""
        return (*self._values.get(node, ()), None)[0]

    def written(self, node: fx.Node) -> list[Tensor]:
        """Returns those of the values that a node reads that it changes in place."""
        return self._written.get(node, [])

    def is_number(self, node: fx.Node) -> bool:
        """Tells whether a node is known to return something else than a tensor."""
        known = self._values.get(node, ())
        return bool(known) and not isinstance(known[0], Tensor)

    def add(self, root: nn.Module, node: fx.Node) -> tuple[Any, ...]:
        """Computes the values of a node; none where that fails, as many things may."""
        for source in node.all_input_nodes:
            if source.op == "get_attr" and source not in self._values:  # a buffer or a constant
                self.add(root, source)
        read = [leaf for n in node.all_input_nodes for leaf in tree_leaves(self.of(n))]
        versions = [(leaf, leaf._version) for leaf in read if isinstance(leaf, Tensor)]
        try:
            self.computing = True
            with self._mode, torch.no_grad():
                found = tuple(self._call(root, node, i) for i in range(len(BATCHES)))
        except Exception:
            found = ()
        finally:
            self.computing = False
        self._values[node] = found
        self._written[node] = [tensor for tensor, old in versions if tensor._version != old]
        return found

    def _call(self, root: nn.Module, node: fx.Node, batch: int) -> Any:
        if node.op == "placeholder":
            device = next((p.device for p in root.parameters()), None)
            return torch.empty(BATCHES[batch], *self.shape, device=device)
        args: Any = map_arg(node.args, lambda n: self._values[n][batch])
        kwargs: Any = map_arg(node.kwargs, lambda n: self._values[n][batch])
        if node.op == "get_attr":
            path, _, attribute = str(node.target).rpartition(".")
            return self._fake_of(getattr(root.get_submodule(path), attribute))
        if node.op == "call_module":
            # On fake parameters and buffers: a batch norm counts its calls.
            layer = root.get_submodule(str(node.target))
            state = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
            state = {name: self._fake_of(tensor) for name, tensor in state.items()}
            return torch.func.functional_call(layer, state, args, kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _fake_of(self, tensor: Tensor) -> Tensor:
        fake: Tensor = self._mode.from_tensor(tensor, static_shapes=True)
        return fake
