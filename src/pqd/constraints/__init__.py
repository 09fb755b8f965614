"""What the weights and activations of a network are allowed to be, one file a constraint."""

from pqd.constraints.base import (
    CONSTRAINTS,
    Constraint,
    attach,
    constraints,
    describe,
    rebuild,
    without_integers,
)
from pqd.registry import load_all

load_all(__name__)

__all__ = [
    "CONSTRAINTS",
    "Constraint",
    "attach",
    "constraints",
    "describe",
    "rebuild",
    "without_integers",
]
