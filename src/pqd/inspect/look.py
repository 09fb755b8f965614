"""Looking at an ONNX file, a package or a run: what each layer costs, and what it lost."""

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pqd.errors import UserError, one_line
from pqd.inspect import graph, quantization, shares
from pqd.measure.graph import infer_shapes, load
from pqd.result import Layer
from pqd.runtimes import REFERENCE

IMAGES = 16  # of the test split, for errors of outputs


@dataclass(frozen=True)
class Inspection:
    """What was found of a file.

    Attributes:
        layers: its layers, in the order of its nodes; then all else that takes time.
        bytes: of the package of the file; None where it cannot be packed.
        left_out: what was not found out, and why, a line each.
    """

    layers: list[Layer]
    bytes: int | None
    left_out: list[str]


def look(
    model: Path,
    *,
    runtimes: Sequence[str] = (REFERENCE,),
    package: Path | None = None,
    float_: Path | None = None,
    images: Iterable[NDArray[Any]] = (),
    seconds: float = shares.SECONDS,
) -> Inspection:
    """Looks at every layer of an ONNX file, of pqd or of another tool.

    Args:
        model: the file; its time is that of one image on one thread.
        runtimes: that run ONNX files, for the shares of time.
        package: the package of the file; None packs it for its size.
        float_: the same network in FP32, for the errors of quantization.
        images: batches of images as the files take them, for the errors of outputs.
        seconds: to profile each runtime for, about.

    Raises:
        UserError: a file is none that can be read, or has no layer.
    """
    network = load(model)
    found = _layers(model, network)
    left_out: list[str] = []
    times: dict[str, dict[str, float]] = {}
    others: dict[str, dict[str, float]] = {}
    for runtime in runtimes:
        try:
            if (example := _example(network)) is None:
                reason = "the file takes images of any size; one of a fixed size shows it"
                left_out.append(f"time: {reason}")
                break
            times[runtime], others[runtime] = shares.time_shares(
                network, found, runtime, example, seconds
            )
        except UserError:
            raise
        except Exception as error:  # of other people's code; what is found is found
            left_out.append(f"{runtime}: {one_line(error, named=True)}")
    packed, total = _bytes(model, package)
    weights: dict[str, float] = {}
    outputs: dict[str, float] = {}
    if float_ is not None:
        original = load(float_)
        weights = quantization.weight_errors(found, _layers(float_, original))
        if batches := list(images):
            outputs = quantization.output_errors(network, original, batches)
    rows = [
        Layer(
            name=layer.name,
            kind=layer.kind,
            weight_shape=list(layer.stored.shape),
            output_shape=layer.output_shape,
            macs=layer.macs,
            zeros=layer.zeros,
            bits=layer.bits,
            package_bytes=packed.get(layer.source),
            time={
                runtime: shared.get(layer.name, 0.0) for runtime, shared in times.items() if shared
            },
            weight_error=weights.get(layer.name),
            output_error=outputs.get(layer.name),
        )
        for layer in found
    ]
    for runtime, kinds in others.items():
        for kind, share in sorted(kinds.items()):  # by name, so that runs of one network agree
            rows.append(Layer(name="", kind=kind, time={runtime: share}))
    return Inspection(rows, total, left_out)


def _layers(model: Path, network: Any) -> list[graph.Node]:
    try:
        found = graph.layers(network)
    except Exception as error:  # onnx raises almost anything of a file that contradicts itself
        raise UserError(f"{model} is no valid ONNX file: {one_line(error)}") from None
    if not found:
        raise UserError(f"{model} has no convolution or matrix product with weights of its own")
    return found


def _example(network: Any) -> NDArray[Any] | None:
    """Random images, as the network's first input takes them: one, or its batch size.

    None where their size is not fixed.
    """
    from onnx.helper import tensor_dtype_to_np_dtype

    weights = {tensor.name for tensor in network.graph.initializer}
    value = next(value for value in network.graph.input if value.name not in weights)
    shape = infer_shapes(network)[value.name]
    if min(shape, default=0) < 1:
        return None
    images = 50 * np.random.default_rng(0).random(shape)
    return images.astype(tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))


def _bytes(model: Path, package: Path | None) -> tuple[dict[str, int], int | None]:
    """The bytes of each tensor in the package of a file, and of the whole package."""
    from pqd.package import pack, weight_bytes

    try:
        found = weight_bytes(model.read_bytes())
        if package is not None:
            return found, package.stat().st_size
        with tempfile.TemporaryDirectory() as folder:
            return found, pack(model, Path(folder, "model.pqd"))
    except (ValueError, UserError):  # weights in other files, say
        return {}, None
