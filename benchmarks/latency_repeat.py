"""Do two measurements of the same networks agree? Repeats them, each in a process of its own.

    python benchmarks/latency_repeat.py outputs/RUN                   # ten pairs, minutes
    python benchmarks/latency_repeat.py outputs/RUN --runtime openvino --threads 0

RUN holds dense.onnx and model.onnx. A pair agrees when each of its two speed-ups lies within the
interval of the other; that the two intervals overlap is less, and is counted too.
"""

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pqd.config import RuntimeConfig


def measure(run: Path, settings: RuntimeConfig) -> dict[str, Any]:
    """Returns the row of the final network, measured in this process."""
    from pqd.measure import latency
    from pqd.measure.graph import input_shape

    models = {"dense": run / "dense.onnx", "final": run / "model.onnx"}
    return latency(models, settings, input_shape(models["final"]))[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--runtime", default="onnxruntime", choices=("onnxruntime", "openvino"))
    parser.add_argument("--threads", type=int, default=1, help="0 is all cores")
    parser.add_argument("--min-seconds", type=float, default=RuntimeConfig.min_seconds)
    parser.add_argument("--min-calls", type=int, default=RuntimeConfig.min_calls)
    args = parser.parse_args()
    settings = RuntimeConfig(
        names=[args.runtime],
        threads=[args.threads],
        min_seconds=args.min_seconds,
        min_calls=args.min_calls,
    )
    # Every measurement starts from nothing, as a second call of `pqd bench` would.
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    table = Table(title=f"{args.run.name} in {args.runtime}, {args.threads or 'all'} thread(s)")
    for column in ("pair", "speed-up", "95 %", "again", "95 %", "noisy", "agree"):
        table.add_column(column, justify="right", no_wrap=True)
    agreed = overlapping = 0
    with pool:
        for pair in range(args.repetitions):
            seeds = (2 * pair, 2 * pair + 1)
            first, second = (
                pool.submit(measure, args.run, replace(settings, seed=s)).result() for s in seeds
            )
            agree = within(first, second) and within(second, first)
            agreed += agree
            overlapping += overlap(first["speedup_interval"], second["speedup_interval"])
            cells = [cell for row in (first, second) for cell in estimate(row)]
            noisy = first["noisy"] or second["noisy"]
            table.add_row(str(pair + 1), *cells, "noisy" if noisy else "", "yes" if agree else "NO")
    console = Console()
    console.print(table)
    console.print(f"{agreed} of {args.repetitions} pairs agree, {overlapping} overlap")


def within(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether the speed-up of one row lies in the interval of the other."""
    low, high = other["speedup_interval"]
    return low <= one["speedup"] <= high


def overlap(first: list[float], second: list[float]) -> bool:
    """Whether two intervals have a point in common."""
    return first[0] <= second[1] and second[0] <= first[1]


def estimate(row: dict[str, Any]) -> tuple[str, str]:
    low, high = row["speedup_interval"]
    return f"{row['speedup']:.3f}", f"{low:.3f} .. {high:.3f}"


if __name__ == "__main__":
    main()
