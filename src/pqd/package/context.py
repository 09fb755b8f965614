"""What is known of a weight before it is coded: contexts for `codec`.

All of it is integer arithmetic, so that a decoder on another machine sees the same contexts.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

# Logarithms in 1/16 octave. A test shows that no entry is near a rounding tie, so that every
# machine builds the same tables.
LOG2 = np.rint(16 * np.log2(np.maximum(np.arange(128 * 16 + 1), 1))).astype(np.int64)
_SHARE = np.maximum(np.arange(4096), 1)
LOG_ODDS = np.rint(16 * np.log2(_SHARE / (4096 - _SHARE))).astype(np.int16)  # of a share in 1/4096

ZERO_LEVELS, ZERO_STEP = 32, 8  # levels of the log-odds of non-zero; step in 1/16 octave
ZERO_NEIGHBOURS = (1, 10, 25)  # thresholds of neighbours' magnitude / mean of the row, in 1/16
VALUE_LEVELS, VALUE_STEP = 28, 4  # levels of the mean magnitude; step in 1/16 octave
VALUE_NEIGHBOURS = (1, 4, 8, 16)  # thresholds of |sum of neighbours| / mean magnitude, in 1/4
TRUST_ZEROS, TRUST_VALUES = 32, 1  # weights after which a channel's own statistics count half

ZERO_CONTEXTS = ZERO_LEVELS * (len(ZERO_NEIGHBOURS) + 1)
VALUE_CONTEXTS = VALUE_LEVELS * (len(VALUE_NEIGHBOURS) + 1)


class Predictor:
    """Statistics of what is already coded of a tensor with O rows and I columns.

    Rows are output channels, columns are input channels; parts of them are given as slices.
    """

    def __init__(self, rows: int, columns: int, usual: tuple[int, int, int]) -> None:
        """Starts with nothing but what is usual: weights, their non-zeros, sum of magnitudes."""
        self.weights, self.nonzeros, self.magnitude = usual
        self.row_weights = np.zeros(rows, np.int64)
        self.row_nonzeros = np.zeros(rows, np.int64)
        self.row_magnitude = np.zeros(rows, np.int64)
        self.column_weights = np.zeros(columns, np.int64)
        self.column_nonzeros = np.zeros(columns, np.int64)

    def zero_contexts(
        self, rows: slice, columns: slice, near: NDArray[np.int16], total: int
    ) -> NDArray[np.uint8]:
        """Returns the contexts [rows, columns] of whether a weight is zero.

        Args:
            rows: the rows to predict.
            columns: the columns to predict.
            near: the weighted sum of the neighbours' magnitudes [rows, columns].
            total: the sum of the neighbours' weights.
        """
        usual = min(max(self.nonzeros * 4096 // self.weights, 8), 4088)
        row = _log_odds(self.row_nonzeros[rows], self.row_weights[rows], usual)
        column = _log_odds(self.column_nonzeros[columns], self.column_weights[columns], usual)
        # Rows and columns act on the odds independently: odds = row * column / overall.
        level = (row - LOG_ODDS[usual])[:, None] + column
        level //= ZERO_STEP
        level += ZERO_LEVELS // 2
        contexts = np.clip(level, 0, ZERO_LEVELS - 1, out=level).astype(np.uint8)
        contexts *= len(ZERO_NEIGHBOURS) + 1
        if not total:
            contexts += np.uint8(sum(ratio <= 16 for ratio in ZERO_NEIGHBOURS))
            return contexts
        sums = self.row_magnitude[rows] * 16 + self._mean()
        mean = sums // (self.row_weights[rows] + 1) * total
        for ratio in ZERO_NEIGHBOURS:
            contexts += near >= ((ratio * mean + 255) // 256).astype(np.int16)[:, None]
        return contexts

    def value_contexts(
        self, rows: slice, per_row: Integers, near: NDArray[np.int16]
    ) -> NDArray[np.uint8]:
        """Returns the contexts [n] of the values of non-zeros, which come row by row.

        Args:
            rows: the rows to predict.
            per_row: how many non-zeros each row has [rows].
            near: the magnitude of the weighted sum of each non-zero's neighbours [n].
        """
        sums = self.row_magnitude[rows] * 16 + TRUST_VALUES * self._mean()
        mean = np.clip(sums // (self.row_nonzeros[rows] + TRUST_VALUES), 16, 128 * 16)
        level = np.clip(LOG2[mean] // VALUE_STEP - 64 // VALUE_STEP, 0, VALUE_LEVELS - 1)
        contexts = np.repeat((level * (len(VALUE_NEIGHBOURS) + 1)).astype(np.uint8), per_row)
        for ratio in VALUE_NEIGHBOURS:
            contexts += near >= np.repeat(((ratio * mean + 63) // 64).astype(np.int16), per_row)
        return contexts

    def add(
        self, rows: slice, columns: slice, nonzero: NDArray[np.bool_], magnitude: NDArray[Any]
    ) -> None:
        """Counts what was coded: where it is not zero [rows, columns], and magnitudes there [n]."""
        per_row = np.count_nonzero(nonzero, axis=1)
        sums = np.concatenate([[0], np.cumsum(magnitude, dtype=np.int64)])
        self.weights += nonzero.size
        self.nonzeros += len(magnitude)
        self.magnitude += int(sums[-1])
        self.row_weights[rows] += nonzero.shape[1]
        self.row_nonzeros[rows] += per_row
        self.row_magnitude[rows] += np.diff(sums[np.cumsum(per_row)], prepend=0)
        self.column_weights[columns] += nonzero.shape[0]
        self.column_nonzeros[columns] += np.count_nonzero(nonzero, axis=0)

    def _mean(self) -> int:
        """Returns the mean magnitude of non-zeros, in 1/16."""
        return max(self.magnitude * 16 // max(self.nonzeros, 1), 16)


def _log_odds(nonzeros: Integers, weights: Integers, usual: int) -> NDArray[np.int16]:
    """Returns the log-odds of non-zero per channel, drawn towards a usual share in 1/4096."""
    share = (nonzeros * 4096 + TRUST_ZEROS * usual) // (weights + TRUST_ZEROS)
    return LOG_ODDS[np.clip(share, 4, 4092)]
