"""Magnitude pruning, one-shot or gradual."""

from torch import fx, nn

from pqd.config import PruneConfig
from pqd.constraints.mask import attach_masks, set_masks
from pqd.stages.base import Stage


class Prune(Stage):
    """Attaches masks and lowers them onto the smallest weights while training goes on."""

    name = "prune"

    def __init__(self, settings: PruneConfig, label_smoothing: float, steps: int) -> None:
        """Plans the mask updates for a stage of `steps` training steps."""
        super().__init__(label_smoothing)
        self.settings = settings
        self.updates = sparsity_schedule(settings, steps)

    def attach(self, model: fx.GraphModule) -> None:
        """Puts a mask on every prunable weight."""
        attach_masks(prunable_layers(model, self.settings))

    def before_step(self, model: fx.GraphModule, step: int) -> None:
        """Updates the masks at the steps the schedule names."""
        if step in self.updates:
            set_masks(model, self.updates[step], self.settings.scope)


def sparsity_schedule(settings: PruneConfig, steps: int) -> dict[int, float]:
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


def prunable_layers(model: fx.GraphModule, settings: PruneConfig) -> list[nn.Conv2d | nn.Linear]:
    """Returns the convolutions and linear layers to prune, in the order they are called.

    The first convolution and the classifier (the last layer called) can be left out.
    """
    modules = dict(model.named_modules())
    called = (modules[str(n.target)] for n in model.graph.nodes if n.op == "call_module")
    layers = list(dict.fromkeys(m for m in called if isinstance(m, nn.Conv2d | nn.Linear)))
    start = 1 if settings.skip_first else 0
    return layers[start : len(layers) - 1 if settings.skip_last else None]
