"""Trains and evaluates a network. Knows nothing of compression: a stage is a loss and hooks."""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pqd import checkpoints, interrupts, spinning
from pqd.config import TrainConfig
from pqd.data import Batch
from pqd.devices import (
    Precision,
    channels_last,
    keep_freed_memory,
    resolve_compile,
    resolve_device,
    resolve_precision,
)
from pqd.errors import UserError

log = logging.getLogger(__name__)

LossFn = Callable[[nn.Module, Batch], dict[str, Tensor]]


class Batches(Protocol):
    """Training images in epochs of equally sized batches, on the device (`pqd.data`)."""

    def __len__(self) -> int:
        """Steps per epoch."""

    def epoch(self, seed: int) -> Iterator[Batch]:
        """One pass, in an order that depends on `seed` alone."""


def _nothing(_: object) -> None:
    pass


@spinning.adapted()
def fit(
    model: nn.Module,
    batches: Batches,
    loss_fn: LossFn,
    *,
    settings: TrainConfig,
    epochs: int,
    lr: float,
    seed: int,
    lr_key: str = "lr",
    validate: Callable[[nn.Module], float] | None,
    modules: nn.Module | None = None,
    before_step: Callable[[int], None] = _nothing,
    on_epoch: Callable[[dict[str, float]], None] = _nothing,
    checkpoint: Path | None = None,
) -> list[dict[str, float]]:
    """Trains `model` in place with SGD, Nesterov momentum, warm-up and cosine decay.

    Nothing inside an epoch waits for the device: the metrics are summed there and fetched once
    per epoch. On a CPU a resumed run ends bit-identical to an uninterrupted one.

    Args:
        model: moved to the device, in channels_last; left in training or evaluation mode.
        batches: the training images, already on the device.
        loss_fn: maps (model, batch) to named scalars, of which "loss" is differentiated, and
            "logits" [B, K]. It is compiled together with the network.
        settings: optimizer, device, precision and compilation.
        epochs: at least 1.
        lr: the highest learning rate, reached at the end of the warm-up.
        lr_key: what the user calls `lr`, for messages.
        seed: of everything random (order, augmentation, dropout), together with the epoch.
        validate: returns an accuracy in %; called after each epoch.
        modules: further ones that the loss trains, besides the network.
        before_step: called before each step with its index, counted from the first epoch's first
            step; masks, calibration and freezing happen there. The model is put into training
            mode once per epoch, before its first call. A resumed run starts with a later index.
        on_epoch: called with an epoch's metrics and `eta_s`, the time left in seconds.
        checkpoint: written after each epoch, atomically; training resumes from it where it
            exists. The caller deletes it.

    Returns:
        One dict per epoch: epoch (from 1), the parts of the loss, train_accuracy and
        validation_accuracy in %, lr (of the epoch's last step), images_per_s (of training
        alone), seconds (validation included).

    Raises:
        UserError: the loss is not finite any more (the checkpoint is then the last finite
            epoch's), or the checkpoint cannot be written.
    """
    device = resolve_device(settings.device)
    channels_last(model.to(device=device))
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # every batch has the same shape
    else:
        keep_freed_memory()
    trained = nn.ModuleList([model])
    if modules is not None:
        trained.append(modules.to(device))
    optimizer = make_optimizer(trained, settings)
    steps = epochs * len(batches)
    run = {"epochs": epochs, "steps": steps, "lr": lr, "seed": seed}
    history = checkpoints.resume(checkpoint, run, trained, optimizer, device) if checkpoint else []
    precision = resolve_precision(settings.precision, device)
    compiled = resolve_compile(settings.compile, device, precision, steps)
    train_step = make_train_step(model, loss_fn, device, precision, compiled)

    for epoch in range(len(history), epochs):
        started = time.perf_counter()
        epoch_seed = _epoch_seed(seed, epoch)
        torch.manual_seed(epoch_seed)
        trained.train()
        names: list[str] = []
        sums: Tensor | float = 0.0
        seen, rate, aside = 0, lr, 0.0
        for step, batch in enumerate(batches.epoch(epoch_seed), epoch * len(batches)):
            interrupts.check()
            begun = time.perf_counter()
            before_step(step)  # may calibrate, or measure latencies: not what an epoch is made of
            aside += time.perf_counter() - begun
            rate = learning_rate(step, steps, lr, settings.warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
            parts = train_step(batch)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            names = list(parts)
            values = torch.stack([part.detach().float() for part in parts.values()])
            sums = sums + values.double() * len(batch.labels)
            seen += len(batch.labels)
        means = (torch.as_tensor(sums) / seen).tolist()  # waits for the device
        fitted = time.perf_counter()
        metrics: dict[str, float] = {"epoch": epoch + 1, **dict(zip(names, means, strict=True))}
        if not math.isfinite(metrics["loss"]):
            raise UserError(
                f"the loss became {metrics['loss']} in epoch {epoch + 1} of {epochs}, at learning "
                f"rate {rate:.3g}; try {lr_key}={lr / 4:g} rather than {lr:g}"
            )
        if validate is not None:
            metrics["validation_accuracy"] = validate(model)
        metrics["lr"] = rate
        metrics["images_per_s"] = seen / (fitted - started - aside)
        metrics["seconds"] = time.perf_counter() - started
        history.append(metrics)
        if checkpoint:
            checkpoints.save(checkpoint, run, trained, optimizer, history)
        on_epoch(metrics | {"eta_s": (epochs - epoch - 1) * (metrics["seconds"] - aside)})
    return history


def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Top-1 accuracy in % of `model` in evaluation mode (it stays so) and float32.

    Args:
        model: maps images [B, C, H, W] to logits [B, K].
        batches: images [B, C, H, W] and labels [B] on the model's device.
    """
    model.eval()
    correct: Tensor | int = 0
    total = 0
    with torch.inference_mode():
        for images, labels in batches:
            correct = correct + (model(images).argmax(1) == labels).sum()
            total += len(labels)
    return 100 * int(correct) / total


def predict(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """The predicted class of every image, int64 [N] on the CPU; modes as in `evaluate`."""
    model.eval()
    with torch.inference_mode():
        return torch.cat([model(images).argmax(1) for images, _ in batches]).cpu()


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Linear warm-up, then cosine decay to 0 (Loshchilov and Hutter 2017, arXiv 1608.03983).

    Args:
        step: from 0 to `steps` - 1.
        steps: of the whole stage.
        peak: the learning rate at the end of the warm-up.
        warmup: share of the steps, in [0, 1).
    """
    rising = round(warmup * steps)
    if step < rising:
        return peak * ((step + 1) / rising)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))


