"""Pruning: of single weights, of whole channels, or of both; one-shot or gradual."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, fx, nn

from pqd.config import Config, StageSettings
from pqd.constraints import attach
from pqd.constraints.mask import Masks, set_masks
from pqd.data import Batch
from pqd.errors import UserError
from pqd.options import option
from pqd.pruning.channels import TIMES, ChannelPruning, budgets
from pqd.stages.base import Context, Digest, Stage
from pqd.stages.registry import STAGES

log = logging.getLogger(__name__)

WEIGHTS, CHANNELS, BOTH = "weights", "channels", "channels_and_weights"


@dataclass
class PruneSettings(StageSettings):
    """What is pruned, and when. Cubic schedule: Zhu and Gupta 2017, arXiv 1710.01878, eq. 1."""

    epochs: int = option(20, low=1)
    lr: float = option(0.05, above=0)
    what: str = option(WEIGHTS, choices=(WEIGHTS, CHANNELS, BOTH))
    schedule: str = option("cubic", choices=("cubic", "oneshot"))
    ramp: float = option(0.5, low=0, high=1)  # share of the steps over which the schedule rises
    updates: int = option(20, low=1)  # updates during the ramp
    # Of single weights, by magnitude.
    # global: one threshold; layer: the same sparsity in every layer
    scope: str = option("global", choices=("global", "layer"))
    # share of the prunable weights that become 0
    sparsity: float = option(0.8, low=0, below=1, axis="sparsity", tag="s", tag_default=True)
    skip_first: bool = False  # leave out the first convolution
    skip_last: bool = False  # leave out the classifier
    # Of channels: exactly one budget. Shares are of the dense network's; times are of the INT8
    # network in the first runtime, thread count and batch size of `runtime`.
    macs: float | None = option(None, above=0, high=1, axis="MACs", tag="macs")
    parameters: float | None = option(None, above=0, high=1, axis="parameters", tag="params")
    speedup: float | None = option(None, low=1, axis="speed-up", tag="x")  # over the dense one
    latency_ms: float | None = option(None, above=0, axis="latency in ms", tag="ms")
    # taylor: first-order change of the loss, over calibration batches before each update
    importance: str = option("magnitude", choices=("magnitude", "taylor"))
    calibration_batches: int = option(8, low=1)
    # a multiple of this many channels is kept: 16 is faster on wide networks (benchmarks/README.md)
    round_to: int = option(8, low=1)
    min_channels: int = option(8, low=1)  # of a layer, at least
    regularize: float = option(0.0, low=0)  # group lasso of the channels that have to go


@STAGES.register
class Prune(Stage):
    """Removes the least important channels, then weights, while training goes on."""

    name = "prune"
    letter = "p"
    settings = PruneSettings
    colour = "#4c78a8"

    def __init__(self, context: Context) -> None:
        """Plans the updates; of channels in the first half of the ramp where weights go, too."""
        super().__init__(context)
        what, steps = self.options.what, context.steps
        middle = 0.5 if what == BOTH else 0.0
        self.channels: ChannelPruning | None = None
        self.channel_updates = cubic(self.options, steps, end=middle or 1.0)
        self.updates = sparsity_schedule(self.options, steps, begin=middle)

    @classmethod
    def check(cls, config: Config) -> None:
        """Sees to it that there is one budget where channels are removed, and none elsewhere.

        Raises:
            UserError: there is not, or it is one in time and `runtime` measures nothing.
        """
        settings = config.of(cls.name)
        assert isinstance(settings, PruneSettings)
        given = [f"prune.{name}={value}" for name, value in budgets(settings).items()]
        names = ", ".join(f"prune.{name}" for name in budgets(settings, every=True))
        if settings.what == WEIGHTS and given:
            raise UserError(f"{given[0]} removes channels; give it to prune=channels")
        if settings.what != WEIGHTS and not given:
            raise UserError(f"prune.what={settings.what} needs a budget: one of {names}")
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)}: a network has one budget; give one of {names}")
        if settings.what == CHANNELS and settings.sparsity:
            raise UserError(
                f"prune.sparsity={settings.sparsity} removes single weights, prune=channels keeps "
                "those of the channels that stay; prune=channels_and_weights does both"
            )
        if set(budgets(settings)) & set(TIMES):
            config.runtime.first(given[0])

    @classmethod
    def identity(
        cls, config: Config, keys: Mapping[str, str], digest: Digest | None
    ) -> dict[str, Any]:
        """Counts where time is measured, if the budget is one; not on which machine.

        The shape that one machine has chosen is part of the stage, wherever that is used.
        """
        found = super().identity(config, keys, digest)
        if not set(budgets(config.of(cls.name))) & set(TIMES):
            return found
        names = ("names", "threads", "batch_sizes")
        first = config.runtime.first("a budget in time")
        found |= {f"runtime.{name}": value for name, value in zip(names, first, strict=True)}
        return found | {"scheme": asdict(config.target.scheme())}

    def attach(self, model: fx.GraphModule) -> None:
        """Puts a mask on every prunable weight, and finds the channels that can be removed.

        Raises:
            UserError: no channel can be removed, or no shape reaches the budget.
        """
        if self.options.what != CHANNELS:
            attach(model, Masks(prunable_layers(model, self.options)))
        if self.options.what != WEIGHTS:
            self.channels = ChannelPruning(model, self.context, self.options, self.task_loss)
            self.modules["channels"] = self.channels.ramp

    def start(self, model: fx.GraphModule) -> None:
        """Names the operations that keep their channels."""
        if self.channels is not None and self.channels.unsupported:
            names = ", ".join(self.channels.unsupported)
            log.warning("prune: not understood, so channels that reach it all stay: %s", names)

    def before_step(self, model: fx.GraphModule, step: int) -> None:
        """Updates channels and masks at the steps the schedule names."""
        left = None
        if self.channels is not None:
            self.channels.step(model, self.channel_updates.get(step))
            left = self.channels.left(model) if step in self.updates else None
        if step in self.updates and self.options.what != CHANNELS:
            set_masks(model, self.updates[step], self.options.scope, left)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Computes the cross-entropy, and the group lasso of channels that have to go."""
        parts = super().loss(model, batch)
        if self.channels is None or not self.options.regularize:
            return parts
        lasso = self.channels.penalty(model)
        loss = parts["loss"] + self.options.regularize * lasso
        return parts | {"loss": loss, "task_loss": parts["loss"], "group_lasso": lasso}

    def finish(self, model: fx.GraphModule) -> dict[str, Any]:
        """Takes the channels away that are removed; returns the shape that is left."""
        return {} if self.channels is None else {"shape": self.channels.finish(model)}


