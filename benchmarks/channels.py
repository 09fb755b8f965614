"""What does removing channels bring? Latency in INT8, and images/s of quantization-aware training.

    python benchmarks/channels.py                       # resnet18, a quarter of the MACs; minutes
    python benchmarks/channels.py --macs 0.5 --round-to 16
    python benchmarks/channels.py --sweep --network RUN # which round_to? 1, 4, 8, 16 and 32
    python benchmarks/channels.py --speedup 3           # is it met when measured again?

The dense network and the one with fewer channels are quantized alike and measured interleaved, on
one thread, batch 1; then both are trained in turns, all three of weights, ranges and batch norms.

A sweep compares multiples that channels are kept in, at the same budget: what coarse ones gain in
latency, they lose in importance, the mean over channel groups of the share that the best channels
hold. Only of a trained network does that mean much.

A speed-up is asked for several times: each time a shape is found as `prune.speedup` finds it, and
then measured again beside the dense network, as `pqd bench` measures.
"""

import argparse
import copy
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
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
from pqd.errors import UserError
from pqd.export.onnx_file import write_onnx
from pqd.graph.channels import Channels, channels
from pqd.measure import latency
from pqd.networks import load_network
from pqd.pruning.channels import narrowed
from pqd.pruning.cost import Shapes, Units, allocate, levels
from pqd.pruning.importance import magnitude
from pqd.pruning.latency import TOLERANCE, Target, fit, table
from pqd.stages.quantize import calibrate
from pqd.training import make_optimizer, make_train_step

IMAGE = (3, 32, 32)
BARS = {"openvino": 0.45, "onnxruntime": 0.32}  # of the dense network's time, at a quarter


MULTIPLES = 1, 4, 8, 16, 32


def prunable(
    model: fx.GraphModule, round_to: int
) -> tuple[Channels, Shapes, list[Any], list[list[int]]]:
    """Returns the channel groups, their costs, importances and the numbers they may keep."""
    found = channels(model, IMAGE)
    values = [value.double().numpy() for value in magnitude(model, found.groups)]
    allowed = [levels(group.units, group.width, round_to, round_to) for group in found.groups]
    return found, Shapes(model, found), values, allowed


def pruned(
    dense: fx.GraphModule, macs: float, round_to: int
) -> tuple[fx.GraphModule, float, float]:
    """Returns the network with fewer channels, and its shares of MACs and importance."""
    model = copy.deepcopy(dense)
    found, shapes, values, allowed = prunable(model, round_to)
    units = allocate(values, allowed, shapes.macs, macs * shapes.macs(shapes.dense))
    attach(model, narrowed(model, found.groups, units))
    best = zip(values, units, strict=True)
    held = statistics.fmean(np.sort(each)[::-1][:n].sum() / each.sum() for each, n in best)
    return model, shapes.macs(units) / shapes.macs(shapes.dense), held


def quantized(models: dict[str, fx.GraphModule]) -> dict[str, fx.GraphModule]:
    for model in models.values():
        attach(model, FakeQuantization(127))
        calibrate(model, [torch.randn(8, *IMAGE)])
    return models


