"""The artifact of a run and its figures: what is deployed is what is measured."""

from pqd.artifact.figures import DIFFERENT, DOUBTFUL, Incomplete, doubts, figures
from pqd.artifact.make import PREDICTIONS, make, make_dense
from pqd.artifact.subject import (
    BATCH_SIZE,
    DENSE_MODEL,
    MODEL,
    PACKAGE,
    PRUNED_MODEL,
    Subject,
    shipped,
)

__all__ = [
    "BATCH_SIZE",
    "DENSE_MODEL",
    "DIFFERENT",
    "DOUBTFUL",
    "MODEL",
    "PACKAGE",
    "PREDICTIONS",
    "PRUNED_MODEL",
    "Incomplete",
    "Subject",
    "doubts",
    "figures",
    "make",
    "make_dense",
    "shipped",
]
