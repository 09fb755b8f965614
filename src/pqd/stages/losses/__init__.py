"""The losses of distillation, one file each: functions of what student and teacher return."""

from pqd.registry import load_all
from pqd.stages.losses.base import LOSSES, Loss

load_all(__name__)

__all__ = ["LOSSES", "Loss"]
