"""ONNX Runtime on the CPU."""

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from pqd.runtimes.base import Array, Runtime, Step, per_call, register
from pqd.scheme import Scheme

# Operations that compute nothing in float: they move values (integers or not), or convert them.
# Quantized ones are told by their names: QLinearConv, QGemm, ConvInteger...
MOVES = {
    "Cast",
    "Concat",
    "DequantizeLinear",
    "Flatten",
    "Gather",
    "Identity",
    "MaxPool",
    "NhwcMaxPool",  # of integers only
    "Pad",
    "QuantizeLinear",
    "ReorderInput",
    "ReorderOutput",
    "Reshape",
    "Shape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}


class OnnxSession:
    """An ONNX model with all graph optimizations; idle threads spin, the runtime's default."""

    def __init__(self, model: Path | bytes, threads: int) -> None:
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
        import numpy as np

        return np.asarray(self._session.run([self._output], {self._input: images})[0])


class OnnxRuntime(Runtime):
    """See https://onnxruntime.ai."""

    name, title, package = "onnxruntime", "ONNX Runtime", "onnxruntime"
    # Else a convolution in front of a sum, or a batch norm behind it, runs in float.
    scheme = Scheme(sums="both", norms="convolution")
    usual = True

    def open(self, model: Path | bytes, threads: int) -> OnnxSession:
        """See `Runtime`; also takes the bytes of an ONNX file."""
        return OnnxSession(model, threads)

    def float_compute_nodes(self, model: Path) -> int:
        """See `Runtime`. Counts all that computes in float (a batch norm behind an addition, say).

        What is fused into another node is part of it.
        """
        return sum(
            not (name in MOVES or name.startswith("Q") or name.endswith("Integer"))
            for name in operations(model)
        )

    def profile(self, model: Path, threads: int, images: Array, calls: int) -> list[Step]:
        """See `Runtime`."""
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.enable_profiling = True
        with tempfile.TemporaryDirectory() as folder:
            options.profile_file_prefix = str(Path(folder, "profile"))
            session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
            for _ in range(calls + 1):
                session.run(None, {session.get_inputs()[0].name: images})
            events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
        times: dict[tuple[str, str], list[float]] = defaultdict(list)
        for event in events:
            if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
                # A fused node keeps the name of one of its nodes, or of its output.
                name = re.sub(r"(_nchwc|_token_\d+)*_kernel_time$", "", event["name"])
                times[name, event["args"]["op_name"]].append(event["dur"] / 1000)
        return [Step((name,), kind, per_call(ms, calls + 1)) for (name, kind), ms in times.items()]


def operations(model: Path) -> list[str]:
    """Returns the types of the nodes that ONNX Runtime runs, after its optimizations."""
    import onnx
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3  # without its warning that the saved graph fits this CPU only
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder, "optimized.onnx"))
        ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
    return [node.op_type for node in graph.node]


register(OnnxRuntime())
