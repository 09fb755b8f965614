"""Times training on the device at hand: the whole of `fit`, and what each constraint costs.

python benchmarks/training.py fit     --backbone resnet20 --compile true
python benchmarks/training.py ratios  --backbone resnet18 --rounds 15
python benchmarks/training.py profile --backbone resnet18 --variant qat
python benchmarks/training.py memory  --backbone resnet20

`fit` alternates epochs of `pqd.training.fit` with a bare loop of the same network, precision and
mode on one batch that never changes. `ratios` interleaves steps of all variants and gives the
median of each round's ratio to the dense step, and that of the fastest steps, which other work on
the machine moves least; NNCF and torchao take part where installed.
Images are random, 32x32 and 3 channels, except for `memory`, which needs CIFAR-10 (PQD_DATA).
"""

import argparse
import copy
import os
import resource
import statistics
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TypeVar

import torch
from torch import nn
from training_steps import LR, VARIANTS, Bench, Step

from pqd import data
from pqd.config import AugmentConfig, DatasetConfig
from pqd.measure import machine
from pqd.training import Batches, evaluate, fit

T = TypeVar("T")
U = TypeVar("U")


def ratios(bench: Bench, args: argparse.Namespace) -> None:
    makers: dict[str, Callable[[], Step]] = {
        name: lambda name=name: bench.variant(name)  # type: ignore[misc]
        for name in VARIANTS
    }
    if args.peers:
        makers |= {"torchao PT2E qat": bench.torchao, "NNCF qat": bench.nncf}
    steps = _tried(makers, lambda make: make())
    # Compiling starts only now: making a step makes torch forget what it has compiled.
    _tried(steps, lambda step: (step(), step()))
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name, step in steps.items():
            times[name].append(bench.seconds(step, args.steps))
    print("| step | images/s | ratio to dense | middle half | of the fastest |")
    print("|---|---|---|---|---|")
    for name, values in times.items():
        ratio = [v / dense for v, dense in zip(values, times["dense"], strict=True)]
        low, middle, high = statistics.quantiles(ratio, n=4)
        speed = args.batch_size / statistics.median(values)
        best = min(values) / min(times["dense"])
        print(f"| {name} | {speed:,.0f} | {middle:.3f} | {low:.3f} to {high:.3f} | {best:.3f} |")


def _tried(given: dict[str, T], action: Callable[[T], U]) -> dict[str, U]:
    """Acts on everything; a peer that fails at it is said so and left out."""
    done = {}
    for name, one in list(given.items()):
        try:
            done[name] = action(one)
        except Exception as error:
            if name in VARIANTS:
                raise
            del given[name]
            print(f"left out {name}: {type(error).__name__}: {str(error).splitlines()[0]}")
    return done


class FirstSteps:
    """The first steps of each epoch."""

    def __init__(self, batches: Batches, steps: int) -> None:  # noqa: D107
        self.batches, self.steps = batches, steps

    def __len__(self) -> int:  # noqa: D105
        return self.steps

    def epoch(self, seed: int) -> Iterator[data.Batch]:  # noqa: D102
        return islice(self.batches.epoch(seed), self.steps)


def whole_fit(bench: Bench, args: argparse.Namespace) -> None:
    bare = bench.bare()
    dataset = bench.random_images(45_000)
    everything = data.TrainBatches(dataset, AugmentConfig(), args.batch_size, bench.device)
    batches = FirstSteps(everything, args.steps)
    rates: list[tuple[float, float]] = []

    def on_epoch(metrics: dict[str, float]) -> None:
        images_per_s = args.batch_size / bench.seconds(bare, args.steps)
        rates.append((metrics["images_per_s"], images_per_s))

    fit(
        bench.build(),
        batches,
        bench.plain,
        settings=bench.settings,
        epochs=args.rounds + 1,
        lr=LR,
        seed=0,
        validate=None,
        on_epoch=on_epoch,
    )
    ours, plain = zip(*rates[1:], strict=True)  # the first epoch compiles
    share = [a / b for a, b in zip(ours, plain, strict=True)]
    low, middle, high = statistics.quantiles(share, n=4)
    print("| fit, images/s | bare loop, images/s | fit / bare | middle half |")
    print("|---|---|---|---|")
    print(
        f"| {statistics.median(ours):,.0f} | {statistics.median(plain):,.0f} | {middle:.3f} "
        f"| {low:.3f} to {high:.3f} |"
    )


def memory(bench: Bench, args: argparse.Namespace) -> None:
    model = bench.build()
    bench.step(copy.deepcopy(model), bench.plain)()  # the framework's own share
    before = _peak()
    config = DatasetConfig(name="cifar10", root=args.data)
    dataset = data.load_dataset(config)
    batches = data.TrainBatches(dataset, config.augment, args.batch_size, bench.device)
    loaded = _peak()

    def validate(model: nn.Module) -> float:
        rows = data.Split(*(part[:2000] for part in (dataset.test.images, dataset.test.labels)))
        return evaluate(model, data.eval_batches(rows, dataset, 500, bench.device))

    fit(
        model,
        FirstSteps(batches, args.steps),
        bench.plain,
        settings=bench.settings,
        epochs=2,
        lr=LR,
        seed=0,
        validate=validate,
    )
    print(f"peak host memory before {before:.2f} GiB, with data {loaded:.2f}, after {_peak():.2f}")


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def profile(bench: Bench, args: argparse.Namespace) -> None:
    step = bench.variant(args.variant)
    bench.seconds(step, 3)
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if bench.device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as profiler:
        wall = bench.seconds(step, args.steps) * args.steps
    device = bench.device.type
    events = profiler.key_averages()
    own = {event.key: getattr(event, f"self_{device}_time_total") / 1e6 for event in events}
    if device == "cuda":  # one stream: kernels do not overlap
        kernels = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
        own = {event.key: event.self_device_time_total / 1e6 for event in kernels}
        print(f"GPU idle {100 * (1 - sum(own.values()) / wall):.1f} % of the time")
    total = sum(own.values())
    print("| operation | share of the time | ms per step |")
    print("|---|---|---|")
    for name, seconds in sorted(own.items(), key=lambda item: -item[1])[:12]:
        print(f"| {name[:60]} | {seconds / total:.1%} | {1e3 * seconds / args.steps:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = {"fit": whole_fit, "ratios": ratios, "profile": profile, "memory": memory}
    parser.add_argument("command", choices=commands)
    parser.add_argument("--backbone", default="resnet18", help="a builder of pqd.backbones")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--compile", default="false", choices=("true", "false"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9, help="at least 2")
    parser.add_argument("--steps", type=int, default=1, help="per round")
    parser.add_argument(
        "--peers", action=argparse.BooleanOptionalAction, default=True, help="for ratios"
    )
    parser.add_argument("--variant", default="all", choices=VARIANTS, help="for profile")
    parser.add_argument("--data", default=os.environ.get("PQD_DATA", "data"), help="for memory")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count the process's CPU time, for a machine that others use; with --threads 1",
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    bench = Bench(args)
    conditions = machine()
    where = torch.cuda.get_device_name() if bench.device.type == "cuda" else conditions["cpu"]
    print(
        f"{args.command} of {args.backbone}, batch {args.batch_size}, {bench.precision}, "
        f"{'compiled' if bench.compiled else 'eager'}, {args.threads} CPU threads, {where}, "
        f"torch {torch.__version__}, {args.rounds} rounds of {args.steps} steps"
        + (", CPU time" if args.cpu_time else "")
    )
    commands[args.command](bench, args)


if __name__ == "__main__":
    main()
