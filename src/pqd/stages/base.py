"""What all stages have in common; by itself, the baseline: no constraint, cross-entropy."""

import torch.nn.functional as F
from torch import Tensor, fx, nn

from pqd.data import Batch


class Stage:
    """One stage of an order. The baseline is this class; the others override what they change."""

    name = "baseline"
    version = 1  # raise it when a code change alters what the stage computes

    def __init__(self, label_smoothing: float) -> None:
        """Takes the label smoothing of the cross-entropy, in [0, 1)."""
        self.label_smoothing = label_smoothing

    def attach(self, model: fx.GraphModule) -> None:
        """Attaches the stage's constraint, in place."""

    def before_step(self, model: fx.GraphModule, step: int) -> None:
        """Called before training step `step`, counted from 0 over the whole stage."""

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Computes the loss of a batch.

        Args:
            model: the network, or its compiled form.
            batch: of B images.

        Returns:
            The scalar `loss`, its named parts if it has several, and `logits` [B, K].
        """
        logits = model(batch.images)
        return {"loss": self.task_loss(logits, batch.labels), "logits": logits}

    def task_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the cross-entropy of logits [B, K] and labels [B], in float32."""
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
