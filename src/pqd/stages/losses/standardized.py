"""Distillation of standardized logits: Sun et al. 2024, arXiv 2403.01427."""

from torch import Tensor

from pqd.stages.losses.base import LOSSES
from pqd.stages.losses.hinton import Hinton

_TINY = 1e-7  # of the authors' code; for logits that are all alike


@LOSSES.register
class Standardized(Hinton):
    """T^2 KL(softmax(Z(targets) / T) || softmax(Z(logits) / T)), mean over the batch.

    Z(x) = (x - mean(x)) / deviation(x), over the K classes of one image (algorithm 1 of the
    paper). The student learns how classes relate, and need not match the size of the teacher's
    logits, which a small network cannot.
    """

    name = "standardized"

    def __call__(self, logits: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
        """See `Loss`."""
        return super().__call__(_standardized(logits), _standardized(targets), labels)


def _standardized(logits: Tensor) -> Tensor:
    centred = logits.float() - logits.float().mean(1, keepdim=True)
    return centred / (centred.std(1, correction=0, keepdim=True) + _TINY)
