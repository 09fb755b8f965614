"""The stages of an order: each attaches a constraint or changes the loss, then trains."""

from pqd.stages.base import Stage
from pqd.stages.distill import Distill, frozen
from pqd.stages.prune import Prune
from pqd.stages.quantize import Quantize

STAGES = {stage.name: stage for stage in (Stage, Prune, Quantize, Distill)}

__all__ = ["STAGES", "Distill", "Prune", "Quantize", "Stage", "frozen"]
