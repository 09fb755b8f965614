"""Magnitude pruning, one-shot or gradual."""

from dataclasses import dataclass

from torch import fx, nn

from pqd.config import StageSettings
from pqd.constraints import attach
from pqd.constraints.mask import Masks, set_masks
from pqd.options import option
from pqd.stages.base import Context, Stage
from pqd.stages.registry import STAGES


@dataclass
class PruneSettings(StageSettings):
    """Magnitude pruning. Cubic schedule: Zhu and Gupta 2017, arXiv 1710.01878, eq. 1."""

    epochs: int = option(20, low=1)
    lr: float = option(0.05, above=0)
    # global: one threshold; layer: the same sparsity in every layer
    scope: str = option("global", choices=("global", "layer"))
    # share of zeros among the pruned weights
    sparsity: float = option(0.8, low=0, below=1, axis="sparsity", tag="s", tag_default=True)
    schedule: str = option("cubic", choices=("cubic", "oneshot"))
    ramp: float = option(0.5, low=0, high=1)  # share of the steps over which the schedule rises
    updates: int = option(20, low=1)  # mask updates during the ramp
    skip_first: bool = False  # leave out the first convolution
    skip_last: bool = False  # leave out the classifier


@STAGES.register
class Prune(Stage):
    """Attaches masks and lowers them onto the smallest weights while training goes on."""

    name = "prune"
    letter = "p"
    settings = PruneSettings
    colour = "#4c78a8"

    def __init__(self, context: Context) -> None:
        """Plans the mask updates."""
        super().__init__(context)
        self.updates = sparsity_schedule(self.options, context.steps)

    def attach(self, model: fx.GraphModule) -> None:
        """Puts a mask on every prunable weight."""
        attach(model, Masks(prunable_layers(model, self.options)))

    def before_step(self, model: fx.GraphModule, step: int) -> None:
        """Updates the masks at the steps the schedule names."""
        if step in self.updates:
            set_masks(model, self.updates[step], self.options.scope)


def sparsity_schedule(settings: PruneSettings, steps: int) -> dict[int, float]:
    """Returns the sparsity to reach at each step where the masks change.

    Zhu and Gupta 2017, eq. 1, from sparsity 0: s_t = s (1 - (1 - t/n)^3), at `updates` evenly
    spaced steps t of the first n = `ramp` x `steps`; the last one reaches s exactly. One-shot is
    a single update before the first step.
    """
    ramp = int(settings.ramp * (steps - 1)) if settings.schedule == "cubic" else 0
    updates = min(settings.updates, ramp)
    if updates == 0:
        return {0: settings.sparsity}
    return {
        round(i / updates * ramp): settings.sparsity * (1 - (1 - i / updates) ** 3)
        for i in range(1, updates + 1)
    }


def prunable_layers(model: fx.GraphModule, settings: PruneSettings) -> list[str]:
    """Returns the names of the convolutions and linear layers to prune, in the order of calls.

    The first convolution and the classifier (the last layer called) can be left out.
    """
    modules = dict(model.named_modules())
    called = dict.fromkeys(str(n.target) for n in model.graph.nodes if n.op == "call_module")
    layers = [name for name in called if isinstance(modules[name], nn.Conv2d | nn.Linear)]
    start = 1 if settings.skip_first else 0
    return layers[start : len(layers) - 1 if settings.skip_last else None]