def cubic(
    settings: PruneSettings, steps: int, begin: float = 0.0, end: float = 1.0
) -> dict[int, float]:
    """Returns the share of what has to go that is gone, at each step where something goes.

    Zhu and Gupta 2017, eq. 1: 1 - (1 - t/n)^3, at `updates` evenly spaced steps t of the n steps
    of the ramp; the last one reaches 1 exactly. One-shot is a single update before the first step.

    Args:
        settings: of the stage.
        steps: of the whole stage; the ramp are the first `ramp` x `steps`.
        begin: where in the ramp the schedule begins, as a share of it.
        end: where it ends.
    """
    ramp = int(settings.ramp * (steps - 1)) if settings.schedule == "cubic" else 0
    first, last = round(begin * ramp), round(end * ramp)
    updates = min(settings.updates, last - first)
    if updates == 0:
        return {last: 1.0}
    return {
        first + round(i / updates * (last - first)): 1 - (1 - i / updates) ** 3
        for i in range(1, updates + 1)
    }


def sparsity_schedule(settings: PruneSettings, steps: int, begin: float = 0.0) -> dict[int, float]:
    """Returns the sparsity to reach at each step where the masks change; see `cubic`."""
    shares = cubic(settings, steps, begin)
    return {step: settings.sparsity * share for step, share in shares.items()}


def prunable_layers(model: fx.GraphModule, settings: PruneSettings) -> list[str]:
    """Returns the names of the convolutions and linear layers to prune, in the order of calls.

    The first convolution and the classifier (the last layer called) can be left out.
    """
    modules = dict(model.named_modules())
    called = dict.fromkeys(str(n.target) for n in model.graph.nodes if n.op == "call_module")
    layers = [name for name in called if isinstance(modules[name], nn.Conv2d | nn.Linear)]
    start = 1 if settings.skip_first else 0
    return layers[start : len(layers) - 1 if settings.skip_last else None]
