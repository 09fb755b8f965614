"""A difference in accuracy over pairs: how large, and whether it is proven."""

from dataclasses import dataclass, replace
from typing import TypeVar

from pqd.report import words
from pqd.report.statistics import LEVEL, MIN_SEEDS, Estimate, holm, smallest_p


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Accuracy of one thing minus that of another, in points, over pairs."""

    difference: Estimate  # n is the number of pairs
    p: float | None  # None with fewer than six seeds
    corrected: float | None = None  # Holm, over all that is compared
    smallest: float | None = None  # `corrected`, had all differences one sign

    @property
    def proven(self) -> bool:
        """Whether the corrected p is below the level."""
        return self.corrected is not None and self.corrected < LEVEL

    @property
    def verdict(self) -> str:
        """What is shown of this alone."""
        if self.corrected is None or self.smallest is None:
            return f"none possible: fewer than {MIN_SEEDS} seeds"
        if self.proven:
            return "more accurate" if self.difference.mean > 0 else "less accurate"
        if self.smallest >= LEVEL:
            return (
                f"could not be shown: with {words.count(self.difference.n, 'pair')} "
                f"corrected p ≥ {words.p(self.smallest)}"
            )
        return "not shown to differ"


P = TypeVar("P", bound=Paired)


def corrected(found: list[P]) -> list[P]:
    """Corrects what is compared in one place for its number."""
    tested = [each for each in found if each.p is not None]
    by_holm = iter(holm([each.p for each in tested if each.p is not None]))
    smallest = iter(holm([smallest_p(each.difference.n) for each in tested]))
    return [
        each if each.p is None else replace(each, corrected=next(by_holm), smallest=next(smallest))
        for each in found
    ]
