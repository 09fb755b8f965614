"""What a runtime makes of an ONNX file: float compute nodes left, multiply-accumulates."""

import tempfile
from math import prod
from pathlib import Path

from pqd.errors import UserError

# Operations of ONNX Runtime's graph that compute nothing in float: they move values (integers or
# not), or convert them. Quantized ones are told by their names: QLinearConv, QGemm, ConvInteger...
ONNX_MOVES = {
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
OPENVINO_COMPUTE = {"Convolution", "FullyConnected", "MatMul", "Eltwise"}


def float_compute_nodes(model: Path, runtime: str) -> int | None:
    """Counts the nodes computed in float in the graph that `runtime` runs.

    Of ONNX Runtime's graph all is counted that computes in float (a batch norm behind an addition,
    say), of OpenVINO's convolutions, matrix products and additions: it fuses small operations into
    nodes (Subgraph) that take and give integers. What is fused into another node is part of it.

    Args:
        model: an ONNX file.
        runtime: as in `RuntimeConfig.names`.

    Returns:
        The count; None for torch, which has no such graph (it runs everything in float).
    """
    if runtime == "onnxruntime":
        return sum(
            not (name in ONNX_MOVES or name.startswith("Q") or name.endswith("Integer"))
            for name in onnxruntime_graph(model)
        )
    if runtime == "openvino":
        return sum(
            name in OPENVINO_COMPUTE and precision in ("f32", "f16", "bf16")
            for name, precision in openvino_graph(model)
        )
    return None


def onnxruntime_graph(model: Path) -> list[str]:
    """The operations, by type, of the graph that ONNX Runtime runs after its optimizations."""
    import onnx
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3  # without its warning that the saved graph fits this CPU only
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder, "optimized.onnx"))
        ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
    return [node.op_type for node in graph.node]


def openvino_graph(model: Path) -> list[tuple[str, str]]:
    """Type and precision (e.g. `("Convolution", "u8")`) of the nodes that OpenVINO runs."""
    from pqd.measure.runtimes import OpenVino

    compiled = OpenVino(model, 1).compile((1, *input_shape(model)))
    infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    return [(str(i["layerType"].value), str(i["runtimePrecision"].value)) for i in infos]


def input_shape(model: Path) -> tuple[int, int, int]:
    """The (C, H, W) of the images that an ONNX file takes.

    Raises:
        UserError: it does not take one batch of images of a fixed size.
    """
    import onnx

    inputs = onnx.load(model).graph.input
    dims = inputs[0].type.tensor_type.shape.dim if len(inputs) == 1 else []
    shape = tuple(dim.dim_value for dim in dims)[1:]
    if len(shape) != 3 or 0 in shape:
        raise UserError(f"{model} does not take images [batch, C, H, W] of a fixed size")
    return shape[0], shape[1], shape[2]


def is_quantized(model: Path) -> bool:
    """Whether an ONNX file quantizes anything."""
    import onnx

    return any("QuantizeLinear" in node.op_type for node in onnx.load(model).graph.node)


def macs(model: Path) -> int:
    """Multiply-accumulates of one image in the convolutions and matrix products of an ONNX file.

    Zero weights count: dense kernels multiply by them.
    """
    import onnx

    network = onnx.load(model)
    network.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    graph = onnx.shape_inference.infer_shapes(network).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.output)
    } | {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    total = 0
    for node in graph.node:
        if node.op_type == "Conv":  # weight [out, in / groups, *kernel]
            total += prod(shapes[node.output[0]]) * prod(shapes[node.input[1]][1:])
        elif node.op_type in ("Gemm", "MatMul"):
            right = shapes[node.input[1]]
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            total += prod(shapes[node.output[0]]) * right[-1 if transposed else -2]
    return total
