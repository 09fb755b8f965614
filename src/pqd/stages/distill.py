"""Knowledge distillation from a dense teacher."""

from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from pqd import data
from pqd.config import BASELINE, Config, StageSettings
from pqd.data import Batch
from pqd.errors import UserError
from pqd.options import option
from pqd.stages import teachers
from pqd.stages.base import Context, Digest, Stage
from pqd.stages.losses import LOSSES
from pqd.stages.outside import accuracy, examine
from pqd.stages.registry import STAGES
from pqd.stages.teachers import ForeignTeacher, Teacher


@dataclass
class DistillSettings(StageSettings):
    """(1 - alpha) CE + alpha loss(student, teacher)."""

    epochs: int = option(40, low=1)
    lr: float = option(0.05, above=0)
    loss: str = option("hinton", choices=lambda: LOSSES)  # a file of pqd.stages.losses
    temperature: float = option(4.0, above=0)  # divides the logits of both
    alpha: float = option(0.9, low=0, high=1)  # the teacher's share of the loss
    # the folder of a network saved by pqd, or backbone=NAME and checkpoint=FILE; nothing of that
    # is the run's own dense network
    teacher: Any = option(ForeignTeacher, digest=True)
    teachers: list[Any] = option([])  # several instead, whose logits are averaged
    cache_logits: bool = False  # run the teacher once per image; without augmentation only

    def __post_init__(self) -> None:
        """Reads what is no path."""
        if isinstance(self.teacher, dict):
            self.teacher = teachers.foreign(teachers.KEY, self.teacher)


@STAGES.register
class Distill(Stage):
    """Trains towards the teacher's outputs and the labels."""

    name = "distill"
    letter = "d"
    settings = DistillSettings
    version = 3
    colour = "#e0a33b"

    def __init__(self, context: Context) -> None:
        """Prepares the loss; the teacher may not be trained yet."""
        super().__init__(context)
        self.distance = LOSSES[self.options.loss](self.options)
        # from elsewhere; without any the run's dense network teaches
        self.specs = teachers.parse(self.options.teacher, self.options.teachers)
        self.teacher: nn.Module | None = None
        self.teacher_accuracy: float | None = None
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
            UserError: they do; or the teacher is none.
        """
        settings = config.of(cls.name)
        assert isinstance(settings, DistillSettings)
        teachers.parse(settings.teacher, settings.teachers)
        if settings.cache_logits and config.dataset.augment:
            raise UserError(
                "distill.cache_logits=true needs images that are the same in every epoch: "
                "dataset.augment.crop_padding=0, flip=false, cutout=0, mixup=0 and cutmix=0"
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
        if settings.teacher in (None, ForeignTeacher()) and not settings.teachers:
            others = {k: v for k, v in found.items() if not k.startswith(f"{cls.name}.teacher")}
            return others | {f"{cls.name}.teacher": keys[BASELINE]}
        if isinstance(settings.teacher, str):
            found[teachers.KEY] = teachers.content(teachers.KEY, settings.teacher, digest)
        named = teachers.named(settings.teachers)
        several = [teachers.content(key, given, digest) for key, given in named.items()]
        return found | {f"{cls.name}.teachers": several}

    def attach(self, model: fx.GraphModule) -> None:
        """Loads the teachers, if they are other networks than the run's own.

        Raises:
            UserError: see `pqd.stages.teachers.load`.
        """
        if self.specs:
            images = self.context.dataset
            self._ask({teachers.name_of(*s): teachers.load(*s, images) for s in self.specs.items()})

    def start(self, model: fx.GraphModule) -> None:
        """Loads the run's dense network as the teacher, and asks it where that is done once."""
        if self.teacher is None:
            name, folder = "the dense network, the teacher", str(self.context.baseline)
            self._ask({name: teachers.load(teachers.KEY, folder, self.context.dataset)})
        if self.options.cache_logits:
            self.known = self._logits()

    def finish(self, model: fx.GraphModule) -> dict[str, Any]:
        """Returns the accuracy of the teacher, in %; of one from elsewhere on the test split, too.

        Its validation images may be some that it was trained on.
        """
        found = {"teacher_accuracy": self.teacher_accuracy}
        if self.specs:
            assert self.teacher is not None
            test = self.context.dataset.test
            found["teacher_test_accuracy"] = accuracy(self.context, self.teacher, test)
        return found

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Computes (1 - alpha) task loss + alpha distance to the teacher."""
        logits = model(batch.images)
        targets = self._targets(batch)
        task_loss = self.task_loss(logits, batch)
        kd_loss = batch.weighed(lambda labels: self.distance(logits, targets, labels))
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

    def _ask(self, found: Mapping[str, Teacher]) -> None:
        """Takes the teachers, by their names, and shows what they are worth."""
        accuracies = [examine(self.context, teacher, name) for name, teacher in found.items()]
        if len(found) == 1:
            [self.teacher], [self.teacher_accuracy] = found.values(), accuracies
        else:
            self.teacher = teachers.Average(list(found.values()))
            name = f"{teachers.KEY}s, the mean of {len(found)}"
            self.teacher_accuracy = examine(self.context, self.teacher, name)

    @torch.no_grad()
    def _logits(self) -> Tensor:
        """Returns the teacher's logits [N, K] of the train split, which is not augmented."""
        assert self.teacher is not None
        context, size = self.context, self.context.config.train.eval_batch_size
        split = context.dataset.train
        batches = data.eval_batches(split, context.dataset, size, context.device)
        return torch.cat([self.teacher(images) for images, _ in batches])