def measured(models: dict[str, fx.GraphModule], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures INT8 networks interleaved in the runtimes; see `pqd.measure.latency`."""
    names = [args.runtime] if args.speedup else list(BARS)
    settings = RuntimeConfig(names, [1], [1], min_seconds=args.min_seconds)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder, f"{name}.onnx") for name in models}
        for name, path in files.items():
            write_onnx(models[name], path, IMAGE, {})
        return latency(files, settings, IMAGE)


def sweep(dense: fx.GraphModule, args: argparse.Namespace) -> Table:
    """Returns what each multiple of channels costs and keeps at the same budget."""
    models, shares = {"dense": dense}, {"dense": (1.0, 1.0)}
    for round_to in MULTIPLES:
        model, macs, importance = pruned(dense, args.macs, round_to)
        models[str(round_to)], shares[str(round_to)] = model, (macs, importance)
    rows = measured(quantized(models), args)
    here = [name for name in BARS if any(row["runtime"] == name for row in rows)]
    found = Table("round_to", "MACs", "importance", *(f"{name}, ms" for name in here))
    found.caption = "in brackets the 95 % interval of the speed over dense; † noisy"
    for name, (macs, importance) in shares.items():
        cells = []
        for runtime in here:
            (row,) = (r for r in rows if (r["model"], r["runtime"]) == (name, runtime))
            low, high = row["speedup_interval"] or (1.0, 1.0)
            noisy = " †" if row["noisy"] else ""
            cells.append(f"{row['p50_ms']:.3f}{noisy} ({low:.2f} to {high:.2f})")
        found.add_row(name, f"{macs:.3f}", f"{importance:.3f}", *cells)
    return found


def ask(dense: fx.GraphModule, args: argparse.Namespace) -> None:
    """Prints how fast shapes are that were found for a speed-up, when measured again."""
    found, shapes, values, allowed = prunable(dense, args.round_to)
    target = Target(RuntimeConfig([args.runtime], [1], [1], min_seconds=args.min_seconds))

    def find() -> tuple[Units, tuple[float, float]]:
        cost = table(target, found, shapes, args.round_to)
        return fit(
            target,
            {"speedup": args.speedup},
            dense,
            lambda network, units: narrowed(network, found.groups, units),
            lambda most: allocate(values, allowed, cost, most),
            cost,
            IMAGE,
        )

    met = 0
    for repetition in range(args.repetitions):
        units, (before, after) = find()
        small = copy.deepcopy(dense)
        attach(small, narrowed(small, found.groups, units))
        again = measured(quantized({"dense": copy.deepcopy(dense), "pruned": small}), args)
        (row,) = (r for r in again if (r["model"], r["runtime"]) == ("pruned", args.runtime))
        met += abs(row["speedup"] / args.speedup - 1) <= TOLERANCE
        low, high = row["speedup_interval"]
        share = shapes.macs(units) / shapes.macs(shapes.dense)
        noisy = " †" if row["noisy"] else ""
        print(
            f"{repetition + 1}: {share:.3f} of the MACs, {before / after:.2f} times as fast when "
            f"found, measured again {row['speedup']:.2f}{noisy} ({low:.2f} to {high:.2f})",
            flush=True,
        )
    print(f"{met} of {args.repetitions} within {TOLERANCE:.0%} of {args.speedup:g}")


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
    parser.add_argument("--network", type=Path, help="a run's folder, or its model.safetensors")
    parser.add_argument("--sweep", action="store_true", help="compare values of round_to")
    parser.add_argument("--speedup", type=float, help="ask for a speed-up, repeatedly")
    parser.add_argument("--repetitions", type=int, default=10, help="of --speedup")
    parser.add_argument("--runtime", choices=BARS, default="onnxruntime", help="of --speedup")
    parser.add_argument("--macs", type=float, default=0.25, help="share of the dense network's")
    parser.add_argument("--round-to", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=128, help="of training")
    parser.add_argument("--steps", type=int, default=5, help="of training, per network")
    parser.add_argument("--min-seconds", type=float, default=RuntimeConfig.min_seconds)
    args = parser.parse_args()

    torch.manual_seed(0)
    console = Console()
    if args.network:
        dense = load_network(args.network, quantized=False)
    else:
        dense = backbones.build(BackboneConfig(args.backbone, args.backbone), 10, 3, IMAGE[1])
    if args.sweep:
        console.print(sweep(dense, args))
        return
    if args.speedup:
        ask(dense, args)
        return
    small, share, _ = pruned(dense, args.macs, args.round_to)
    models = quantized({"dense": dense, "pruned": small})
    console.print(f"{args.network or args.backbone}: {share:.3f} of the MACs")
    table = Table("", "dense", "pruned", "ratio", "95 %", "bar at 0.25")
    rows = measured(models, args)
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
    try:
        main()
    except UserError as error:
        sys.exit(f"channels.py: {error}")