def make_optimizer(model: nn.Module, settings: TrainConfig) -> torch.optim.SGD:
    """SGD in which weight decay acts on weights (ndim >= 2) alone: not on batch norm and biases.

    A module exempts parameters of its own by naming them in a method `no_weight_decay`, as timm's
    networks do. The learning rate is 0 until it is set.
    """
    exempt = {
        id(module.get_parameter(name))
        for module in model.modules()
        if hasattr(module, "no_weight_decay")
        for name in module.no_weight_decay()  # type: ignore[operator]
    }
    parameters = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim >= 2 and id(p) not in exempt]
    others = [p for p in parameters if p.ndim < 2 or id(p) in exempt]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(
        groups,
        lr=0.0,
        momentum=settings.momentum,
        nesterov=settings.momentum > 0,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def make_train_step(
    model: nn.Module, loss_fn: LossFn, device: torch.device, precision: Precision, compiled: bool
) -> Callable[[Batch], dict[str, Tensor]]:
    """Builds the forward and backward pass of one batch.

    Returns:
        A function of a batch that adds to the gradients and returns the named parts of the loss
        and `train_accuracy`, scalars on the device.
    """

    def forward(batch: Batch) -> dict[str, Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            parts = dict(loss_fn(model, batch))
        hits = parts.pop("logits").argmax(1) == batch.labels
        return parts | {"train_accuracy": 100 * hits.float().mean()}

    run = forward
    if compiled:
        torch.compiler.reset()  # drop the previous stage's code, which counts towards a limit
        run = torch.compile(forward, dynamic=False)

    def step(batch: Batch) -> dict[str, Tensor]:
        nonlocal run
        try:
            parts = run(batch)
            parts["loss"].backward()
        except Exception as error:
            if run is forward or isinstance(error, torch.OutOfMemoryError):
                raise
            # Either half may have failed to compile; if the fault is not the compiler's, the
            # eager step raises it again.
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            log.warning("torch.compile failed, training goes on in eager mode: %s", reason)
            run = forward
            model.zero_grad(set_to_none=True)
            parts = run(batch)
            parts["loss"].backward()
        return parts

    return step


def _epoch_seed(seed: int, epoch: int) -> int:
    digest = hashlib.sha256(f"{seed}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
