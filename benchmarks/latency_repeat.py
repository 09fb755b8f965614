"""Do two measurements of the same networks agree? Repeats them, each in a process of its own.

    python benchmarks/latency_repeat.py outputs/RUN                   # ten pairs, minutes
    python benchmarks/latency_repeat.py outputs/RUN --runtime openvino --threads 0

RUN holds dense.onnx and model.onnx. A pair agrees when the 95 % interval of its difference contains
0: of two right intervals 19 pairs in 20 do. Also counted: pairs of which each speed-up lies within
the interval of the other (of right intervals, four in five), and pairs whose intervals overlap.
"""

import argparse
import math
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
    from pqd.measure.graph import input_of

    models = {"dense": run / "dense.onnx", "final": run / "model.onnx"}
    taken = input_of(models["final"])
    return latency(models, settings, taken.shape, uint8=taken.uint8)[-1]


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
    counts = dict.fromkeys(("agree", "lie within each other's interval", "overlap"), 0)
    with pool:
        for pair in range(args.repetitions):
            seeds = (2 * pair, 2 * pair + 1)
            first, second = (
                pool.submit(measure, args.run, replace(settings, seed=s)).result() for s in seeds
            )
            low, high = sorted((first, second), key=lambda row: row["speedup"])
            apart = high["speedup"] - low["speedup"]
            above = low["speedup_interval"][1] - low["speedup"]
            below = high["speedup"] - high["speedup_interval"][0]
            agree = apart <= math.hypot(above, below)
            for what, holds in zip(
                counts, (agree, apart <= min(above, below), apart <= above + below), strict=True
            ):
                counts[what] += holds
            cells = [cell for row in (first, second) for cell in estimate(row)]
            noisy = first["noisy"] or second["noisy"]
            table.add_row(str(pair + 1), *cells, "noisy" if noisy else "", "yes" if agree else "NO")
    console = Console()
    console.print(table)
    for what, count in counts.items():
        console.print(f"{count} of {args.repetitions} pairs {what}")


def estimate(row: dict[str, Any]) -> tuple[str, str]:
    low, high = row["speedup_interval"]
    return f"{row['speedup']:.3f}", f"{low:.3f} .. {high:.3f}"


if __name__ == "__main__":
    main()
