"""What `training.py` times: training steps of our stages, of a bare loop and of the peers."""

import argparse
import os
import time
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pqd import backbones, data
from pqd.backbones.build import BUILDERS
from pqd.config import BackboneConfig, TrainConfig
from pqd.constraints import attach
from pqd.constraints.fusion import fused
from pqd.constraints.lsq import LearnedSteps
from pqd.constraints.mask import Masks, set_masks
from pqd.constraints.quantization import FakeQuantization
from pqd.devices import keep_freed_memory, resolve_device, resolve_precision
from pqd.schema import schema
from pqd.stages import Context
from pqd.stages.baseline import Baseline
from pqd.stages.distill import Distill
from pqd.stages.prune import PruneSettings, prunable_layers
from pqd.stages.quantize import calibrate
from pqd.stages.teachers import frozen
from pqd.training import LossFn, make_optimizer, make_train_step

VARIANTS = ("dense", "masked", "qat", "lsq", "kd", "all")
LR = 0.01
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
        if self.device.type == "cpu":
            keep_freed_memory()  # as `fit` does
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
            attach(model, Masks(prunable_layers(model, PruneSettings())))
            set_masks(model, 0.8, "global")
        if name in ("qat", "lsq", "all"):
            attach(model, LearnedSteps(127) if name == "lsq" else FakeQuantization(127))
            calibrate(model, [self.images])
        model = fused(model)
        if name not in ("kd", "all"):
            return self.step(model.train(), self.plain)
        stage = Distill(self.context)
        stage.teacher = frozen(self.build())
        return self.step(model.train(), stage.loss)

    @property
    def context(self) -> Context:
        """What a stage needs of a run whose steps are made here."""
        return Context(schema()(), None, None, self.device, 1, 0, None)  # type: ignore[arg-type]

    @property
    def plain(self) -> LossFn:
        """The loss of training without a teacher."""
        return Baseline(self.context).loss

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
        from contestants import without_shared_modules
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
        return self.step(quantized, self.plain)

    def nncf(self) -> Step:
        """QAT by NNCF: quantized after training, then trained on."""
        os.environ.setdefault("NNCF_EXTENSION_LOAD_TIMEOUT", "0")  # it compiles an extension
        import nncf

        torch.manual_seed(0)
        model = BUILDERS[self.backbone](10, 3, 32)  # untraced; it traces in its own way
        model = model.to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        quantized = nncf.quantize(model, nncf.Dataset([self.images]), subset_size=1)
        return self.step(quantized.train(), self.plain)

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
