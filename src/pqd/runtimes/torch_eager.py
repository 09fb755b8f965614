"""PyTorch in eager mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from pqd.runtimes.base import Array, Runtime, register

if TYPE_CHECKING:
    from torch import nn


class TorchSession:
    """A network in FP32, channels last, without masks and fake-quantizers in its way."""

    def __init__(self, network: nn.Module) -> None:
        """Copies `network`."""
        import copy

        from pqd.constraints.parametrization import bake
        from pqd.devices import channels_last

        own = copy.deepcopy(network).cpu().float().eval()
        bake(own)
        channels_last(own)
        self._network: Any = own

    def bind(self, images: Array) -> Callable[[], object]:
        """See `Session`."""
        import torch

        tensor = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
        return torch.inference_mode()(lambda: self._network(tensor))

    def __call__(self, images: Array) -> Array:
        """See `Session`."""
        return self.bind(images)().numpy()  # type: ignore[attr-defined]


class TorchEager(Runtime):
    """See https://pytorch.org. It runs networks in FP32 only."""

    name, title, package = "torch", "PyTorch eager", "torch"
    runs: Literal["onnx", "network"] = "network"
    reopens = False  # its weights are the caller's

    def open(self, model: nn.Module, threads: int) -> TorchSession:
        """See `Runtime`; the threads are those of the block (see `threads`)."""
        return TorchSession(model)

    @contextmanager
    def threads(self, count: int) -> Iterator[None]:
        """See `Runtime`: torch has one number of threads for the whole process."""
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


register(TorchEager())
