"""The dense network that every order starts from: trained, or loaded from a checkpoint."""

from dataclasses import dataclass
from pathlib import Path

from torch import fx

from pqd.config import BASELINE, Config, StageSettings
from pqd.errors import UserError
from pqd.options import option
from pqd.stages.base import Context, Stage
from pqd.stages.outside import examine
from pqd.stages.registry import STAGES
from pqd.weights import load_checkpoint


@dataclass
class BaselineSettings(StageSettings):
    """Plain training: no constraint, cross-entropy."""

    epochs: int = option(200, low=1)
    lr: float = option(0.1, above=0)
    # weights to start from: .safetensors, or a file of torch.save; then nothing is trained
    checkpoint: str | None = option(None, digest=True)
    new_head: bool = False  # replaces their classifier; then the whole network is trained


@STAGES.register
class Baseline(Stage):
    """Trains the dense network, or loads its weights."""

    name = BASELINE
    settings = BaselineSettings

    def __init__(self, context: Context) -> None:
        """Trains only where something is left to be trained."""
        super().__init__(context)
        self.trains = self.options.checkpoint is None or self.options.new_head

    @classmethod
    def check(cls, config: Config) -> None:
        """Sees to it that a new classifier is asked for only where another one would be loaded.

        Raises:
            UserError: it is asked for without a checkpoint.
        """
        settings = config.of(cls.name)
        assert isinstance(settings, BaselineSettings)
        if settings.new_head and settings.checkpoint is None:
            raise UserError("baseline.new_head=true needs baseline.checkpoint=FILE to start from")

    def attach(self, model: fx.GraphModule) -> None:
        """Loads the checkpoint, if there is one.

        Raises:
            UserError: see `load_checkpoint`.
        """
        if self.options.checkpoint is not None:
            path = Path(self.options.checkpoint)
            load_checkpoint(model, path, new_head=self.options.new_head)

    def start(self, model: fx.GraphModule) -> None:
        """Shows what the loaded network is worth, before anything builds on it."""
        if not self.trains:
            examine(self.context, model, f"baseline.checkpoint={self.options.checkpoint}")
