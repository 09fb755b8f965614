"""Adaptive frequencies of symbols, by context, for `codec`.

The range coder gets them as float64 and rounds them to fixed point itself. On the way there are
only sums, products and quotients of numbers that every machine rounds alike.
"""

import numpy as np
from numpy.typing import NDArray

from pqd.package.context import (
    VALUE_CONTEXTS,
    VALUE_LEVELS,
    VALUE_STEP,
    ZERO_CONTEXTS,
    ZERO_LEVELS,
    ZERO_STEP,
    Integers,
)

UNIT = 32  # what one observation adds to a frequency
MEMORY, SHAPE_MEMORY = 500, 2000  # observations that a frequency table takes to the next tensor
MAGNITUDES = 128  # 1 .. 128

# What a context learns of a magnitude, it learns of all in [BUCKETS[i], BUCKETS[i + 1]).
BUCKETS = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 127, 128, 129])
_SIZES = np.diff(BUCKETS)
_STARTS = BUCKETS[:-1] - 1

# What is expected of a level [levels, symbols] before anything was observed, rounded when used. A
# test shows that no entry is near a rounding tie, so that every machine starts alike.
_ODDS = np.exp2((np.arange(ZERO_LEVELS) - ZERO_LEVELS // 2) * ZERO_STEP / 16)
ZERO_PRIOR = 4 * UNIT * np.stack([1 / (1 + _ODDS), _ODDS / (1 + _ODDS)], axis=1)
_MEAN = np.exp2(np.arange(VALUE_LEVELS) * VALUE_STEP / 16)
_TAIL = np.exp(-(BUCKETS - 1) / _MEAN[:, None])  # of a geometric distribution of magnitudes
VALUE_PRIOR = 4 * UNIT * np.tile(_TAIL[:, :-1] - _TAIL[:, 1:], 2)  # buckets with either sign


class ZeroTable:
    """Symbols: 0 where a weight is zero, 1 elsewhere."""

    alphabet = 2

    def __init__(self) -> None:
        """Starts from what the level of a context says."""
        self.counts = _start(ZERO_PRIOR, ZERO_CONTEXTS)

    def frequencies(self, contexts: Integers) -> NDArray[np.float64]:
        """Returns the frequencies [contexts, alphabet]."""
        return self.counts[contexts].astype(np.float64)

    def learn(self, contexts: Integers, counts: Integers) -> None:
        """Counts symbols [contexts, alphabet]."""
        self.counts[contexts] += UNIT * counts

    def forget(self) -> None:
        """Gives way to the next tensor."""
        self.counts = _faded(self.counts, MEMORY)


class ValueTable:
    """Symbols: magnitude - 1, plus 128 where the sign is not the expected one."""

    alphabet = 2 * MAGNITUDES

    def __init__(self) -> None:
        """Starts from what the level of a context says."""
        self.counts = _start(VALUE_PRIOR, VALUE_CONTEXTS)  # of buckets with either sign
        self.shape = np.full(MAGNITUDES, 10 * UNIT)  # of magnitudes within buckets, in any context

    def frequencies(self, contexts: Integers) -> NDArray[np.float64]:
        """Returns the frequencies [contexts, alphabet]."""
        share = self.shape / np.repeat(np.add.reduceat(self.shape, _STARTS), _SIZES)
        return np.repeat(self.counts[contexts], np.tile(_SIZES, 2), axis=1) * np.tile(share, 2)

    def learn(self, contexts: Integers, counts: Integers) -> None:
        """Counts symbols [contexts, alphabet]."""
        starts = np.concatenate([_STARTS, _STARTS + MAGNITUDES])
        self.counts[contexts] += UNIT * np.add.reduceat(counts, starts, axis=1)
        self.shape += UNIT * counts.sum(0).reshape(2, MAGNITUDES).sum(0)

    def forget(self) -> None:
        """Gives way to the next tensor."""
        self.counts = _faded(self.counts, MEMORY)
        self.shape = _faded(self.shape[None], SHAPE_MEMORY)[0]


def _start(prior: NDArray[np.float64], contexts: int) -> Integers:
    frequencies = np.maximum(np.rint(prior), 1).astype(np.int64)
    return np.repeat(frequencies, contexts // len(frequencies), axis=0)


def _faded(frequencies: Integers, observations: int) -> Integers:
    total = np.maximum(frequencies.sum(1, keepdims=True), observations * UNIT)
    return np.maximum(frequencies * (observations * UNIT) // total, 1)
