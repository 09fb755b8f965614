"""The layers of an ONNX file: convolutions and matrix products with constant weights.

Files of other tools are read too: QDQ and QOperator, with weights in initializers or constants,
named as their exporters name them.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pqd.measure.graph import WEIGHTS, images_at_a_time, infer_shapes, node_macs

_PASSED = ("DequantizeLinear", "Transpose", "Identity", "Reshape")  # between weights and layer
_PARAMETER = re.compile(r"([._](weight|codes|kernel))?(_quantized)?$")
_AFFIXES = re.compile(r"^/|(/(Conv|Gemm|MatMul))?(_quant)?$")  # of nodes named by torch's exporter


@dataclass(frozen=True)
class Node:
    """One layer of a file.

    Attributes:
        name: the layer's, as its weights or its node are called.
        node: the ONNX node.
        source: the name of the tensor that holds its weights.
        stored: these weights as stored, of any shape.
        scale: of a quantized layer, what a code is worth; it broadcasts with `stored`.
        zero_point: the code that is zero; it broadcasts with `stored`.
        macs: of one image; None where shapes are unknown.
        output_shape: of one image, [C, H, W] or [K]; empty where unknown.
    """

    name: str
    node: Any
    source: str
    stored: NDArray[Any]
    scale: NDArray[Any] | None
    zero_point: NDArray[Any]
    macs: int | None
    output_shape: list[int]

    @property
    def kind(self) -> str:
        """What it is: its operator, and whether it is depthwise."""
        groups = next((a.i for a in self.node.attribute if a.name == "group"), 1)
        depthwise = groups > 1 and self.stored.shape[1] == 1
        return f"depthwise {self.node.op_type}" if depthwise else str(self.node.op_type)

    @property
    def zeros(self) -> float:
        """The share of weights that are zero."""
        return float(np.mean(self.stored == self.zero_point))

    @property
    def bits(self) -> int:
        """How many bits hold every weight: those of its type, or of the codes that occur."""
        if self.stored.dtype.kind == "f":
            return 8 * self.stored.dtype.itemsize
        codes = self.stored.astype(np.int64) - self.zero_point.astype(np.int64)
        return 1 + int(np.where(codes < 0, -codes - 1, codes).max(initial=0)).bit_length()

    @property
    def weights(self) -> NDArray[np.float64] | None:
        """The weights as numbers; None of codes whose scale is not known."""
        if self.stored.dtype.kind == "f":
            return self.stored.astype(np.float64)
        if self.scale is None:
            return None
        return (self.stored.astype(np.float64) - self.zero_point) * self.scale


def layers(network: Any) -> list[Node]:
    """Returns the layers of an ONNX `ModelProto`, in the order of its nodes."""
    from onnx import numpy_helper

    graph = network.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    made = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    shapes = infer_shapes(network)
    images = images_at_a_time(network) or 1

    def array(names: list[str], index: int) -> NDArray[Any] | None:
        there = len(names) > index and names[index] in constants
        return numpy_helper.to_array(constants[names[index]]) if there else None

    found: list[Node] = []
    for node in graph.node:
        at = WEIGHTS.get(node.op_type)
        if at is None or len(node.input) <= at:
            continue
        source, scale, zero, axis = node.input[at], None, None, 1
        if at == 3:  # QOperator: ..., weights, their scale and zero point
            scale, zero = array(node.input, 4), array(node.input, 5)
            axis = 0 if "Conv" in node.op_type else _last_or_first(node)
        while source not in constants and source in made and made[source].op_type in _PASSED:
            before = made[source]
            if before.op_type == "DequantizeLinear":
                scale, zero = array(before.input, 1), array(before.input, 2)
                axis = next((a.i for a in before.attribute if a.name == "axis"), 1)
            source = before.input[0]
        if source not in constants:  # a product of two activations
            continue
        stored = numpy_helper.to_array(constants[source])
        if stored.dtype.kind not in "fiu":  # types that numpy lacks: bfloat16, int4
            stored = stored.astype(np.int16 if "int" in stored.dtype.name else np.float32)
        if stored.ndim < 2:
            continue
        name, names = _name(source, node), [layer.name for layer in found]
        macs, output = node_macs(node, shapes), shapes.get(node.output[0], [])
        found.append(
            Node(
                name=f"{name} ({node.output[0]})" if name in names else name,  # weights used twice
                node=node,
                source=source,
                stored=stored,
                scale=None if scale is None else _along(scale, stored.shape, axis),
                zero_point=np.zeros(1) if zero is None else _along(zero, stored.shape, axis),
                macs=None if macs is None else macs // images,
                output_shape=output[1:] if all(output) else [],
            )
        )
    return found


def _last_or_first(node: Any) -> int:
    """The axis of a matrix's outputs."""
    return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1


def _along(values: NDArray[Any], shape: tuple[int, ...], axis: int) -> NDArray[np.float64]:
    """A scale or zero point, of a tensor, channels or blocks, to broadcast with the weights."""
    values = values.astype(np.float64)
    if values.ndim == len(shape):  # blocks along an axis
        for at, (size, blocks) in enumerate(zip(shape, values.shape, strict=True)):
            values = np.repeat(values, -(-size // blocks), axis=at).take(range(size), axis=at)
        return values
    return values.reshape([-1 if at == axis % len(shape) else 1 for at in range(len(shape))])


def _name(source: str, node: Any) -> str:
    """What a layer is called: as in the network that was exported, where that shows."""
    short = _PARAMETER.sub("", source)
    telling = "." in source and "::" not in source  # a path of modules
    return short if telling or not node.name else _AFFIXES.sub("", node.name)
