"""Which share of a runtime's time each layer takes, by the runtime's own profiler."""

import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from pqd.inspect.graph import Node
from pqd.measure.cpu import pinned
from pqd.measure.quiet import one_at_a_time
from pqd.runtimes import Array, Step, usable

SECONDS, CALLS = 0.5, (10, 200)  # that are profiled, about; not fewer and not more calls
# What runtimes fuse into the layer before it, and may then call by its name.
FUSED = {"Relu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "LeakyRelu", "Add", "Mul"}
FUSED |= {"QuantizeLinear", "DequantizeLinear"}


def time_shares(
    network: Any, found: list[Node], runtime: str, images: Array, seconds: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Profiles a network on one thread.

    Args:
        network: an ONNX `ModelProto`.
        found: its layers.
        runtime: the name of one that runs ONNX files.
        images: [B, C, H, W], of a call.
        seconds: to profile for, about.

    Returns:
        The share of the time that each layer takes, by its name; and the share of all other
        operations, by what the runtime calls them. All shares add up to 1; both are empty where
        the runtime does not tell.
    """
    import onnx

    where, named = usable(runtime), onnx.ModelProto()
    named.CopyFrom(network)
    for node in named.graph.node:  # runtimes call a node by its name or its output, or make one up
        node.name = node.output[0]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model.onnx")
        onnx.save(named, model)
        with one_at_a_time(), pinned(1, where):
            once = where.profile(model, 1, images, 1)
            ms = max(sum(step.ms for step in once), 1e-3)
            calls = min(max(round(1000 * seconds / ms), CALLS[0]), CALLS[1])
            steps = where.profile(model, 1, images, calls) if once else []
    return _by_layer(steps, _owners(network, found))


def _by_layer(
    steps: list[Step], owners: dict[str, str]
) -> tuple[dict[str, float], dict[str, float]]:
    total = sum(step.ms for step in steps)
    layers: dict[str, float] = defaultdict(float)
    others: dict[str, float] = defaultdict(float)
    for step in steps:
        owner = next((owners[name] for name in step.names if name in owners), None)
        if owner is not None and _computes(step.kind):
            layers[owner] += step.ms / total
        else:
            others[step.kind] += step.ms / total
    return dict(layers), dict(others)


def _computes(kind: str) -> bool:
    return any(word in kind for word in ("Conv", "Gemm", "MatMul", "FullyConnected"))


def _owners(network: Any, found: list[Node]) -> dict[str, str]:
    """The layer that a step is of, by each name that it may have: that of an output."""
    readers = defaultdict(list)
    for node in network.graph.node:
        for name in node.input:
            readers[name].append(node)
    owners = {layer.node.output[0]: layer.name for layer in found}
    for layer in found:
        node = layer.node
        while len(after := readers[node.output[0]]) == 1 and after[0].op_type in FUSED:
            node = after[0]
            owners.setdefault(node.output[0], layer.name)
    return owners
