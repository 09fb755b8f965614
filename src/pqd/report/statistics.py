"""The statistics of the report: intervals, paired tests, frontiers. Numbers in, numbers out."""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, TypeVar

LEVEL = 0.05  # of every test; intervals cover 1 - LEVEL
MIN_SEEDS = 6  # 2 / 2**6 = 0.031 is the first two-sided sign-flip p below LEVEL
EXACT_PAIRS = 16  # up to so many pairs all sign patterns are enumerated

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` values. Deviation and interval need two values and are None before that."""

    mean: float
    deviation: float | None
    low: float | None
    high: float | None
    n: int

    @property
    def half(self) -> float | None:
        """Half the width of the interval."""
        return None if self.high is None else self.high - self.mean


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean, sample deviation (n - 1) and Student's 95 % t-interval of the mean; None of nothing.

    Source: Student (1908), "The probable error of a mean", Biometrika 6(1); quantiles from
    `scipy.special.stdtrit`.
    """
    n = len(values)
    if n == 0:
        return None
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, None, None, None, 1)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = _t_quantile(n - 1) * deviation / math.sqrt(n)
    return Estimate(mean, deviation, mean - half, mean + half, n)


def sure_estimate(values: Sequence[float]) -> Estimate:
    """As `estimate`, of one value at least."""
    found = estimate(values)
    assert found is not None
    return found


@cache
def _t_quantile(freedom: int) -> float:
    from scipy.special import stdtrit  # a quarter of scipy.stats' import time

    return float(stdtrit(freedom, 1 - LEVEL / 2))


def mean_by(values: Iterable[tuple[K, float]]) -> dict[K, float]:
    """Means of the values that share a key, such as the repetitions of one seed."""
    found: dict[K, list[float]] = defaultdict(list)
    for key, value in values:
        found[key].append(value)
    return {key: sum(same) / len(same) for key, same in found.items()}


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p of a mean difference of 0, from a sign-flip permutation test.

    Under the null hypothesis each paired difference is as likely to have the opposite sign. The p
    is the share of sign patterns whose mean is at least as far from 0 as the one observed: of all
    2**n patterns up to 16 pairs, of 65536 drawn ones (the observed one counted in) beyond.
    `scipy.stats.permutation_test` gives the same, but importing it takes longer than a report.

    Source: Fisher (1935), "The Design of Experiments", section 21; Phipson and Smyth (2010),
    doi 10.2202/1544-6115.1585, for the drawn patterns.
    """
    import numpy as np

    d = np.asarray(differences, np.float64)
    means = np.abs(_signs(len(d)) @ d)
    return float(np.mean(means >= abs(d.sum()) - 1e-12 * np.abs(d).sum()))  # sums are rounded


@lru_cache(maxsize=2)  # orders have as many pairs as each other, mostly
def _signs(pairs: int) -> Any:
    """Patterns of signs [patterns, pairs], the observed signs first."""
    import numpy as np

    if pairs <= EXACT_PAIRS:
        bits = np.arange(2**pairs)[:, None] >> np.arange(pairs) & 1
    else:
        bits = np.random.default_rng(0).integers(0, 2, (2**EXACT_PAIRS, pairs), np.int8)
        bits[0] = 0
    return 1.0 - 2.0 * bits


def smallest_p(pairs: int) -> float:
    """The p of `sign_flip` where all pairs have one sign; none is lower."""
    return 2.0 ** (1 - min(pairs, EXACT_PAIRS + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of a family of p-values, in the order given.

    Source: Holm (1979), "A simple sequentially rejective multiple test procedure",
    Scandinavian Journal of Statistics 6(2).
    """
    m = len(p_values)
    corrected = [0.0] * m
    largest = 0.0
    for rank, i in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (m - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def pairs_needed(comparisons: int) -> int:
    """Least number of pairs at which the smallest corrected p, comparisons * 2 / 2**n, is < 5 %."""
    return math.floor(math.log2(2 * comparisons / LEVEL)) + 1


def dominated(costs: Sequence[float], accuracies: Sequence[float]) -> list[bool]:
    """Whether another point costs no more, is no less accurate, and is better in one of the two.

    Equal points do not dominate each other.
    """
    import moocore

    if not costs:
        return []
    points = list(zip(costs, accuracies, strict=True))
    kept = moocore.is_nondominated(points, maximise=[False, True], keep_weakly=True)
    return [not bool(k) for k in kept]


def hypervolume(
    costs: Sequence[float], accuracies: Sequence[float], cost: float, accuracy: float
) -> float:
    """Share, in %, of the rectangle from the reference point to the ideal that points dominate.

    The reference point is (`cost`, `accuracy`), the ideal (0, 100 %); points outside the rectangle
    add nothing. 100 is the ideal, 0 nothing better than the reference.

    Source: Zitzler and Thiele (1998), "Multiobjective optimization using evolutionary algorithms",
    PPSN V; computed by moocore (Fonseca et al. 2006, doi 10.1109/CEC.2006.1688440).
    """
    import moocore

    if not costs:
        return 0.0
    points = [(c / cost, 100 - a) for c, a in zip(costs, accuracies, strict=True)]
    return 100 * float(moocore.hypervolume(points, ref=[1.0, 100 - accuracy])) / (100 - accuracy)
