"""What all stages have in common: settings, a constraint or a loss, modules of their own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, device, fx, nn

from pqd import options
from pqd.config import Config, StageSettings
from pqd.data import Batch, Dataset, TrainBatches

Digest = Callable[[str, Path], str]


@dataclass(frozen=True)
class Context:
    """What a stage may use of the run it is part of."""

    config: Config
    dataset: Dataset
    batches: TrainBatches
    device: device
    epochs: int
    seed: int
    baseline: Path | None  # the folder of the dense network; None while that is trained

    @property
    def steps(self) -> int:
        """Training steps of the whole stage."""
        return self.epochs * len(self.batches)


class Stage:
    """One stage of an order; a subclass overrides what it changes, and registers itself.

    Attributes:
        name: of its settings in the configuration, e.g. `prune.epochs`.
        letter: what it is in an order's name; empty for the baseline, which every order has.
        settings: the dataclass of its settings.
        version: raise it when a code change alters what the stage computes.
        colour: of its share of the training time in reports, as #rrggbb.
        modules: its own, trained and saved with the network (a projection, say).
    """

    name: ClassVar[str]
    letter: ClassVar[str] = ""
    settings: ClassVar[type[StageSettings]] = StageSettings
    version: ClassVar[int] = 1
    colour: ClassVar[str] = "#8a8f98"

    def __init__(self, context: Context) -> None:
        """Prepares the stage for one run."""
        self.context = context
        self.options: Any = context.config.of(self.name)
        self.modules = nn.ModuleDict()
        self.trains = True  # False: attaching is all there is to do

    @classmethod
    def settings_class(cls) -> type[StageSettings]:
        """Returns the dataclass of its settings, with those of its registered parts."""
        return cls.settings

    @classmethod
    def check(cls, config: Config) -> None:
        """Checks what depends on several settings.

        Raises:
            UserError: settings do not go together.
        """

    @classmethod
    def notes(cls, config: Config) -> list[str]:
        """Returns what the user should be warned of, though the stage can run."""
        return []

    @classmethod
    def identity(
        cls, config: Config, keys: Mapping[str, str], digest: Digest | None
    ) -> dict[str, Any]:
        """Returns what the outcome of this stage depends on besides the network it starts from.

        Args:
            config: of the run.
            keys: of the stages before this one, by name, the baseline among them.
            digest: as of `pqd.options.selected`.
        """
        settings = options.selected(config.of(cls.name), f"{cls.name}.", digest=digest)
        return settings | {f"{cls.name}.epochs": config.epochs(cls.name)}

    def attach(self, model: fx.GraphModule) -> None:
        """Attaches the stage's constraint, in place; before anything is trained on trial, too.

        Raises:
            UserError: the network does not bear it, or what the stage needs is not there.
        """

    def start(self, model: fx.GraphModule) -> None:
        """Called when the network is attached to and about to be trained."""

    def before_step(self, model: fx.GraphModule, step: int) -> None:
        """Called before training step `step`, counted from 0 over the whole stage."""

    def finish(self, model: fx.GraphModule) -> dict[str, Any]:
        """Called when the network is trained, before it is saved; may change it, in place.

        Returns:
            Further figures of a `pqd.result.StageResult`.
        """
        return {}

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Computes the loss of a batch; by default the cross-entropy.

        Args:
            model: the network, or its compiled form.
            batch: of B images.

        Returns:
            The scalar `loss`, its named parts if it has several, and `logits` [B, K].
        """
        logits = model(batch.images)
        return {"loss": self.task_loss(logits, batch), "logits": logits}

    def task_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Returns the cross-entropy of logits [B, K] and a batch's labels, in float32."""
        smoothing = self.context.config.train.label_smoothing
        return batch.weighed(
            lambda labels: F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
        )
