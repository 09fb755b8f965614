"""Writing a network as an ONNX file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx

from pqd import files
from pqd.constraints.integers.ops import onnx_translations
from pqd.export.deploy import deployed
from pqd.notices import silenced

OPSET = 18


def write_onnx(
    model: fx.GraphModule,
    path: Path,
    input_shape: tuple[int, int, int],
    metadata: Mapping[str, object],
) -> None:
    """Writes the deployed form of a network; QDQ INT8 where it is quantized, float elsewhere.

    Args:
        model: a traced network with any constraints attached.
        path: the file, replaced atomically.
        input_shape: (C, H, W); the batch axis is dynamic.
        metadata: stored as JSON in the file's `metadata_props` under `pqd.<key>`.
    """
    import onnx

    network = deployed(model)
    # Two images: a batch of one would be specialized to a constant.
    example = torch.zeros(2, *input_shape)
    with silenced("torch.onnx", "onnxscript", "onnx_ir"):
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["input"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            custom_translation_table=onnx_translations(),
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    # Notes on where a node came from hold paths of the machine and are a third of a small file.
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del proto.graph.value_info[:]  # shapes that every reader infers again
    _drop_empty_repeats(proto.graph)
    _unshare_zero_points(proto.graph)
    _keep_pads(proto.graph)
    # The exporter writes its newest, which runtimes of a year ago refuse.
    proto.ir_version = onnx.helper.find_min_ir_version_for(proto.opset_import)
    for key, value in metadata.items():
        proto.metadata_props.add(key=f"pqd.{key}", value=json.dumps(value))
    onnx.checker.check_model(proto)
    files.write(path, proto.SerializeToString(deterministic=True))


def take_pixels(path: Path, mean: Sequence[float], std: Sequence[float]) -> None:
    """Puts the normalisation of images into an ONNX file, in place, atomically.

    Then it takes pixels, uint8 [B, H, W, C], as decoders and cameras give them, and computes on
    them what `pqd.data.normalise` does, so its logits are those of the file before, to the bit.

    Args:
        path: a file of `write_onnx`.
        mean: C numbers, in units of 1 (pixel / 255).
        std: C numbers, likewise.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from pqd.data.batches import affine

    proto = onnx.load(path)
    graph, name = proto.graph, proto.graph.input[0].name
    batch, _, height, width = graph.input[0].type.tensor_type.shape.dim
    sizes = batch.dim_param, height.dim_value, width.dim_value, len(mean)
    for node in graph.node:
        node.input[:] = ["normalised" if given == name else given for given in node.input]
    nodes = [
        helper.make_node("Cast", [name], ["pixels"], "to_float", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels", "pixel_scale"], ["scaled"], "scale"),
        helper.make_node("Add", ["scaled", "pixel_shift"], ["shifted"], "shift"),
        helper.make_node("Transpose", ["shifted"], ["normalised"], "to_nchw", perm=[0, 3, 1, 2]),
    ]
    for node in reversed(nodes):
        graph.node.insert(0, node)
    for constant, values in zip(("pixel_scale", "pixel_shift"), affine(mean, std), strict=True):
        graph.initializer.append(numpy_helper.from_array(values, constant))
    graph.input[0].CopyFrom(helper.make_tensor_value_info(name, TensorProto.UINT8, sizes))
    onnx.checker.check_model(proto)
    files.write(path, proto.SerializeToString(deterministic=True))


def _drop_empty_repeats(graph: Any) -> None:
    """Drops quantizers repeated behind what the exporter took out, such as a slice of everything.

    OpenVINO 2026.4 crashes on some of them behind a Concat. Those behind a layer are meant (see
    `repeat`).
    """
    made = {output: node for node in graph.node for output in node.output}
    returned = {output.name for output in graph.output}
    for dequantize in [node for node in graph.node if node.op_type == "DequantizeLinear"]:
        quantize = made.get(dequantize.input[0])
        if quantize is None:  # it reads a constant
            continue
        before = made.get(quantize.input[0])
        if before is None or before.op_type != "DequantizeLinear":
            continue
        source = made.get(made[before.input[0]].input[0])
        behind_layer = source is not None and source.op_type in ("Conv", "Gemm", "MatMul", "Add")
        same = before.input[1:] == quantize.input[1:]
        if behind_layer or not same or dequantize.output[0] in returned:
            continue
        for node in graph.node:
            for index, name in enumerate(node.input):
                if name == dequantize.output[0]:
                    node.input[index] = before.output[0]
        graph.node.remove(quantize)
        graph.node.remove(dequantize)


def _unshare_zero_points(graph: Any) -> None:
    """Gives quantizers and weights zero points of their own; the exporter shares equal ones.

    Of a quantizer that is called twice (see `repeat`) and shares its zero point with another,
    OpenVINO drops the second call; of weights that share one, ONNX Runtime's precise mode
    (`session.x64quantprecision`) shifts the codes and fails. Biases may share.
    """
    import onnx

    constants = {constant.name: constant for constant in graph.initializer}
    owners: dict[str, str] = {}
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        _, scale, zero_point = node.input
        shareable = constants[zero_point].data_type == onnx.TensorProto.INT32
        if shareable or owners.setdefault(zero_point, scale) == scale:
            continue
        node.input[2] = f"{scale}/{zero_point}"
        if node.input[2] not in constants:
            own = graph.initializer.add()
            own.CopyFrom(constants[zero_point])
            own.name = node.input[2]
            constants[own.name] = own


def _keep_pads(graph: Any) -> None:
    """Makes what zero pads put around a float max-pool the smallest normal number.

    ONNX Runtime 1.31 moves a Pad of exactly 0 into the MaxPool behind it, which pads with
    -infinity: other values wherever all of a window is negative.
    """
    import numpy as np
    from onnx import numpy_helper

    made = {output: node for node in graph.node for output in node.output}
    constants = {constant.name: constant for constant in graph.initializer}
    smallest = numpy_helper.from_array(np.array(np.finfo(np.float32).tiny), "smallest")
    for node in graph.node:
        pad = made.get(node.input[0]) if node.op_type == "MaxPool" else None
        if pad is None or pad.op_type != "Pad" or len(pad.input) < 3:
            continue
        value = constants.get(pad.input[2])
        if value is not None and numpy_helper.to_array(value) == 0:
            pad.input[2] = smallest.name
            if smallest.name not in constants:
                graph.initializer.append(smallest)
                constants[smallest.name] = smallest
