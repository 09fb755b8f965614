"""What does removing channels bring? Latency in INT8, and images/s of quantization-aware training.

    python benchmarks/channels.py                       # resnet18, a quarter of the MACs; minutes
    python benchmarks/channels.py --macs 0.5 --round-to 16

The dense network and the one with fewer channels are quantized alike and measured interleaved, on
one thread, batch 1; then both are trained in turns, all three of weights, ranges and batch norms.
"""

import argparse
import copy
import statistics
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, fx
from torch.nn import functional as F

from pqd import backbones
from pqd.config import BackboneConfig, RuntimeConfig, TrainConfig
from pqd.constraints import attach
from pqd.constraints.quantization import FakeQuantization
from pqd.data import Batch
from pqd.devices import resolve_device, resolve_precision
from pqd.export.onnx_file import write_onnx
from pqd.graph.channels import channels
from pqd.measure import latency
from pqd.pruning.channels import narrowed
from pqd.pruning.cost import Shapes, allocate, levels
from pqd.pruning.importance import magnitude
from pqd.stages.quantize import calibrate
from pqd.training import make_optimizer, make_train_step

IMAGE = (3, 32, 32)
BARS = {"openvino": 0.45, "onnxruntime": 0.32}  # of the dense network's time, at a quarter


def pruned(dense: fx.GraphModule, macs: float, round_to: int) -> tuple[fx.GraphModule, float]:
    """Returns the network with fewer channels, and its share of the MACs."""
    model = copy.deepcopy(dense)
    found = channels(model, IMAGE)
    shapes = Shapes(model, found)
    values = [value.double().numpy() for value in magnitude(model, found.groups)]
    allowed = [levels(group.units, group.width, round_to, round_to) for group in found.groups]
    units = allocate(values, allowed, shapes.macs, macs * shapes.macs(shapes.dense))
    attach(model, narrowed(model, found.groups, units))
    return model, shapes.macs(units) / shapes.macs(shapes.dense)


def images_per_s(models: dict[str, fx.GraphModule], args: argparse.Namespace) -> dict[str, float]:
    """Trains the quantized networks in turns, a step each; returns images/s of median steps."""
    settings = TrainConfig(batch_size=args.batch_size, device="cpu", compile="false")
    device = resolve_device("cpu")
    precision = resolve_precision("auto", device)
    shape = (args.batch_size, *IMAGE)
    images = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    batch = Batch(images, torch.randint(10, shape[:1]), torch.arange(args.batch_size))

    def loss(model: torch.nn.Module, batch: Batch) -> dict[str, Tensor]:
        logits = model(batch.images)
        return {"loss": F.cross_entropy(logits.float(), batch.labels), "logits": logits}

    steps, seconds = {}, {name: list[float]() for name in models}
    for name, model in models.items():
        model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = make_optimizer(model, settings)
        steps[name] = make_train_step(model, loss, device, precision, False), optimizer
    for _ in range(args.steps + 2):
        for name, (step, optimizer) in steps.items():
            start = time.perf_counter()
            step(batch)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            seconds[name].append(time.perf_counter() - start)
    return {name: args.batch_size / statistics.median(each[2:]) for name, each in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--macs", type=float, default=0.25, help="share of the dense network's")
    parser.add_argument("--round-to", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=128, help="of training")
    parser.add_argument("--steps", type=int, default=5, help="of training, per network")
    parser.add_argument("--min-seconds", type=float, default=RuntimeConfig.min_seconds)
    args = parser.parse_args()

    torch.manual_seed(0)
    dense = backbones.build(BackboneConfig(args.backbone, args.backbone), 10, 3, IMAGE[1])
    small, share = pruned(dense, args.macs, args.round_to)
    models = {"dense": dense, "pruned": small}
    for model in models.values():
        attach(model, FakeQuantization(127))
        calibrate(model, [torch.randn(8, *IMAGE)])
    console = Console()
    console.print(f"{args.backbone}: {share:.3f} of the MACs")
    table = Table("", "dense", "pruned", "ratio", "95 %", "bar at 0.25")
    settings = RuntimeConfig(list(BARS), [1], [1], min_seconds=args.min_seconds)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder, f"{name}.onnx") for name in models}
        for name, path in files.items():
            write_onnx(models[name], path, IMAGE, {})
        rows = latency(files, settings, IMAGE)
    for runtime, bar in BARS.items():
        ms = {row["model"]: row for row in rows if row["runtime"] == runtime}
        if not ms:
            continue
        ratio, (low, high) = 1 / ms["pruned"]["speedup"], ms["pruned"]["speedup_interval"]
        noisy = " †" if any(row["noisy"] for row in ms.values()) else ""
        table.add_row(
            f"{runtime}, ms",
            *(f"{ms[name]['p50_ms']:.3f}" for name in models),
            f"{ratio:.3f}{noisy}",
            f"{1 / high:.3f} to {1 / low:.3f}",
            f"at most {bar}",
        )
    speed = images_per_s(models, args)
    ratio = speed["pruned"] / speed["dense"]
    cells = (*(f"{speed[name]:.0f}" for name in models), f"{ratio:.2f}", "", "at least 2")
    table.add_row("QAT, images/s", *cells)
    console.print(table)


if __name__ == "__main__":
    main()
