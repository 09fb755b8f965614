"""What an ONNX file is: its input, whether it is quantized, multiply-accumulates."""

from math import prod
from pathlib import Path

from pqd.errors import UserError


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
