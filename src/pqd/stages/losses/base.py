"""What a loss of distillation is."""

from typing import Any, ClassVar

from torch import Tensor

from pqd.registry import Registry


class Loss:
    """A distance of a student's outputs to a teacher's; a subclass registers itself.

    Attributes:
        name: as in `distill.loss`.
        settings: the dataclass of its own settings, found as `distill.<name>`; None without any.
    """

    name: ClassVar[str]
    settings: ClassVar[type | None] = None

    def __init__(self, settings: Any) -> None:
        """Takes the settings of the stage, among which are its own."""
        self.temperature: float = settings.temperature
        self.options: Any = getattr(settings, self.name, None)

    def __call__(self, logits: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
        """Returns the loss, a scalar in float32.

        Args:
            logits: the student's, [B, K].
            targets: the teacher's, [B, K].
            labels: the true classes, int64 [B].
        """
        raise NotImplementedError


LOSSES: Registry[type[Loss]] = Registry()
