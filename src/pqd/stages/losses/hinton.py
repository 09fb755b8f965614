"""The distillation loss of Hinton et al. 2015, arXiv 1503.02531."""

import torch.nn.functional as F
from torch import Tensor

from pqd.stages.losses.base import LOSSES, Loss


@LOSSES.register
class Hinton(Loss):
    """T^2 KL(softmax(targets / T) || softmax(logits / T)), mean over the batch.

    Section 2 of the paper; T^2 keeps the gradient's size independent of T.
    """

    name = "hinton"

    def __call__(self, logits: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
        """See `Loss`."""
        student = F.log_softmax(logits.float() / self.temperature, dim=1)
        teacher = F.log_softmax(targets.float() / self.temperature, dim=1)
        divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        return divergence * self.temperature**2
