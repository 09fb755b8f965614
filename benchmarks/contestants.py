"""What `peers.py` compares: a backbone in FP32, quantized by us, and by other quantizers."""

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx

from pqd import backbones
from pqd.config import BackboneConfig, TargetConfig
from pqd.constraints import attach as constrain
from pqd.constraints.quantization import FakeQuantization
from pqd.export.onnx_file import write_onnx
from pqd.measure.cpu import has_vnni
from pqd.runtimes import Array
from pqd.stages.quantize import calibrate

SHAPE = (3, 32, 32)
OURS = ("pqd in onnxruntime", "pqd in openvino", "pqd common in openvino")
CALIBRATION_BATCHES = 4  # of 8 images


@dataclass(frozen=True)
class Contestant:
    """What is measured, and the runtime it runs in, whose FP32 it is compared with."""

    runtime: str
    source: Any  # ONNX or OpenVINO file, or a callable module
    int8: bool = True


# A maker gets the dense network, the folder with its dense.onnx and the calibration batches.
Maker = Callable[[fx.GraphModule, Path, list[Array]], dict[str, Contestant]]


def fp32(network: fx.GraphModule, folder: Path, batches: list[Array]) -> dict[str, Contestant]:
    """The dense network in every runtime."""
    dense = folder / "dense.onnx"
    write_onnx(network, dense, SHAPE, {})
    return {
        "fp32 onnxruntime": Contestant("onnxruntime", dense, int8=False),
        "fp32 openvino": Contestant("openvino", dense, int8=False),
        "fp32 torch": Contestant("torch", network, int8=False),
        "fp32 torch_compiled": Contestant("torch_compiled", network, int8=False),
    }


def our_models(
    network: fx.GraphModule, folder: Path, batches: list[Array]
) -> dict[str, Contestant]:
    """Our quantizers and export, for each target."""
    files = {}
    for target in ("onnxruntime", "openvino"):
        model = copy.deepcopy(network)
        scheme = TargetConfig([target]).scheme()
        constrain(model, FakeQuantization(127 if has_vnni() else 63, scheme))
        calibrate(model, (torch.from_numpy(images) for images in batches))
        files[target] = folder / f"{target}.onnx"
        write_onnx(model, files[target], SHAPE, {})
    of = ("onnxruntime", "openvino", "onnxruntime")
    return {
        name: Contestant(name.split()[-1], files[target])
        for name, target in zip(OURS, of, strict=True)
    }


def onnxruntime_static(
    network: fx.GraphModule, folder: Path, batches: list[Array]
) -> dict[str, Contestant]:
    """ONNX Runtime's static quantizer: QDQ, UINT8 activations, INT8 weights per channel."""
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds = iter([{"input": images} for images in batches])

        def get_next(self) -> dict[str, Array] | None:
            return next(self.feeds, None)

    prepared, quantized = folder / "prepared.onnx", folder / "static.onnx"
    quant_pre_process(str(folder / "dense.onnx"), str(prepared))
    q.quantize_static(
        str(prepared),
        str(quantized),
        Reader(),
        quant_format=q.QuantFormat.QDQ,
        per_channel=True,
        reduce_range=not has_vnni(),
        activation_type=q.QuantType.QUInt8,
        weight_type=q.QuantType.QInt8,
    )
    return {"onnxruntime static": Contestant("onnxruntime", quantized)}


def nncf_ptq(network: fx.GraphModule, folder: Path, batches: list[Array]) -> dict[str, Contestant]:
    """NNCF's post-training quantization for the CPU, in OpenVINO."""
    import nncf
    import openvino as ov

    nncf.set_log_level(logging.ERROR)
    model = ov.Core().read_model(str(folder / "dense.onnx"))
    quantized = nncf.quantize(
        model, nncf.Dataset(batches), target_device=nncf.TargetDevice.CPU, subset_size=len(batches)
    )
    ov.save_model(quantized, str(folder / "nncf.xml"), compress_to_fp16=False)
    return {"nncf in openvino": Contestant("openvino", folder / "nncf.xml")}


def torch_fx(network: fx.GraphModule, folder: Path, batches: list[Array]) -> dict[str, Contestant]:
    """torch FX with the x86 backend, the paper's route: eager, and traced and frozen."""
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    torch.backends.quantized.engine = "x86"
    images = torch.from_numpy(batches[0])
    mapping = get_default_qconfig_mapping("x86")
    prepared = prepare_fx(copy.deepcopy(network).eval(), mapping, example_inputs=(images,))
    with torch.no_grad():
        for batch in batches:
            prepared(torch.from_numpy(batch))
        quantized = convert_fx(prepared)
        traced = torch.jit.freeze(torch.jit.trace(quantized.eval(), images[:1]))
    return {
        "torch fx": Contestant("torch", quantized),
        "torch fx, traced": Contestant("torch", traced),
    }


def torchao_pt2e(
    network: fx.GraphModule, folder: Path, batches: list[Array]
) -> dict[str, Contestant]:
    """torchao's PT2E quantization, compiled by Inductor with frozen weights."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    images = [torch.from_numpy(image[None]) for batch in batches for image in batch]
    exported = torch.export.export(without_shared_modules(network), (images[0],)).module()
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(
        x86.get_default_x86_inductor_quantization_config(reduce_range=not has_vnni())
    )
    prepared = prepare_pt2e(exported, quantizer)
    with torch.no_grad():
        for image in images:
            prepared(image)
    return {"torchao pt2e inductor": Contestant("torch_compiled", convert_pt2e(prepared))}


def without_shared_modules(network: fx.GraphModule) -> fx.GraphModule:
    """Gives every call its own module: the quantizer fails on a ReLU that is called twice."""
    network = copy.deepcopy(network)
    for number, node in enumerate(network.graph.nodes):
        node.meta.pop("nn_module_stack", None)
        if node.op == "call_module":
            own = f"{node.target}_{number}".replace(".", "_")
            network.add_submodule(own, copy.deepcopy(network.get_submodule(node.target)))
            node.target = own
    network.recompile()
    return network


MAKERS: list[Maker] = [fp32, our_models, onnxruntime_static, nncf_ptq, torch_fx, torchao_pt2e]


def dense(backbone: str) -> tuple[fx.GraphModule, list[Array]]:
    """Returns a backbone with random weights, and batches of images to calibrate on."""
    torch.manual_seed(0)
    network = backbones.build(BackboneConfig(backbone, backbone), 10, SHAPE[0], SHAPE[1])
    random = np.random.default_rng(0)
    batches: list[Array] = [
        random.standard_normal((8, *SHAPE), dtype=np.float32) for _ in range(CALIBRATION_BATCHES)
    ]
    with torch.no_grad():  # statistics for the batch norms, else activations explode
        for batch in batches * 5:
            network.train()(torch.from_numpy(batch))
    return network.eval(), batches


def contestants(
    backbone: str, folder: Path, makers: list[str], runtimes: list[str]
) -> dict[str, Contestant]:
    """Makes what is compared for a backbone, by the named makers and for the named runtimes."""
    network, batches = dense(backbone)
    made: dict[str, Contestant] = {}
    for maker in (maker for maker in MAKERS if maker.__name__ in makers):
        try:
            made |= maker(network, folder, batches)
        except Exception as error:  # a peer's failure is a finding, not ours to fix
            reason = str(error).splitlines()[0] if str(error) else ""
            print(f"{backbone}: {maker.__name__} left out: {type(error).__name__}: {reason}")
    return {name: one for name, one in made.items() if one.runtime in runtimes}
