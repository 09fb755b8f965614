"""Times the report of 216 stored results: 6 orders x 6 seeds x 3 backbones x 2 data sets.

python benchmarks/report.py [OUTPUT]     # keeps the report in OUTPUT

Prints the seconds of a fresh Python process from its start to its end, the best and the median of
five, and its CPU time, which a busy machine inflates less. The results are drawn by
tests/report_runs.py, not measured.
"""

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMAND = "import sys; from pathlib import Path; from pqd.report import build"
COMMAND += "; build([Path(sys.argv[1])], Path(sys.argv[2]))"


def main() -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    from report_runs import BACKBONES, ORDERS, write_sweep

    with tempfile.TemporaryDirectory() as folder:
        sweep = Path(folder) / "sweep"
        output = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder) / "report"
        runs = write_sweep(
            sweep,
            order=ORDERS,
            seed=range(6),
            backbone=BACKBONES,
            dataset=("cifar10", "cifar100"),
        )
        seconds, cpu = [], []
        for _ in range(5):
            start, used = time.perf_counter(), cpu_seconds()
            subprocess.run([sys.executable, "-c", COMMAND, str(sweep), str(output)], check=True)
            seconds.append(time.perf_counter() - start)
            cpu.append(cpu_seconds() - used)
        size = (output / "report.html").stat().st_size / 2**20
    print(
        f"{len(runs)} results: best {min(seconds):.2f} s, median {statistics.median(seconds):.2f} s"
        f" of 5 (CPU time {min(cpu):.2f} s, {statistics.median(cpu):.2f} s);"
        f" report.html {size:.1f} MiB"
    )


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
