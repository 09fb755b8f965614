"""What an ONNX file is: its input, whether it is quantized, multiply-accumulates."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from pqd.errors import UserError, one_line

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

LIMIT = 2**31  # bytes of an ONNX file, protobuf's own


def load(model: Path) -> ModelProto:
    """Reads an ONNX file.

    Raises:
        UserError: it cannot be read, holds no network or is larger than 2 GiB.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        if model.stat().st_size > LIMIT:
            raise UserError(f"{model} is larger than 2 GiB, more than an ONNX file can be")
        network = onnx.load(model)
    except OSError as error:
        raise UserError(f"cannot read {model}: {error.strerror or one_line(error)}") from None
    except onnx.checker.ValidationError as error:  # of weights that are kept in other files
        raise UserError(f"cannot read {model}: {one_line(error)}") from None
    except DecodeError:
        network = onnx.ModelProto()
    if not network.graph.node:
        raise UserError(f"{model} is no ONNX file, or a damaged one")
    return network


def input_shape(model: Path) -> tuple[int, int, int]:
    """The (C, H, W) of the images that an ONNX file takes.

    Raises:
        UserError: it does not take one batch of float32 images of a fixed size.
    """
    from onnx import TensorProto

    found = _inputs(load(model))
    dims = found[0].type.tensor_type.shape.dim if len(found) == 1 else []
    shape = tuple(dim.dim_value for dim in dims)[1:]
    if len(shape) != 3 or min(shape) < 1:
        raise UserError(f"{model} does not take images [batch, C, H, W] of a fixed size")
    kind = found[0].type.tensor_type.elem_type
    if kind != TensorProto.FLOAT:
        name = TensorProto.DataType.Name(kind).lower()
        raise UserError(f"{model} takes images of {name}; float (32 bits) is accepted")
    return shape[0], shape[1], shape[2]


def batch_size(model: Path) -> int | None:
    """The number of images that an ONNX file takes at a time; None if it takes any."""
    return _batch_size(load(model))


def is_quantized(model: Path) -> bool:
    """Whether an ONNX file quantizes anything."""
    return any("QuantizeLinear" in node.op_type for node in load(model).graph.node)


def macs(model: Path) -> int | None:
    """Multiply-accumulates of one image in the convolutions and matrix products of an ONNX file.

    Zero weights count: dense kernels multiply by them.

    Returns:
        The count; None where an operator that ONNX does not know hides the shapes.
    """
    import onnx

    network = load(model)
    images = _batch_size(network)
    if images is None:
        images = _inputs(network)[0].type.tensor_type.shape.dim[0].dim_value = 1
    graph = onnx.shape_inference.infer_shapes(network).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.output)
    } | {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    total = 0
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        output, weight = (shapes.get(name, []) for name in (node.output[0], node.input[1]))
        if not (all(output) and all(weight)) or min(len(output), len(weight)) < 2:
            return None
        if node.op_type == "Conv":  # weight [out, in / groups, *kernel]
            total += prod(output) * prod(weight[1:])
        else:
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            total += prod(output) * weight[-1 if transposed else -2]
    return total // images


def _inputs(network: ModelProto) -> list[ValueInfoProto]:
    """Older files list their weights among the inputs."""
    weights = {tensor.name for tensor in network.graph.initializer}
    return [value for value in network.graph.input if value.name not in weights]


def _batch_size(network: ModelProto) -> int | None:
    found = _inputs(network)
    dims = found[0].type.tensor_type.shape.dim if found else []
    return dims[0].dim_value or None if dims else None
