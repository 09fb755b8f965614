"""The artifact of a run and its figures: what is deployed is what is measured."""

from pqd.artifact.figures import Incomplete, doubts, figures
from pqd.artifact.make import PREDICTIONS, make, make_dense
from pqd.artifact.subject import (
    DENSE_MODEL,
    MODEL,
    PACKAGE,
    Subject,
    shipped,
)

__all__ = [
    "DENSE_MODEL",
    "MODEL",
    "PACKAGE",
    "PREDICTIONS",
    "Incomplete",
    "Subject",
    "doubts",
    "figures",
    "make",
    "make_dense",
    "shipped",
]
