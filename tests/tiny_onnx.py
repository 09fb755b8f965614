"""Hand-made ONNX files, and how they are measured in no time."""

import json

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

from pqd.config import RuntimeConfig
from pqd.runtimes import REFERENCE

QUICK = RuntimeConfig([REFERENCE], threads=[1], min_calls=4, min_seconds=0.0, blocks=2)
METADATA = {
    "classes": ["dark", "light"],
    "mean": [0.5],
    "std": [0.5],
    "image_size": 4,
    "channels": 1,
    "backbone": "tiny",
    "order": "q",
}


def write(path, nodes, constants, channels=1, size=4, outputs=2, metadata=None):
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            "tiny",
            [
                helper.make_tensor_value_info(
                    "input", TensorProto.FLOAT, ["batch", channels, size, size]
                )
            ],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", outputs])],
            [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    for key, value in (metadata or {}).items():
        proto.metadata_props.add(key=f"pqd.{key}", value=json.dumps(value))
    onnx.checker.check_model(proto)
    onnx.save(proto, path)
    return path


def float_network(path):
    """Two convolutions, an addition and a Gemm on [B, 1, 4, 4]."""
    random = np.random.default_rng(0)
    weights = {
        "w1": random.standard_normal((8, 1, 3, 3), dtype=np.float32),
        "w2": random.standard_normal((8, 8, 3, 3), dtype=np.float32),
        "w3": random.standard_normal((2, 128), dtype=np.float32),
        "b3": np.zeros(2, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], pads=[1] * 4),
        helper.make_node("Sigmoid", ["c"], ["d"]),
        helper.make_node("Add", ["b", "d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["logits"], transB=1),
    ]
    return write(path, nodes, weights)


def int8_network(path, metadata=METADATA):
    """One quantized Gemm on [B, 1, 4, 4] that tells light from dark images."""
    codes = np.stack([np.full(16, -64), np.full(16, 64)]).astype(np.int8)
    constants = {
        "scale": np.float32(0.01),
        "zero": np.uint8(128),
        "codes": codes,
        "w_scale": np.full(2, 0.01, np.float32),
        "w_zero": np.zeros(2, np.int8),
        "bias": np.zeros(2, np.int32),
        "b_scale": np.full(2, 1e-4, np.float32),
        "out_scale": np.float32(0.1),
    }
    nodes = [
        helper.make_node("Flatten", ["input"], ["x"]),
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["codes", "w_scale", "w_zero"], ["w"], axis=0),
        helper.make_node("DequantizeLinear", ["bias", "b_scale"], ["b"], axis=0),
        helper.make_node("Gemm", ["xd", "w", "b"], ["y"], transB=1),
        helper.make_node("QuantizeLinear", ["y", "out_scale", "zero"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "out_scale", "zero"], ["logits"]),
    ]
    return write(path, nodes, constants, metadata=metadata)


class _Images(CalibrationDataReader):
    """A few random images for ONNX Runtime's own quantizer."""

    def __init__(self):
        random = np.random.default_rng(0)
        self.left = [{"input": random.standard_normal((4, 1, 4, 4), np.float32)} for _ in range(3)]

    def get_next(self):
        return self.left.pop() if self.left else None


def foreign_networks(folder):
    """Writes the float network, and what ONNX Runtime's quantizer makes of it in both formats."""
    float_network(folder / "float.onnx")
    for kind in (QuantFormat.QDQ, QuantFormat.QOperator):
        quantize_static(
            folder / "float.onnx",
            folder / f"{kind.name}.onnx",
            _Images(),
            quant_format=kind,
            per_channel=kind is QuantFormat.QDQ,
        )
    return folder


def model_bytes(*tensors):
    """An ONNX file of tensors alone."""
    initializers = [numpy_helper.from_array(t, f"t{i}") for i, t in enumerate(tensors)]
    return helper.make_model(helper.make_graph([], "g", [], [], initializers)).SerializeToString()


def laplace(shape, sparsity, seed=0, scale=20.0):
    """INT8 weights as trained ones are distributed, a share of them zero."""
    rng = np.random.default_rng(seed)
    codes = np.rint(rng.laplace(0, scale, shape)).clip(-127, 127)
    return (codes * (rng.random(shape) >= sparsity)).astype(np.int8)
