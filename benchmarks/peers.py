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
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contestants import MAKERS, OURS, SHAPE, Contestant, contestants
from rich.console import Console
from rich.table import Table
from torch._inductor import config as inductor

from pqd.config import RuntimeConfig
from pqd.measure import provenance
from pqd.measure.cpu import pinned, thread_counts
from pqd.measure.protocol import Blocks, interleave, speedup, summarize
from pqd.measure.timings import opener
from pqd.runtimes import RUNTIMES, Array, get

BACKBONES = ("resnet18", "resnet18_imagenet_stem", "vgg16_bn", "wrn28_10", "resnet20")
BARS = {  # ours: what it is compared with, and how many times as long it may take
    "pqd in openvino": ("nncf in openvino", 1.02),
    "pqd in onnxruntime": ("onnxruntime static", 1.03),
}


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
    with pinned(threads, get("torch"), get("openvino")):
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
