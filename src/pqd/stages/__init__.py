"""The stages of an order: each attaches a constraint or changes the loss, then trains."""

from pqd.registry import load_all
from pqd.stages.base import Context, Stage
from pqd.stages.registry import NO_STAGES, STAGES, spell, spelled

load_all(__name__)

__all__ = ["NO_STAGES", "STAGES", "Context", "Stage", "spell", "spelled"]
