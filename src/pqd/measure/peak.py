"""The machine's own INT8 peak, measured: what large matrix products reach on it."""

import numpy as np

from pqd.config import RuntimeConfig
from pqd.measure.cpu import pinned
from pqd.measure.protocol import Call, interleave
from pqd.runtimes import REFERENCE, get

SIZES = (512, 1024)  # rows and columns: large enough for full speed, small enough for the cache
PROTOCOL = RuntimeConfig(min_calls=20, min_seconds=0.1, blocks=2)


def int8_peak_gops(threads: int) -> float:
    """Measures the INT8 rate of large U8 x S8 matrix products in the reference runtime.

    It is what this machine reached, not what its data sheet promises: the fastest call of two
    sizes. Takes less than a second.

    Args:
        threads: number of threads, pinned.

    Returns:
        Giga-operations per second; a multiply-accumulate is two.
    """
    random = np.random.default_rng(0)
    rates = []
    for size in SIZES:
        model = matrix_product(random.integers(-64, 65, (size, size), dtype=np.int8))
        left = random.integers(256, size=(size, size), dtype=np.uint8)

        def open_product(model: bytes = model, left: np.ndarray = left) -> Call:
            return get(REFERENCE).open(model, threads).bind(left)

        with pinned(threads):
            times = interleave({"": open_product}, PROTOCOL)
        fastest_ms = min(float(block.min()) for block in times[""])
        rates.append(2 * size**3 / (fastest_ms * 1e6))
    return max(rates)


def matrix_product(weight: np.ndarray) -> bytes:
    """An ONNX model: one U8 x S8 -> U8 product of an input [N, N] with `weight` [N, N]."""
    from onnx import TensorProto, helper, numpy_helper

    shape = list(weight.shape)
    constants = {
        "scale": np.float32(0.01),
        "zero": np.uint8(128),
        "weight": weight,
        "weight_zero": np.int8(0),
        "out_scale": np.float32(1),
    }
    names = ["x", "scale", "zero", "weight", "scale", "weight_zero", "out_scale", "zero"]
    graph = helper.make_graph(
        [helper.make_node("QLinearMatMul", names, ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()
