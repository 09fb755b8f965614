"""ExecuTorch with XNNPACK, on the CPU."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pqd.notices import silenced
from pqd.runtimes.base import Array, Runtime, register
from pqd.scheme import Scheme

# Nodes of XNNPACK that compute nothing in float: they move values, or convert them.
MOVES = {
    "XNNConvert",
    "XNNCopy",
    "XNNMaxPooling2d",
    "XNNStaticConstantPad",
    "XNNStaticReshape",
    "XNNStaticSlice",
    "XNNStaticTranspose",
    *(f"XNNConcatenate{count}" for count in (2, 3, 4, 5)),
}
FLOAT = {"xnn_datatype_fp32", "xnn_datatype_fp16", "xnn_datatype_bf16"}
NOISY = ("torchao", "torch.utils._pytree")  # loggers that its import sets off


class ExecuTorchSession:
    """A program that takes one image at a time; batches run image by image."""

    def __init__(self, model: Path, threads: int) -> None:
        """Opens a .pte file."""
        with silenced(*NOISY):
            import executorch.kernels.quantized  # noqa: F401  (quantizers outside XNNPACK)
            from executorch import runtime
        if _thread_count() != threads:
            _reset(threads)
        self._threads = threads
        self._program = runtime.Runtime.get().load_program(model)  # what its methods need
        self._method: Any = self._program.load_method("forward")

    def bind(self, images: Array) -> Callable[[], list[Any]]:
        """See `Session`."""
        import torch

        assert self._threads == _thread_count(), "its threads have ended"
        execute, inputs = self._method.execute, [[i] for i in torch.from_numpy(images).split(1)]
        return lambda: [execute(image)[0] for image in inputs]

    def __call__(self, images: Array) -> Array:
        """See `Session`."""
        import numpy as np

        return np.concatenate([logits.numpy() for logits in self.bind(images)()])


class ExecuTorch(Runtime):
    """See https://docs.pytorch.org/executorch."""

    name, title, package = "executorch", "ExecuTorch", "executorch"
    runs: Literal["onnx", "pte", "network"] = "pte"
    scheme = Scheme(sums="both")  # it adds values that are rounded

    def write(
        self, network: Any, model: Path, shape: tuple[int, int, int], metadata: dict[str, Any]
    ) -> str | None:
        """See `Runtime`. Warns of what XNNPACK does not run."""
        from pqd.export.executorch_file import write_executorch

        path = model.with_suffix(".pte")
        write_executorch(network, path, shape, metadata)
        if not (outside := undelegated(path)):
            return None
        names = ", ".join(sorted(set(outside)))
        return f"{path.name}: {len(outside)} operators run outside XNNPACK, slowly: {names}"

    def open(self, model: Path, threads: int) -> ExecuTorchSession:
        """See `Runtime`. Sessions of another number of threads cannot be used any more."""
        return ExecuTorchSession(model, threads)

    @contextmanager
    def threads(self, count: int) -> Iterator[None]:
        """See `Runtime`: a new pool of threads."""
        _reset(count)
        yield

    def float_compute_nodes(self, model: Path) -> int:
        """See `Runtime`. Counts all that computes in float, in XNNPACK and outside."""
        delegated = sum(kind not in MOVES and type in FLOAT for kind, type in nodes(model))
        return delegated + sum("quantize_per" not in name for name in undelegated(model))


def undelegated(model: Path) -> list[str]:
    """Returns the operators of a .pte file that run outside XNNPACK, e.g. `aten::view_copy`."""
    program = _program(model)
    plan = program.execution_plan[0]
    calls = [step.instr_args for chain in plan.chains for step in chain.instructions]
    return [plan.operators[call.op_index].name for call in calls if hasattr(call, "op_index")]


def nodes(model: Path) -> list[tuple[str, str]]:
    """Returns the nodes that XNNPACK runs and their precision, e.g. `("XNNAdd", "xnn_...fp32")`."""
    program = _program(model)
    found = []
    for delegate in program.execution_plan[0].delegates:
        graph = _graph(program.backend_delegate_data[delegate.processed.index].data)
        values = [value["xvalue_union"] for value in graph["xvalues"]]
        plain = [value.get("tensor_value", value) for value in values]
        precisions = {value["id_out"]: value["datatype"] for value in plain}
        for node in graph["xnodes"]:
            precision = precisions[node["xnode_union"]["output_id"]]
            found.append((node["xnode_union_type"].lstrip("_"), precision))
    return found


def _program(model: Path) -> Any:
    from executorch.exir._serialize._program import deserialize_pte_binary

    return deserialize_pte_binary(model.read_bytes()).program


def _graph(delegate: bytes) -> dict[str, Any]:
    """Returns the graph of a delegate, see executorch/backends/xnnpack/serialization/schema.fbs."""
    from executorch.backends.xnnpack import serialization
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader
    from executorch.exir._serialize import _flatbuffer

    header = XNNHeader.from_bytes(delegate[: XNNHeader.EXPECTED_LENGTH])
    content = delegate[header.flatbuffer_offset :][: header.flatbuffer_size]
    with tempfile.TemporaryDirectory() as folder:
        schema, binary = Path(folder, "schema.fbs"), Path(folder, "graph.bin")
        schema.write_bytes(files(serialization).joinpath("schema.fbs").read_bytes())
        binary.write_bytes(content)
        _flatbuffer._flatc_decompile(folder, str(schema), str(binary), ["--raw-binary"])
        text = Path(folder, "graph.json").read_text()
    found: dict[str, Any] = json.loads(re.sub(r": -?(inf|nan)\b", ": null", text))
    return found


def _reset(threads: int) -> None:
    """Starts new threads; there is one pool for the whole process."""
    _library()._unsafe_reset_threadpool(threads)


def _thread_count() -> int:
    return int(_library()._threadpool_get_thread_count())


def _library() -> Any:
    with silenced(*NOISY):
        from executorch.extension.pybindings import portable_lib
    return portable_lib


register(ExecuTorch())
