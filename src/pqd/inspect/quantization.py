"""What quantization does to each layer, beside the same network in FP32."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pqd.inspect.graph import Node, layers


def weight_errors(quantized: list[Node], float_: list[Node]) -> dict[str, float]:
    """Returns the relative error of each quantized layer's weights, by its name.

    That is |Q - W| / |W| with Euclidean norms: Q is what the codes stand for, W the weight in FP32.
    """
    found = {}
    for layer, other in _pairs(quantized, float_):
        is_, was = layer.weights, other.weights
        if layer.stored.dtype.kind != "f" and is_ is not None and was is not None:
            found[layer.name] = _relative(float(np.sum((is_ - was) ** 2)), float(np.sum(was**2)))
    return found


def output_errors(quantized: Any, float_: Any, images: Iterable[NDArray[Any]]) -> dict[str, float]:
    """Returns the relative error of each layer's output, by its name.

    That is |q - f| / |f| with Euclidean norms over all images: q is the output in the quantized
    network, where all before it is quantized too, f that in FP32. Both are taken before the
    activation function and the rounding that follow.

    Args:
        quantized: an ONNX `ModelProto`.
        float_: the same network in FP32.
        images: batches of images as the files take them.
    """
    pairs = [
        (layer.name, layer.node.output[0], other.node.output[0])
        for layer, other in _pairs(layers(quantized), layers(float_))
        if layer.node.op_type in ("Conv", "Gemm", "MatMul")  # others give integers
    ]
    theirs = _session(float_, [name for *_, name in pairs])
    ours = _session(quantized, [name for _, name, _ in pairs])
    errors: dict[str, float] = defaultdict(float)
    sums: dict[str, float] = defaultdict(float)
    for batch in images:
        for (name, *_), is_, was in zip(pairs, ours(batch), theirs(batch), strict=True):
            errors[name] += float(np.sum((is_.astype(np.float64) - was) ** 2))
            sums[name] += float(np.sum(was.astype(np.float64) ** 2))
    return {name: _relative(errors[name], sums[name]) for name in errors}


def _relative(error: float, of: float) -> float:
    return float(np.sqrt(error / of)) if of else 0.0


def _pairs(quantized: list[Node], float_: list[Node]) -> list[tuple[Node, Node]]:
    """The layers of both networks that have one name and one shape; else one place and shape."""
    others = {layer.name: layer for layer in float_}
    pairs = [(layer, others[layer.name]) for layer in quantized if layer.name in others]
    if not pairs and len(quantized) == len(float_):
        pairs = list(zip(quantized, float_, strict=True))
    return [pair for pair in pairs if pair[0].stored.shape == pair[1].stored.shape]


def _session(network: Any, outputs: list[str]) -> Any:
    """Returns what gives these tensors of a network for a batch; nothing is fused away."""
    import onnx
    import onnxruntime as ort

    own = onnx.ModelProto()
    own.CopyFrom(network)
    del own.graph.output[:]
    own.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(outputs))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        own.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    return lambda batch: session.run(outputs, {name: batch})
