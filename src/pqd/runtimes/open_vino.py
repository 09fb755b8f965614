"""OpenVINO on the CPU."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from pqd.runtimes.base import Array, Runtime, Step, per_call, register
from pqd.scheme import Scheme

COMPUTE = {"Convolution", "FullyConnected", "MatMul", "Eltwise"}
FLOAT = {"f32", "f16", "bf16"}


@cache
def _core() -> Any:
    """Returns the one core of this process, which stays to its end, with its CPU plugin loaded.

    A core has signals handled on a stack of its own and frees that as it goes (2026.4): the next
    Ctrl-C, kill or time limit would be a segmentation fault. The plugin takes the CPUs on which it
    finds the main thread when it is loaded for all there are.
    """
    import openvino as ov

    core = ov.Core()
    core.get_versions("CPU")
    return core


class OpenVinoSession:
    """A model tuned for latency; FP32 stays FP32 (the runtime's default may be bfloat16)."""

    def __init__(self, model: Path, threads: int) -> None:
        """Opens an ONNX file."""
        self._model = _core().read_model(str(model))
        self._threads = threads
        self._any_batch_size: Any = None

    def bind(self, images: Array) -> Callable[[], object]:
        """See `Session`. Compiles the graph for the shape of `images`, as one would deploy it."""
        import openvino as ov

        request = self._compile(images.shape).create_infer_request()
        request.set_input_tensor(ov.Tensor(images, shared_memory=True))
        return lambda: request.infer(share_outputs=True)

    def __call__(self, images: Array) -> Array:
        """See `Session`."""
        import numpy as np

        self._any_batch_size = self._any_batch_size or self._compile((-1, *images.shape[1:]))
        return np.array(self._any_batch_size([images])[0])

    def nodes(self) -> list[tuple[str, str]]:
        """Returns type and precision, e.g. `("Convolution", "u8")`, of the nodes that it runs."""
        shape = [d.get_length() if d.is_static else 1 for d in self._model.input(0).partial_shape]
        graph = self._compile(shape).get_runtime_model()
        infos = [node.get_rt_info() for node in graph.get_ops()]
        return [(str(i["layerType"].value), str(i["runtimePrecision"].value)) for i in infos]

    def profile(self, images: Array, calls: int) -> list[Step]:
        """See `Runtime`."""
        compiled = self._compile(images.shape, PERF_COUNT=True)
        request = compiled.create_infer_request()
        times: dict[tuple[str, str], list[float]] = defaultdict(list)
        for _ in range(calls + 1):
            request.infer([images])
            for info in request.profiling_info:
                if info.real_time:  # else it was fused into another, or does nothing
                    ms = info.real_time.total_seconds() * 1000
                    times[info.node_name, info.node_type].append(ms)
        infos = {
            n.get_friendly_name(): n.get_rt_info() for n in compiled.get_runtime_model().get_ops()
        }
        fused = {name: str(info["originalLayersNames"].value) for name, info in infos.items()}
        return [
            Step(tuple(fused.get(name, name).split(",")), kind, per_call(ms, calls + 1))
            for (name, kind), ms in times.items()
        ]

    def _compile(self, shape: Any, **options: Any) -> Any:
        """Returns the model compiled for inputs of a shape, in which -1 stands for any size."""
        hints = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self._threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": False,  # `measure.cpu.pinned` does that, and undoes it
        }
        self._model.reshape(list(shape))
        return _core().compile_model(self._model, "CPU", hints | options)


class OpenVino(Runtime):
    """See https://docs.openvino.ai."""

    name, title, package = "openvino", "OpenVINO", "openvino"
    # Convolution, quantizer, sum and ReLU are one operation, in which the quantizer clips but does
    # not round; integer convolutions of single channels are none.
    scheme = Scheme(sums="clip", norms="norm")
    usual = True

    def open(self, model: Path, threads: int) -> OpenVinoSession:
        """See `Runtime`."""
        return OpenVinoSession(model, threads)

    @contextmanager
    def threads(self, count: int) -> Iterator[None]:
        """See `Runtime`: the core is there before the process is pinned."""
        _core()
        yield

    def float_compute_nodes(self, model: Path) -> int:
        """See `Runtime`. Counts convolutions, matrix products and additions.

        OpenVINO fuses small operations into nodes (Subgraph) that take and give integers.
        """
        nodes = self.open(model, 1).nodes()
        return sum(name in COMPUTE and precision in FLOAT for name, precision in nodes)

    def profile(self, model: Path, threads: int, images: Array, calls: int) -> list[Step]:
        """See `Runtime`."""
        return self.open(model, threads).profile(images, calls)


register(OpenVino())
