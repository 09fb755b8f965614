"""What a busy machine costs training, by how long OpenMP's threads spin before they sleep.

python benchmarks/load.py [--spins 300000 1000 adapted] [--rounds 5] [--epochs 6]

Trains ResNet-8 with `fit` on random images, batches of 128, in processes of their own: alone,
beside a process that keeps one core busy, and beside another such training. `adapted` is what pqd
does (`pqd.spinning`). Spin counts are interleaved, each round in another order. Prints the median
ms per step, the speed relative to the first count undisturbed (of itself libgomp spins 300000
times), and that relative to the same count undisturbed. Run it on an idle machine.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
from collections import defaultdict
from contextlib import ExitStack
from types import SimpleNamespace

USUAL = "300000"  # spins of libgomp
ADAPTED = "adapted"
BUSY = [sys.executable, "-c", "while True: pass"]
BATCH_SIZE, STEPS = 128, 10  # an epoch's


def train(epochs: int) -> None:
    """Prints the images per second of each epoch but the first."""
    from training_steps import Bench

    from pqd import data
    from pqd.config import AugmentConfig, TrainConfig
    from pqd.training import fit

    settings = TrainConfig(BATCH_SIZE, device="cpu", precision="fp32", compile="false")
    given = {"batch_size": BATCH_SIZE, "device": "cpu", "precision": "fp32", "compile": "false"}
    bench = Bench(SimpleNamespace(**given, backbone="resnet8", cpu_time=False))
    images = bench.random_images(BATCH_SIZE * STEPS)
    batches = data.TrainBatches(images, AugmentConfig(), BATCH_SIZE, bench.device)
    history = fit(
        bench.build(),
        batches,
        bench.plain,
        settings=settings,
        epochs=epochs + 1,
        lr=0.01,
        seed=0,
        validate=None,
        on_epoch=lambda metrics: print(metrics["images_per_s"], flush=True),
    )
    assert len(history) == epochs + 1


def command(epochs: int) -> list[str]:
    """Trains in a process of its own."""
    return [sys.executable, __file__, "--epochs", str(epochs), "--train"]


def speed(spins: str, beside: str, epochs: int) -> float:
    """Images per second, the median over epochs, beside something else."""
    unset = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
    env = {key: value for key, value in os.environ.items() if key not in unset}
    if spins != ADAPTED:
        env |= {"GOMP_SPINCOUNT": spins}
    with ExitStack() as running:
        if beside != "alone":
            other = BUSY if beside == "one core busy" else command(10_000)
            started = running.enter_context(
                subprocess.Popen(other, env=env, stdout=subprocess.PIPE, text=True)
            )
            running.callback(started.kill)
            if other is not BUSY:
                assert started.stdout
                started.stdout.readline()  # it is training
        done = subprocess.run(command(epochs), env=env, capture_output=True, text=True, check=True)
    return statistics.median(map(float, done.stdout.split()[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spins", nargs="+", default=[USUAL, "1000", ADAPTED])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train:
        return train(args.epochs)
    places = ("alone", "one core busy", "another training")
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(args.rounds):
        for spins, beside in random.sample(
            [(s, p) for s in args.spins for p in places], len(args.spins) * len(places)
        ):
            found[spins, beside].append(speed(spins, beside, args.epochs))
    medians = {key: statistics.median(values) for key, values in found.items()}
    for beside in places:
        for spins in args.spins:
            now = medians[spins, beside]
            usual = medians[args.spins[0], "alone"]
            print(
                f"{beside:<17} {spins:>7}: {1000 * BATCH_SIZE / now:6.1f} ms per step, "
                f"{now / usual:.2f} of {args.spins[0]} spins alone, "
                f"{now / medians[spins, 'alone']:.2f} of the same alone"
            )


if __name__ == "__main__":
    main()
