"""Distillation from a stronger teacher: Huang et al. 2022, arXiv 2205.10536."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from pqd.options import option
from pqd.stages.losses.base import LOSSES, Loss

_TINY = 1e-8  # of the authors' code; for vectors without variation


@dataclass
class DistSettings:
    """What each part weighs; the defaults are the paper's."""

    beta: float = option(2.0, low=0)  # of the relation between the classes of an image
    gamma: float = option(2.0, low=0)  # of the relation between the images of a batch


@LOSSES.register
class Dist(Loss):
    """T^2 (beta inter + gamma intra), with d(u, v) = 1 - Pearson's correlation of u and v.

    Of the probabilities Y = softmax(x / T), [B, K], inter is the mean of d over the rows of
    student and teacher, intra over the columns (eqs. 6 to 9 of the paper; T^2 as in the authors'
    code). It asks for the teacher's order of preferences rather than its very probabilities.
    """

    name = "dist"
    settings = DistSettings

    def __call__(self, logits: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
        """See `Loss`."""
        student = F.softmax(logits.float() / self.temperature, dim=1)
        teacher = F.softmax(targets.float() / self.temperature, dim=1)
        inter, intra = (_distance(student, teacher, dim) for dim in (1, 0))
        return (self.options.beta * inter + self.options.gamma * intra) * self.temperature**2


def _distance(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    """Returns the mean of 1 - Pearson's correlation along `dim` of two matrices [B, K]."""
    student, teacher = (x - x.mean(dim, keepdim=True) for x in (student, teacher))
    return 1 - F.cosine_similarity(student, teacher, dim=dim, eps=_TINY).mean()
