"""PyTorch compiled by Inductor."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING

from pqd.runtimes.base import Array, register
from pqd.runtimes.torch_eager import TorchEager, TorchSession

if TYPE_CHECKING:
    from torch import nn


class CompiledSession(TorchSession):
    """A network compiled with its weights frozen, channels last."""

    def bind(self, images: Array) -> Callable[[], object]:
        """See `Session`. Compiles, for the current number of threads."""
        import torch
        from torch._inductor import config

        self._network = torch.compile(self._network)
        call = super().bind(images)
        with config.patch(freezing=True):  # as torch.compile's option it has no effect (2.13)
            call()
        return call


class TorchCompiled(TorchEager):
    """`torch.compile`; opened once a measurement, as compiling takes long."""

    name, title = "torch_compiled", "PyTorch compiled"

    def unavailable(self) -> str | None:
        """See `Runtime`."""
        compilers = (os.environ.get("CXX", "g++"), "g++", "clang++", "cl")
        if (reason := super().unavailable()) is None and not any(map(shutil.which, compilers)):
            return "runtime torch_compiled needs a C++ compiler (g++), and none is installed"
        return reason

    def open(self, model: nn.Module, threads: int) -> CompiledSession:
        """See `Runtime`."""
        return CompiledSession(model)


register(TorchCompiled())
