"""One INT8 layer as an ONNX file, to measure what it takes at any width."""

from pathlib import Path

import numpy as np
from torch import nn

from pqd.export.onnx_file import OPSET


def write_layer(layer: nn.Conv2d | nn.Linear, sizes: tuple[int, ...], path: Path) -> None:
    """Writes a layer of other sizes, UINT8 in and UINT8 out, with random weights.

    Args:
        layer: gives kernel, stride, padding and dilation.
        sizes: rows and columns of the weight, and groups.
        path: of the file.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rows, columns, groups = sizes
    convolution = isinstance(layer, nn.Conv2d)
    kernel = layer.kernel_size if isinstance(layer, nn.Conv2d) else ()
    random = np.random.default_rng(0)
    weight = random.integers(-127, 128, (rows, columns // groups, *kernel)).astype(np.int8)
    scale = np.full(rows, 0.01, np.float32)
    constants = {
        "weight": weight,
        "weight_scale": scale,
        "weight_zero": np.zeros(rows, np.int8),
        "bias": np.zeros(rows, np.int32),
        "bias_scale": scale * np.float32(0.02),
        "scale": np.float32(0.02),
        "zero": np.uint8(0),
    }
    attributes = _attributes(layer) | {"group": groups} if convolution else {"transB": 1}
    nodes = [
        helper.make_node("DequantizeLinear", ["input", "scale", "zero"], ["x"]),
        helper.make_node(
            "DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["w"], axis=0
        ),
        helper.make_node("DequantizeLinear", ["bias", "bias_scale"], ["b"], axis=0),
        helper.make_node("Conv" if convolution else "Gemm", ["x", "w", "b"], ["y"], **attributes),
        helper.make_node("Relu", ["y"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "scale", "zero"], ["output"]),
    ]
    dims: list[str | int | None] = (
        ["batch", columns, "height", "width"] if convolution else ["batch", columns]
    )
    names: list[str | int | None] = (
        ["batch", rows, "rows", "places"] if convolution else ["batch", rows]
    )
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("input", TensorProto.UINT8, dims)],
        [helper.make_tensor_value_info("output", TensorProto.UINT8, names)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    onnx.save(model, path)


def _attributes(layer: nn.Module) -> dict[str, object]:
    assert isinstance(layer, nn.Conv2d)
    found: dict[str, object] = {
        "strides": list(layer.stride),
        "dilations": list(layer.dilation),
        "kernel_shape": list(layer.kernel_size),
    }
    if isinstance(layer.padding, str):
        return found | {"auto_pad": "SAME_UPPER" if layer.padding == "same" else "VALID"}
    return found | {"pads": [*layer.padding, *layer.padding]}
