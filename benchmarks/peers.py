"""Our INT8 networks beside those of other quantizers, and FP32, measured interleaved.

    pip install -r requirements-bench.txt
    python benchmarks/peers.py                            # the named backbones, minutes each
    python benchmarks/peers.py --backbone resnet18 --threads 1 0 --json peers.json

Weights are random and calibration runs on random images: latency depends on neither. Batch size
is 1. Ours are quantized for the target in which they are measured, `pqd in openvino` for OpenVINO,
and for the common one, `pqd common in openvino`. The last lines of a backbone say how much longer
ours take than NNCF's in OpenVINO (bar: 1.02) and than those of ONNX Runtime's own static quantizer
(bar: 1.03).

All contestants of a backbone and thread count share the blocks of `pqd.measure.protocol`, so that
whatever happens to the machine happens to all of them. A contestant whose package is missing, or
that fails, is left out with a line saying so.
"""

import argparse
import copy
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import fx
from torch._inductor import config as inductor

from pqd import backbones
from pqd.config import BackboneConfig, RuntimeConfig, TargetConfig
from pqd.constraints import attach as constrain
from pqd.constraints.quantization import FakeQuantization
from pqd.export.onnx_file import write_onnx
from pqd.measure import provenance
from pqd.measure.cpu import has_vnni, pinned, thread_counts
from pqd.measure.protocol import Blocks, interleave, speedup, summarize
from pqd.measure.timings import opener
from pqd.runtimes import RUNTIMES, Array, get
from pqd.stages.quantize import calibrate

BACKBONES = ("resnet18", "resnet18_imagenet_stem", "vgg16_bn", "wrn28_10", "resnet20")
SHAPE = (3, 32, 32)
OURS = ("pqd in onnxruntime", "pqd in openvino", "pqd common in openvino")
BARS = {  # ours: what it is compared with, and how many times as long it may take
    "pqd in openvino": ("nncf in openvino", 1.02),
    "pqd in onnxruntime": ("onnxruntime static", 1.03),
}
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


def bind(contestant: Contestant, threads: int, images: Array) -> Callable[[], Callable[[], object]]:
    """Returns what opens a session; torch's quantized networks are used as they are."""
    if not (contestant.int8 and get(contestant.runtime).runs == "network"):
        return opener(get(contestant.runtime), contestant.source, threads, images)
    compiled = contestant.runtime == "torch_compiled"
    model = torch.compile(contestant.source) if compiled else contestant.source
    tensor = torch.from_numpy(images)
    call = torch.inference_mode()(lambda: model(tensor))
    with inductor.patch(freezing=True):
        call()
    return lambda: call


def compare(
    made: dict[str, Contestant], threads: int, settings: RuntimeConfig
) -> list[dict[str, Any]]:
    """Measures all contestants interleaved.

    Returns:
        Rows with the figures of `pqd.measure.protocol.summarize`; `speedup` is against FP32 in the
        same runtime, `over_best_peer` and its interval are the latency relative to the fastest INT8
        contestant that is not ours, `over_peer` that relative to the one named in `BARS`.
    """
    images = np.random.default_rng(0).standard_normal((1, *SHAPE), dtype=np.float32)
    with pinned(threads), get("torch").threads(threads):
        openers = {}
        for name, contestant in made.items():
            try:
                openers[name] = bind(contestant, threads, images)
                openers[name]()()
            except Exception as error:
                print(f"{name} left out: {type(error).__name__}: {str(error).splitlines()[0]}")
                openers.pop(name, None)
        times = interleave(openers, settings)
    figures = summarize(times, settings, base="")
    peers = [name for name in times if made[name].int8 and name not in OURS]
    best = min(peers, key=lambda name: figures[name]["p50_ms"], default=None)
    rows = []
    for name in sorted(times, key=lambda name: figures[name]["p50_ms"]):
        base = f"fp32 {made[name].runtime}"
        row = {"name": name, "threads": threads, **figures[name]}
        row["speedup"], row["speedup_interval"] = ratio(times, base, name, settings.seed)
        over, interval = ratio(times, name, best, settings.seed)
        row |= {"over_best_peer": over, "over_best_peer_interval": interval, "best_peer": best}
        if name in BARS:
            peer, bar = BARS[name]
            over, interval = ratio(times, name, peer, settings.seed)
            row |= {"peer": peer, "over_peer": over, "over_peer_interval": interval, "bar": bar}
        if isinstance(made[name].source, Path) and made[name].source.suffix == ".onnx":
            row["float_compute_nodes"] = get(made[name].runtime).float_compute_nodes(
                made[name].source
            )
        rows.append(row)
    return rows


def ratio(
    times: dict[str, Blocks], slow: str | None, fast: str | None, seed: int
) -> tuple[float | None, list[float] | None]:
    """Latency of `slow` over that of `fast`, paired by block, with its interval."""
    if slow not in times or fast not in times:
        return None, None
    return speedup(times[slow], times[fast], seed)


def show(backbone: str, rows: list[dict[str, Any]], console: Console) -> None:
    """Prints the table of one backbone and thread count."""
    title = f"{backbone}, {rows[0]['threads']} thread(s), batch 1; 95 % intervals"
    table = Table(title=title, title_justify="left")
    table.add_column("contestant", no_wrap=True)
    for column in ("median ms", "faster than its FP32", "time / best peer", "float"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["name"] + (" (noisy)" if row["noisy"] else ""),
            estimate(row["p50_ms"], row["p50_interval_ms"]),
            estimate(row["speedup"], row["speedup_interval"]),
            estimate(row["over_best_peer"], row["over_best_peer_interval"]),
            str(row.get("float_compute_nodes", "")),
        )
    console.print(table)
    for row in rows:
        if row.get("over_peer") is not None:
            over = estimate(row["over_peer"], row["over_peer_interval"])
            met = "met" if row["over_peer"] <= row["bar"] else "missed"
            console.print(f"{row['name']} / {row['peer']}: {over}, bar {row['bar']}: {met}")


def estimate(value: float | None, interval: list[float] | None) -> str:
    if value is None or interval is None:
        return ""
    return f"{value:.3g} [{interval[0]:.3g}, {interval[1]:.3g}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", nargs="+", default=BACKBONES, choices=BACKBONES)
    names = [maker.__name__ for maker in MAKERS]
    runtimes = list(RUNTIMES)
    parser.add_argument("--makers", nargs="+", default=names, choices=names, metavar="MAKER")
    parser.add_argument("--runtimes", nargs="+", default=runtimes, choices=runtimes, metavar="NAME")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 0], help="0 is all cores")
    parser.add_argument("--min-calls", type=int, default=200)
    parser.add_argument("--min-seconds", type=float, default=3.0)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--json", type=Path, help="also write all figures there")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # peers warn about their own deprecations
    logging.disable(logging.WARNING)
    settings = RuntimeConfig(
        min_calls=args.min_calls, min_seconds=args.min_seconds, blocks=args.blocks
    )
    conditions = provenance()
    console = Console(width=max(Console().width, 110))
    console.print({k: conditions[k] for k in ("cpu", "isa", "cores", "versions")}, soft_wrap=True)
    found: dict[str, list[dict[str, Any]]] = {}
    for backbone in args.backbone:
        found[backbone] = []
        with tempfile.TemporaryDirectory() as folder:
            made = contestants(backbone, Path(folder), args.makers, args.runtimes)
            for threads in thread_counts(args.threads):
                rows = compare(made, threads, settings)
                show(backbone, rows, console)
                found[backbone] += rows
    if args.json:
        record = {"command": " ".join(sys.argv), "provenance": conditions, "latency": found}
        args.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
