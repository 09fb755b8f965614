"""Knowledge distillation from a dense teacher."""

from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental import optimization

from pqd import data
from pqd.config import BASELINE, Config, StageSettings
from pqd.data import Batch
from pqd.errors import UserError
from pqd.networks import load_network
from pqd.options import option
from pqd.stages.base import Context, Digest, Stage
from pqd.stages.losses import LOSSES
from pqd.stages.registry import STAGES


@dataclass
class DistillSettings(StageSettings):
    """(1 - alpha) CE + alpha loss(student, teacher)."""

    epochs: int = option(40, low=1)
    lr: float = option(0.05, above=0)
    loss: str = option("hinton", choices=lambda: LOSSES)  # a file of pqd.stages.losses
    temperature: float = option(4.0, above=0)  # divides the logits of both
    alpha: float = option(0.9, low=0, high=1)  # the teacher's share of the loss
    # folder of a network saved by pqd; None is the run's own dense network
    teacher: str | None = option(None, digest=True)
    cache_logits: bool = False  # run the teacher once per image; without augmentation only


@STAGES.register
class Distill(Stage):
    """Trains towards the teacher's outputs and the labels."""

    name = "distill"
    letter = "d"
    settings = DistillSettings
    version = 2
    colour = "#e0a33b"

    def __init__(self, context: Context) -> None:
        """Prepares the loss; the teacher may not be trained yet."""
        super().__init__(context)
        self.distance = LOSSES[self.options.loss](self.options)
        self.teacher: fx.GraphModule | None = None
        self.known: Tensor | None = None

    @classmethod
    def settings_class(cls) -> type[StageSettings]:
        """Returns the dataclass of its settings, with those of every loss that has any."""
        own = [
            (loss.name, loss.settings, field(default_factory=loss.settings))
            for loss in LOSSES.values()
            if loss.settings
        ]
        return make_dataclass("DistillSettings", own, bases=(cls.settings,))

    @classmethod
    def check(cls, config: Config) -> None:
        """Sees to it that logits are known beforehand only where images do not change.

        Raises:
            UserError: they do.
        """
        settings = config.of(cls.name)
        assert isinstance(settings, DistillSettings)
        if settings.cache_logits and config.dataset.augment:
            raise UserError(
                "distill.cache_logits=true needs images that are the same in every epoch: "
                "dataset.augment.crop_padding=0, flip=false and cutout=0"
            )

    @classmethod
    def identity(
        cls, config: Config, keys: Mapping[str, str], digest: Digest | None
    ) -> dict[str, Any]:
        """Counts the teacher, and of the settings of losses those of the one in use."""
        settings = config.of(cls.name)
        assert isinstance(settings, DistillSettings)
        unused = tuple(f"{cls.name}.{loss}." for loss in LOSSES if loss != settings.loss)
        found = super().identity(config, keys, digest)
        found = {key: value for key, value in found.items() if not key.startswith(unused)}
        return found if settings.teacher else found | {f"{cls.name}.teacher": keys[BASELINE]}

    def attach(self, model: fx.GraphModule) -> None:
        """Loads the teacher, if it is another network than the run's own.

        Raises:
            UserError: it is no network of pqd, or takes or returns something else.
        """
        if self.options.teacher:
            self.teacher = self._load(Path(self.options.teacher))

    def start(self, model: fx.GraphModule) -> None:
        """Loads the run's dense network as the teacher, and asks it where that is done once."""
        if self.teacher is None:
            assert self.context.baseline is not None
            self.teacher = self._load(self.context.baseline)
        if self.options.cache_logits:
            self.known = self._logits()

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Computes (1 - alpha) task loss + alpha distance to the teacher."""
        logits = model(batch.images)
        task_loss = self.task_loss(logits, batch.labels)
        kd_loss = self.distance(logits, self._targets(batch), batch.labels)
        alpha = self.options.alpha
        loss = (1 - alpha) * task_loss + alpha * kd_loss
        return {"loss": loss, "task_loss": task_loss, "kd_loss": kd_loss, "logits": logits}

    def _targets(self, batch: Batch) -> Tensor:
        if self.known is not None:
            return self.known[batch.rows]
        assert self.teacher is not None
        with torch.inference_mode():
            targets = self.teacher(batch.images)
        return targets.clone()  # outside, as what the loss keeps for its gradient

    def _load(self, folder: Path) -> fx.GraphModule:
        context = self.context
        teacher = frozen(load_network(folder)).to(context.device)
        images = next(context.batches.epoch(0)).images
        classes, wanted = teacher(images[:1]).shape[1], len(context.dataset.classes)
        if classes != wanted:
            raise UserError(
                f"distill.teacher={folder} has {classes} classes, "
                f"dataset {context.dataset.name} has {wanted}"
            )
        return teacher

    @torch.no_grad()
    def _logits(self) -> Tensor:
        """Returns the teacher's logits [N, K] of the train split, which is not augmented."""
        assert self.teacher is not None
        context, size = self.context, self.context.config.train.eval_batch_size
        split = context.dataset.train
        batches = data.eval_batches(split, context.dataset, size, context.device)
        return torch.cat([self.teacher(images) for images, _ in batches])


def frozen(teacher: fx.GraphModule) -> fx.GraphModule:
    """Returns a teacher, in evaluation mode, as it runs fastest: batch norms are folded away.

    Those behind convolutions that carry no mask or fake-quantizer, that is.
    """
    folded = optimization.fuse(teacher.eval(), no_trace=True).requires_grad_(False)
    return folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
