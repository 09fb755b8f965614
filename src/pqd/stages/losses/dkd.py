"""Decoupled knowledge distillation: Zhao et al. 2022, arXiv 2203.08679."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pqd.options import option
from pqd.stages.losses.base import LOSSES, Loss

_NEVER = -1e9  # the logarithm of a probability that is 0 in float32


@dataclass
class DkdSettings:
    """What each part weighs; the defaults are the paper's for CIFAR-100."""

    alpha: float = option(1.0, low=0)  # of the target class against all others
    beta: float = option(8.0, low=0)  # of the other classes among themselves


@LOSSES.register
class Dkd(Loss):
    """T^2 (alpha TCKD + beta NCKD), mean over the batch.

    Of p = softmax(x / T) and the image's label t, TCKD = KL of [p_t, 1 - p_t], and NCKD = KL of
    the p_i / (1 - p_t) over i != t, each of the teacher's to the student's (eq. 7 of the paper).
    Hinton's loss is TCKD + (1 - p_t) NCKD, which silences NCKD where the teacher is sure.
    """

    name = "dkd"
    settings = DkdSettings

    def __call__(self, logits: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
        """See `Loss`."""
        target = labels[:, None] == torch.arange(logits.shape[1], device=labels.device)
        student, others_of_student = self._decoupled(logits, target)
        teacher, others_of_teacher = self._decoupled(targets, target)
        tckd = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        nckd = F.kl_div(
            others_of_student, others_of_teacher, reduction="batchmean", log_target=True
        )
        return (self.options.alpha * tckd + self.options.beta * nckd) * self.temperature**2

    def _decoupled(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Returns log [p_t, 1 - p_t], [B, 2], and the log p of the others by themselves, [B, K]."""
        log_p = F.log_softmax(logits.float() / self.temperature, dim=1)
        hit = log_p.masked_fill(~target, _NEVER).logsumexp(1)
        others = log_p.masked_fill(target, _NEVER)
        missed = others.logsumexp(1)
        return torch.stack([hit, missed], 1), others - missed[:, None]
