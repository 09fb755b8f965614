"""Times training on the device at hand: the whole of `fit`, and what each constraint costs.

python benchmarks/training.py fit     --backbone resnet20 --compile true
python benchmarks/training.py ratios  --backbone resnet18 --rounds 15
python benchmarks/training.py profile --backbone resnet18 --variant qat
python benchmarks/training.py memory  --backbone resnet20

`fit` alternates epochs of `pqd.training.fit` with a bare loop of the same network, precision and
mode on one batch that never changes. `ratios` interleaves steps of all variants and gives the
median of each round's ratio to the dense step; NNCF and torchao take part where installed.
Images are random, 32x32 and 3 channels, except for `memory`, which needs CIFAR-10 (PQD_DATA).
"""

import argparse
import copy
import os
import resource
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pqd import backbones, data
from pqd.backbones.build import BUILDERS
from pqd.config import (
    AugmentConfig,
    BackboneConfig,
    DatasetConfig,
    DistillConfig,
    PruneConfig,
    TrainConfig,
)
from pqd.constraints.mask import attach_masks, set_masks
from pqd.constraints.placement import insert_fake_quants
from pqd.devices import resolve_device, resolve_precision
from pqd.measure import machine
from pqd.stages import Distill, Stage, frozen
from pqd.stages.prune import prunable_layers
from pqd.stages.quantize import calibrate
from pqd.training import (
    Batches,
    LossFn,
    evaluate,
    fit,
    make_optimizer,
    make_train_step,
)

VARIANTS = ("dense", "masked", "qat", "kd", "all")
LR = 0.01
T = TypeVar("T")
U = TypeVar("U")
Step = Callable[[], object]


class Bench:
    """The network, one batch, and what the command line asked for."""

    def __init__(self, args: argparse.Namespace) -> None:  # noqa: D107
        self.settings = TrainConfig(
            batch_size=args.batch_size,
            device=args.device,
            precision=args.precision,
            compile=args.compile,
        )
        self.device = resolve_device(args.device)
        self.precision = resolve_precision(args.precision, self.device)
        self.compiled = args.compile == "true"
        self.backbone = args.backbone
        self.clock = time.process_time if args.cpu_time else time.perf_counter
        generator = torch.Generator().manual_seed(0)
        shape = (args.batch_size, 3, 32, 32)
        images = torch.randn(shape, generator=generator)
        self.images = images.to(self.device, memory_format=torch.channels_last)
        labels = torch.randint(10, (args.batch_size,), generator=generator)
        self.labels = labels.to(self.device)

    def build(self) -> fx.GraphModule:
        """The traced network, its weights always the same."""
        torch.manual_seed(0)
        model = backbones.build(BackboneConfig(self.backbone, self.backbone), 10, 3, 32)
        return model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def variant(self, name: str) -> Step:
        """A training step of one of ours, as `fit` runs it."""
        model = self.build()
        if name in ("masked", "all"):
            attach_masks(prunable_layers(model, PruneConfig()))
            set_masks(model, 0.8, "global")
        if name in ("qat", "all"):
            insert_fake_quants(model, 127)
            calibrate(model, [self.images])
        stage = Stage(0.0)
        if name in ("kd", "all"):
            stage = Distill(DistillConfig(), 0.0, frozen(self.build()))
        return self.step(model.train(), stage.loss)

    def step(self, model: nn.Module, loss: LossFn) -> Step:
        """A training step of `model` as in `fit`: its forward and backward pass, its optimizer."""
        optimizer = make_optimizer(model, self.settings)
        batch = data.Batch(self.images, self.labels, torch.arange(len(self.labels)))
        train_step = make_train_step(model, loss, self.device, self.precision, self.compiled)
        for group in optimizer.param_groups:
            group["lr"] = LR

        def step() -> None:
            train_step(batch)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    def bare(self) -> Step:
        """A plain loop's step: nothing of ours but the network."""
        model = self.build().train()
        optimizer = torch.optim.SGD(model.parameters(), LR, 0.9, nesterov=True, fused=True)

        def forward(images: Tensor, labels: Tensor) -> Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, self.precision == "bf16"):
                return F.cross_entropy(model(images), labels)

        run = torch.compile(forward, dynamic=False) if self.compiled else forward

        def step() -> None:
            run(self.images, self.labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    def torchao(self) -> Step:
        """QAT by torchao's PT2E flow, with the quantizer for x86."""
        from peers import without_shared_modules
        from torchao.quantization.pt2e import allow_exported_model_train_eval
        from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
        from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
            X86InductorQuantizer,
            get_default_x86_inductor_quantization_config,
        )

        model = without_shared_modules(self.build())
        exported = torch.export.export(model.train(), (self.images,)).module()
        quantizer = X86InductorQuantizer()
        quantizer.set_global(get_default_x86_inductor_quantization_config(is_qat=True))
        quantized = prepare_qat_pt2e(exported, quantizer)
        allow_exported_model_train_eval(quantized)
        quantized.to(self.device).train()
        return self.step(quantized, Stage(0.0).loss)

    def nncf(self) -> Step:
        """QAT by NNCF: quantized after training, then trained on."""
        os.environ.setdefault("NNCF_EXTENSION_LOAD_TIMEOUT", "0")  # it compiles an extension
        import nncf

        torch.manual_seed(0)
        model = BUILDERS[self.backbone](10, 3, 32)  # untraced; it traces in its own way
        model = model.to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        quantized = nncf.quantize(model, nncf.Dataset([self.images]), subset_size=1)
        return self.step(quantized.train(), Stage(0.0).loss)

    def seconds(self, step: Step, steps: int) -> float:
        """Seconds per step."""
        self.wait()
        start = self.clock()
        for _ in range(steps):
            step()
        self.wait()
        return (self.clock() - start) / steps

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def random_images(self, count: int) -> data.Dataset:
        """As many training images as asked for, of noise."""

        def split(n: int) -> data.Split:
            images = torch.randint(256, (n, 32, 32, 3), dtype=torch.uint8)
            return data.Split(images, torch.randint(10, (n,)))

        half = (0.5, 0.5, 0.5)
        parts = split(count), split(100), split(100)
        return data.Dataset("random", list("0123456789"), *parts, half, half, "0" * 16)


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
    print("| step | images/s | ratio to dense | middle half |")
    print("|---|---|---|---|")
    for name, values in times.items():
        ratio = [v / dense for v, dense in zip(values, times["dense"], strict=True)]
        low, middle, high = statistics.quantiles(ratio, n=4)
        speed = args.batch_size / statistics.median(values)
        print(f"| {name} | {speed:,.0f} | {middle:.3f} | {low:.3f} to {high:.3f} |")


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
        Stage(0.0).loss,
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
    bench.step(copy.deepcopy(model), Stage(0.0).loss)()  # the framework's own share
    before = _peak()
    config = DatasetConfig(name="cifar10", root=str(args.data))
    dataset = data.load_dataset(config)
    batches = data.TrainBatches(dataset, config.augment, args.batch_size, bench.device)
    loaded = _peak()

    def validate(model: nn.Module) -> float:
        rows = data.Split(*(part[:2000] for part in (dataset.test.images, dataset.test.labels)))
        return evaluate(model, data.eval_batches(rows, dataset, 500, bench.device))

    fit(
        model,
        FirstSteps(batches, args.steps),
        Stage(0.0).loss,
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
    parser.add_argument("--data", type=Path, default="data", help="dataset.root, for memory")
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
