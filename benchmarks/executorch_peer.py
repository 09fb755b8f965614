"""Our model.pte beside PyTorch's own route to it (PT2E, XNNPACKQuantizer), measured interleaved.

    pip install -e .[executorch]
    python benchmarks/executorch_peer.py                       # minutes for each backbone
    python benchmarks/executorch_peer.py --backbone resnet18 --threads 1 --json executorch.json

Weights are random and calibration runs on random images, as in `peers.py`. Agreement is with
`model.onnx` in ONNX Runtime: the logits of random networks lie so close together that 2 % of their
classes change with the order of float32 sums, in both runtimes alike.
"""

import argparse
import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contestants import SHAPE, dense, without_shared_modules
from peers import ratio
from torch import fx

from pqd.config import RuntimeConfig
from pqd.constraints import attach as constrain
from pqd.constraints.integers import round_biases
from pqd.constraints.quantization import FakeQuantization
from pqd.export.executorch_file import write_executorch
from pqd.export.onnx_file import write_onnx
from pqd.measure import provenance
from pqd.measure.cpu import thread_counts
from pqd.measure.graph import Input
from pqd.measure.protocol import summarize
from pqd.measure.timings import measure, random_images
from pqd.runtimes import Array, usable
from pqd.runtimes.executorch import nodes, undelegated
from pqd.stages.quantize import calibrate

BACKBONES = ("resnet8", "resnet20", "resnet18", "resnet18_imagenet_stem", "vgg16_bn", "wrn28_10")
IMAGES = 200  # to compare classes on
OURS, PEER, FP32 = "pqd", "pt2e", "fp32"


def ours(network: fx.GraphModule, path: Path, batches: list[Array]) -> None:
    """Writes our integers, as ONNX as well."""
    model = copy.deepcopy(network)
    constrain(model, FakeQuantization(127))
    calibrate(model, (torch.from_numpy(images) for images in batches))
    round_biases(model)
    write_executorch(model, path, SHAPE, {})
    write_onnx(model, path.with_suffix(".onnx"), SHAPE, {})


def pt2e(network: fx.GraphModule, path: Path, batches: list[Array]) -> None:
    """Writes what XNNPACKQuantizer makes, as ExecuTorch's documentation does."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    images = [image for batch in batches for image in torch.from_numpy(batch).split(1)]
    exported = torch.export.export(without_shared_modules(network), (images[0],)).module()
    quantizer = xnnpack.XNNPACKQuantizer()
    quantizer.set_global(xnnpack.get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(exported, quantizer)
    with torch.no_grad():
        for image in images:
            prepared(image)
    program = torch.export.export(convert_pt2e(prepared), (images[0],))
    edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    path.write_bytes(edge.to_executorch().buffer)


def compare(backbone: str, folder: Path, settings: RuntimeConfig) -> list[dict[str, Any]]:
    """Writes the three files of a backbone and measures them interleaved.

    Returns:
        A row for each number of threads.
    """
    network, batches = dense(backbone)
    files = {name: folder / f"{name}.pte" for name in (FP32, PEER, OURS)}
    write_executorch(network, files[FP32], SHAPE, {})
    pt2e(network, files[PEER], batches)
    ours(network, files[OURS], batches)
    runtime = usable("executorch")
    images = random_images(Input(SHAPE), IMAGES, 1)
    own = usable("onnxruntime").open(files[OURS].with_suffix(".onnx"), 1)(images).argmax(1)
    found = runtime.open(files[OURS], 1)(images).argmax(1)
    facts = {
        "backbone": backbone,
        "agreement": 100 * float(np.mean(own == found)),
        "nodes": len(nodes(files[OURS])),
        "float_compute_nodes": runtime.float_compute_nodes(files[OURS]),
        "undelegated": undelegated(files[OURS]),
        "undelegated_peer": undelegated(files[PEER]),
        "bytes": {name: path.stat().st_size for name, path in files.items()},
    }
    rows = []
    for threads in thread_counts(settings.threads):
        times, others = measure(
            runtime, files, threads, random_images(Input(SHAPE), 1, settings.seed), settings
        )
        figures = summarize(times, settings, base=FP32)
        over, interval = ratio(times, OURS, PEER, settings.seed)
        row = {"threads": threads, "over_peer": over, "over_peer_interval": interval}
        rows.append(facts | row | {"others_share": others, "figures": figures})
    return rows


def show(row: dict[str, Any]) -> None:
    """Prints a row of a Markdown table."""
    times = " | ".join(f"{row['figures'][name]['p50_ms']:.3g}" for name in (OURS, PEER, FP32))
    low, high = row["over_peer_interval"]
    outside = ", ".join(row["undelegated"]) or "0"
    print(
        f"| {row['backbone']} | {row['threads']} | {times} | {row['over_peer']:.3g} [{low:.3g}, "
        f"{high:.3g}] | {row['agreement']:.1f} % | {row['float_compute_nodes']} | {outside} |",
        flush=True,
    )


def main() -> None:
    """Prints a table, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", nargs="+", default=list(BACKBONES))
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--seconds", type=float, default=3.0, help="timed seconds per model")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    arguments = parser.parse_args()
    settings = RuntimeConfig(threads=arguments.threads, min_seconds=arguments.seconds)
    rows = []
    print(
        "| backbone | threads | pqd, ms | PT2E, ms | FP32, ms | pqd / PT2E | agreement | float ",
        end="",
    )
    print("nodes | outside XNNPACK |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    for backbone in arguments.backbone:
        with tempfile.TemporaryDirectory() as folder:
            for row in compare(backbone, Path(folder), settings):
                show(row)
                rows.append(row)
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows} | provenance(), indent=1))


if __name__ == "__main__":
    main()
