"""Times the way from the command to the first training step.

python benchmarks/startup.py [OVERRIDES]     # default: -m 'order=glob(*)' backbone=resnet18

Starts train.py five times with an empty cache and no tracking, and kills it at its first step. The
data set is CIFAR-10 (PQD_DATA), its pixels decoded by the first start, which is not counted.
"""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
MARK = "the first training step"
# `fit` looks `make_train_step` up when it is called; train.py imports its module in any case.
WATCHED = f"""
import runpy, sys
sys.argv = sys.argv[1:]
import pqd.training as training
make = training.make_train_step
def watched(*args):
    step = make(*args)
    return lambda batch: (print({MARK!r}, flush=True), step(batch))[1]
training.make_train_step = watched
sys.path.insert(0, {str(TRAIN.parent)!r})
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def main() -> None:
    overrides = sys.argv[1:] or ["-m", "order=glob(*)", "backbone=resnet18"]
    with tempfile.TemporaryDirectory() as folder:
        seconds = [first_step(Path(folder, str(i)), overrides) for i in range(6)][1:]
    print(
        f"train.py {' '.join(overrides)}: first training step after {min(seconds):.2f} s at best, "
        f"{statistics.median(seconds):.2f} s median, {max(seconds):.2f} s at worst of 5"
    )


def first_step(folder: Path, overrides: list[str]) -> float:
    """Seconds from the start of the process to its first step."""
    folder.mkdir()
    places = [
        f"cache.dir={folder}/cache",
        f"hydra.run.dir={folder}/run",
        f"hydra.sweep.dir={folder}/sweep",
    ]
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", WATCHED, TRAIN, *overrides, "logger=none", *places],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout
        said = []
        for line in process.stdout:
            said.append(line)
            if MARK in line:
                taken = time.perf_counter() - start
                os.killpg(process.pid, signal.SIGKILL)
                return taken
    raise SystemExit("train.py ended before a step:\n" + "".join(said))


if __name__ == "__main__":
    main()
