"""Knowledge distillation from a dense teacher."""

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.experimental import optimization

from pqd.config import DistillConfig
from pqd.data import Batch
from pqd.stages.base import Stage


class Distill(Stage):
    """Trains towards the teacher's softened outputs and the labels."""

    name = "distill"
    version = 2

    def __init__(
        self, settings: DistillConfig, label_smoothing: float, teacher: nn.Module | Tensor
    ) -> None:
        """Takes a frozen teacher, or its logits of all training images, [N, K]."""
        super().__init__(label_smoothing)
        self.settings = settings
        self.teacher = teacher

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Computes (1 - alpha) task loss + alpha T^2 KL(teacher || student)."""
        logits = model(batch.images)
        task_loss = self.task_loss(logits, batch.labels)
        kd_loss = distillation_loss(logits, self._targets(batch), self.settings.temperature)
        alpha = self.settings.alpha
        loss = (1 - alpha) * task_loss + alpha * kd_loss
        return {"loss": loss, "task_loss": task_loss, "kd_loss": kd_loss, "logits": logits}

    def _targets(self, batch: Batch) -> Tensor:
        if isinstance(self.teacher, Tensor):
            return self.teacher[batch.rows]
        with torch.inference_mode():
            targets = self.teacher(batch.images)
        return targets.clone()  # outside, as what the loss keeps for its gradient


def frozen(teacher: fx.GraphModule) -> fx.GraphModule:
    """Returns a teacher, in evaluation mode, as it runs fastest: batch norms are folded away.

    Those behind convolutions that carry no mask or fake-quantizer, that is.
    """
    folded = optimization.fuse(teacher.eval(), no_trace=True).requires_grad_(False)
    return folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def distillation_loss(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(targets / T) || softmax(logits / T)), mean over the batch.

    Hinton et al. 2015, section 2; T^2 keeps the gradient's size independent of T.

    Args:
        logits: the student's, [B, K].
        targets: the teacher's logits, [B, K].
        temperature: T > 0.
    """
    student = F.log_softmax(logits.float() / temperature, dim=1)
    teacher = F.log_softmax(targets.float() / temperature, dim=1)
    divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2
