"""What an ONNX file is: its input, whether it is quantized, multiply-accumulates."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pqd.errors import UserError, one_line

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, ValueInfoProto

    from pqd.runtimes import Runtime

# Which input of a convolution or matrix product its weights are.
WEIGHTS = dict.fromkeys(("Conv", "Gemm", "MatMul", "ConvInteger", "MatMulInteger"), 1)
WEIGHTS |= dict.fromkeys(("QLinearConv", "QLinearMatMul", "QGemm"), 3)
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


class Input(NamedTuple):
    """The images that an ONNX file takes: (C, H, W) normalised floats, or uint8 pixels."""

    shape: tuple[int, int, int]  # C, H, W
    uint8: bool = False  # [B, H, W, C], see `pqd.export.onnx_file.take_pixels`; else [B, C, H, W]

    def by(self, runtime: Runtime) -> Input:
        """What the files of a runtime take: others than ONNX files take floats."""
        return self if runtime.runs == "onnx" else Input(self.shape)

    def batch(self, size: int) -> tuple[int, int, int, int]:
        """The shape of a batch, as the file takes it."""
        channels, height, width = self.shape
        return (size, height, width, channels) if self.uint8 else (size, *self.shape)


def input_of(model: Path) -> Input:
    """Returns what images an ONNX file takes.

    Raises:
        UserError: it does not take one batch of images of a fixed size, normalised float32
            [B, C, H, W] or uint8 [B, H, W, C].
    """
    from onnx import TensorProto

    found = _inputs(load(model))
    dims = found[0].type.tensor_type.shape.dim if len(found) == 1 else []
    shape = tuple(dim.dim_value for dim in dims)[1:]
    if len(shape) != 3 or min(shape) < 1:
        raise UserError(f"{model} does not take images [batch, C, H, W] of a fixed size")
    first, second, third = shape
    kind = found[0].type.tensor_type.elem_type
    if kind == TensorProto.FLOAT:
        return Input((first, second, third))
    if kind == TensorProto.UINT8 and third in (1, 3):
        return Input((third, first, second), uint8=True)
    name = TensorProto.DataType.Name(kind).lower()
    raise UserError(
        f"{model} takes images of {name}; float (32 bits) is accepted, and uint8 [B, H, W, 1 or 3]"
    )


def batch_size(model: Path) -> int | None:
    """The number of images that an ONNX file takes at a time; None if it takes any."""
    return images_at_a_time(load(model))


def images_at_a_time(network: ModelProto) -> int | None:
    """The number of images that a network takes at a time; None if it takes any."""
    found = _inputs(network)
    dims = found[0].type.tensor_type.shape.dim if found else []
    return dims[0].dim_value if dims and dims[0].dim_value > 0 else None  # some write -1 for any


def is_quantized(model: Path) -> bool:
    """Whether an ONNX file quantizes anything."""
    return any("QuantizeLinear" in node.op_type for node in load(model).graph.node)


def macs(model: Path) -> int | None:
    """Multiply-accumulates of one image in the convolutions and matrix products of an ONNX file.

    Zero weights count: dense kernels multiply by them.

    Returns:
        The count; None where an operator that ONNX does not know hides the shapes.
    """
    network, total = load(model), 0
    try:
        shapes = infer_shapes(network)
    except Exception:  # onnx raises almost anything; a runtime may run the file all the same
        return None
    for node in network.graph.node:
        if node.op_type in WEIGHTS:
            count = node_macs(node, shapes)
            if count is None:
                return None
            total += count
    return total // (images_at_a_time(network) or 1)


def infer_shapes(network: ModelProto) -> dict[str, list[int]]:
    """Returns the shapes of a network's tensors, by name, for one image or its own batch size.

    Dimensions that are not known are 0; tensors of which nothing is known are missing.
    """
    import onnx

    imported = {"", *(entry.domain for entry in network.opset_import)}
    # Runtimes know their own operators without an import, onnx does not.
    unknown = {node.domain for node in network.graph.node} - imported
    any_size = images_at_a_time(network) is None
    if any_size or unknown:
        own, network = network, onnx.ModelProto()
        network.CopyFrom(own)
        network.opset_import.extend(onnx.helper.make_opsetid(name, 1) for name in sorted(unknown))
        for value in _inputs(network)[:1] if any_size else ():
            value.type.tensor_type.shape.dim[0].dim_value = 1
    graph = onnx.shape_inference.infer_shapes(network).graph
    return {
        value.name: [max(dim.dim_value, 0) for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
    } | {tensor.name: list(tensor.dims) for tensor in graph.initializer}


def node_macs(node: NodeProto, shapes: dict[str, list[int]]) -> int | None:
    """Multiply-accumulates of a node for a whole batch; None where shapes are unknown.

    Args:
        node: a convolution or matrix product, of a type in `WEIGHTS`.
        shapes: as `infer_shapes` returns them.
    """
    names = node.output[0], *node.input[WEIGHTS[node.op_type] :][:1]
    output, weight = ([*(shapes.get(name, []) for name in names), []])[:2]
    if not (all(output) and all(weight)) or min(len(output), len(weight)) < 2:
        return None
    if "Conv" in node.op_type:  # weight [out, in / groups, *kernel]
        return prod(output) * prod(weight[1:])
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return prod(output) * weight[-1 if transposed else -2]


def _inputs(network: ModelProto) -> list[ValueInfoProto]:
    """Older files list their weights among the inputs."""
    weights = {tensor.name for tensor in network.graph.initializer}
    return [value for value in network.graph.input if value.name not in weights]
