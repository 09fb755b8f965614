"""The runtimes a network can be measured in, behind one small interface.

Every session runs one model on a fixed number of threads. `bind` returns a call without copies or
conversions around it, so that a latency is the runtime's and not Python's.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module, metadata, util
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pqd.errors import UserError, choices

log = logging.getLogger(__name__)

Array = NDArray[np.float32]


class Session(Protocol):
    """One model, ready to run."""

    def bind(self, images: Array) -> Callable[[], object]:
        """Returns a call that runs the network on `images` [B, C, H, W] and nothing else."""

    def __call__(self, images: Array) -> Array:
        """Returns the logits [B, K] of `images` [B, C, H, W]."""


class OnnxRuntime:
    """ONNX Runtime on the CPU with all graph optimizations; idle threads spin, its default."""

    def __init__(self, model: Path | bytes, threads: int):
        """Opens an ONNX file, or the bytes of one."""
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors
        source = model if isinstance(model, bytes) else str(model)
        self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        self._output = self._session.get_outputs()[0].name

    def bind(self, images: Array) -> Callable[[], object]:
        """See `Session`."""
        binding = self._session.io_binding()
        binding.bind_cpu_input(self._input, images)
        binding.bind_output(self._output)
        return lambda: self._session.run_with_iobinding(binding)

    def __call__(self, images: Array) -> Array:
        """See `Session`."""
        return np.asarray(self._session.run([self._output], {self._input: images})[0])


class OpenVino:
    """OpenVINO on the CPU, tuned for latency; FP32 stays FP32 (its default may be bfloat16)."""

    def __init__(self, model: Path, threads: int):
        """Opens an ONNX file."""
        import openvino as ov

        self._core = ov.Core()
        self._model = self._core.read_model(str(model))
        self._threads = threads
        self._any_batch_size: Any = None

    def bind(self, images: Array) -> Callable[[], object]:
        """See `Session`. Compiles the graph for the shape of `images`, as one would deploy it."""
        import openvino as ov

        request = self.compile(images.shape).create_infer_request()
        request.set_input_tensor(ov.Tensor(images, shared_memory=True))
        return lambda: request.infer(share_outputs=True)

    def __call__(self, images: Array) -> Array:
        """See `Session`."""
        self._any_batch_size = self._any_batch_size or self.compile((-1, *images.shape[1:]))
        return np.array(self._any_batch_size([images])[0])

    def compile(self, shape: tuple[int, ...]) -> Any:
        """Returns the model compiled for inputs of a shape, in which -1 stands for any size."""
        hints = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self._threads,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self._model.reshape(list(shape))
        return self._core.compile_model(self._model, "CPU", hints)


class Torch:
    """PyTorch in eager mode, channels last."""

    def __init__(self, model: Any, threads: int):
        """Copies `model`, an `nn.Module`. Torch's threads are global: see `torch_threads`."""
        import copy

        import torch

        from pqd.constraints.parametrization import bake

        network = copy.deepcopy(model).cpu().float().eval()
        bake(network)
        self._model = network.to(memory_format=torch.channels_last)

    def bind(self, images: Array) -> Callable[[], object]:
        """See `Session`."""
        import torch

        tensor = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
        return torch.inference_mode()(lambda: self._model(tensor))

    def __call__(self, images: Array) -> Array:
        """See `Session`."""
        return self.bind(images)().numpy()  # type: ignore[attr-defined]


class TorchCompiled(Torch):
    """PyTorch compiled by Inductor with the weights frozen, channels last."""

    def bind(self, images: Array) -> Callable[[], object]:
        """See `Session`. Compiles, for the current number of threads."""
        import torch
        from torch._inductor import config

        self._model = torch.compile(self._model)
        call = super().bind(images)
        with config.patch(freezing=True):  # as torch.compile's option it has no effect (2.13)
            call()
        return call


RUNTIMES: dict[str, Callable[[Any, int], Session]] = {
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "torch": Torch,
    "torch_compiled": TorchCompiled,
}
_PACKAGES = {"torch_compiled": "torch"}


def open_session(runtime: str, model: Any, threads: int) -> Session:
    """Opens `model` (an ONNX file; for torch an `nn.Module`) in a runtime on `threads` threads.

    Raises:
        UserError: the runtime is unknown or not usable here.
    """
    if runtime not in RUNTIMES:
        raise choices("runtime", runtime, RUNTIMES)
    if reason := unavailable(runtime):
        raise UserError(reason)
    return RUNTIMES[runtime](model, threads)


def unavailable(runtime: str) -> str | None:
    """Why a runtime cannot be used here, in one line; None if it can."""
    package = _PACKAGES.get(runtime, runtime)
    if util.find_spec(package) is None:
        return f"runtime {runtime} is not installed (pip install {package})"
    compilers = (os.environ.get("CXX", "g++"), "g++", "clang++", "cl")
    if runtime == "torch_compiled" and not any(map(shutil.which, compilers)):
        return "runtime torch_compiled needs a C++ compiler (g++), and none is installed"
    return None


def available(runtimes: Sequence[str]) -> list[str]:
    """Those of the runtimes that can be used here; why others cannot goes to the log."""
    reasons = {runtime: unavailable(runtime) for runtime in runtimes}
    for reason in filter(None, reasons.values()):
        log.warning("%s; left out", reason)
    return [runtime for runtime, reason in reasons.items() if reason is None]


def version(runtime: str) -> str:
    """The installed version of a runtime."""
    package = _PACKAGES.get(runtime, runtime)
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # installed under another name: onnxruntime-gpu
        return str(import_module(package).__version__)


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Sets torch's number of threads inside the block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
