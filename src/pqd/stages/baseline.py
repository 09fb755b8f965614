"""The dense network that every order starts from: trained, or loaded from a checkpoint."""

from dataclasses import dataclass
from pathlib import Path

from torch import fx

from pqd.config import BASELINE, StageSettings
from pqd.networks import load_weights
from pqd.options import option
from pqd.stages.base import Context, Stage
from pqd.stages.registry import STAGES


@dataclass
class BaselineSettings(StageSettings):
    """Plain training: no constraint, cross-entropy."""

    epochs: int = option(200, low=1)
    lr: float = option(0.1, above=0)
    checkpoint: str | None = option(None, digest=True)  # its state dict; nothing is trained then


@STAGES.register
class Baseline(Stage):
    """Trains the dense network, or loads its weights."""

    name = BASELINE
    settings = BaselineSettings

    def __init__(self, context: Context) -> None:
        """Trains only where there is no checkpoint."""
        super().__init__(context)
        self.trains = self.options.checkpoint is None

    def attach(self, model: fx.GraphModule) -> None:
        """Loads the checkpoint, if there is one."""
        if not self.trains:
            load_weights(model, Path(self.options.checkpoint))
