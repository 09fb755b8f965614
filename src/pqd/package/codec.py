"""Context-modelled range coding of INT8 weight tensors.

Weights of a trained network are not independent draws: output and input channels differ in how
many weights were pruned, and neighbours in a kernel resemble each other in magnitude and sign. The
coder walks a tensor in passes, each of which codes a rectangle of [output, input] channels at one
kernel position, and predicts from what earlier passes coded:

- whether a weight is zero, from the shares of non-zeros in its row (output channel) and column
  (input channel) and the magnitude of its neighbours in the kernel;
- the value of a non-zero, from the mean magnitude in its row and the signed sum of its neighbours;
  the sign is coded as "like that sum" or not.

The weights of a pass are coded context by context, with the frequencies counted so far: nothing is
stored but the coded weights. Encoder and decoder run the same walk, and compute nothing that
machines could round differently.
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, Protocol

import constriction
import numpy as np
from numpy.typing import NDArray

from pqd.package.context import Predictor
from pqd.package.tables import MAGNITUDES, ValueTable, ZeroTable

Part = tuple[slice, slice]  # rows and columns


def encode(tensors: Iterable[NDArray[np.int8]]) -> bytes:
    """Codes tensors of shape [O, I, kH, kW]."""
    encoder = Encoder()
    for _ in _lengths(encoder, tensors):
        pass
    return encoder.finish()


def lengths(tensors: Iterable[NDArray[np.int8]]) -> list[int]:
    """Returns how many bytes each of the tensors adds to what `encode` makes of them."""
    ends = list(_lengths(Encoder(), tensors))
    return [end - start for start, end in pairwise([0, *ends])]


def _lengths(encoder: "Encoder", tensors: Iterable[NDArray[np.int8]]) -> Iterator[int]:
    """Codes tensors; yields the length of the stream, in bytes, after each of them."""
    walk = Walk(encoder)
    for tensor in tensors:
        rows, columns, height, width = tensor.shape
        planes = tensor.reshape(rows, columns, height * width).transpose(2, 0, 1)
        walk.code(np.ascontiguousarray(planes), height, width)
        yield encoder.range.num_bits() // 8


def decode(
    stream: bytes | memoryview, shapes: Iterable[tuple[int, int, int, int]]
) -> Iterator[bytes]:
    """Yields the bytes of the tensors of shape [O, I, kH, kW] that `encode` coded.

    Raises:
        ValueError: `encode` did not write this stream.
    """
    walk = Walk(Decoder(stream))
    for rows, columns, height, width in shapes:
        planes = np.zeros((height * width, rows, columns), np.int8)
        walk.code(planes, height, width)
        yield planes.transpose(1, 2, 0).tobytes()


class Coder(Protocol):
    """One direction of range coding."""

    decoding: bool

    def code(self, symbols: NDArray[np.int32], frequencies: NDArray[np.float64]) -> None:
        """Writes the symbols [n], or fills them in."""


class Encoder:
    """Writes symbols to a stream."""

    decoding = False

    def __init__(self) -> None:
        """Starts an empty stream."""
        self.range = constriction.stream.queue.RangeEncoder()

    def code(self, symbols: NDArray[np.int32], frequencies: NDArray[np.float64]) -> None:
        """Writes the symbols [n]."""
        self.range.encode(symbols, _model(frequencies))

    def finish(self) -> bytes:
        """Returns the stream."""
        return self.range.get_compressed().astype("<u4").tobytes()


class Decoder:
    """Reads symbols from a stream."""

    decoding = True

    def __init__(self, stream: bytes | memoryview) -> None:
        """Starts at the beginning."""
        if len(stream) % 4:
            raise ValueError("the coded weights are no whole number of words")
        words = np.frombuffer(stream, "<u4").astype(np.uint32, copy=False)
        self.range = constriction.stream.queue.RangeDecoder(words)

    def code(self, symbols: NDArray[np.int32], frequencies: NDArray[np.float64]) -> None:
        """Fills in the symbols [n]."""
        try:
            symbols[:] = self.range.decode(_model(frequencies), len(symbols))
        except AssertionError:  # so constriction reports a stream that no encoder writes
            raise ValueError("the coded weights are damaged") from None


def _model(frequencies: NDArray[np.float64]) -> constriction.stream.model.Categorical:
    return constriction.stream.model.Categorical(frequencies, perfect=False)


class Walk:
    """Codes tensors one after another; what is learnt from one helps the next."""

    def __init__(self, coder: Coder) -> None:
        """Starts with what is likely in any network."""
        self.coder = coder
        self.zeros = ZeroTable()
        self.values = ValueTable()
        self.usual = (32, 16, 16 * 32)  # weights, non-zeros of them, sum of their magnitudes

    def code(self, planes: NDArray[np.int8], height: int, width: int) -> None:
        """Codes a tensor [kH * kW, O, I]; a decoder fills it in."""
        _, rows, columns = planes.shape
        predictor = Predictor(rows, columns, self.usual)
        positions = _positions(height, width)
        for rank, position in enumerate(positions):
            signed = np.zeros((rows, columns), np.int16)
            magnitude = np.zeros((rows, columns), np.int16)
            total = 0
            for other, weight in _neighbours(positions[:rank], position, width):
                plane = planes[other] * np.int16(weight)
                signed += plane
                magnitude += np.abs(plane)
                total += weight
            for part in _parts(rows, columns, first=rank == 0):
                contexts = predictor.zero_contexts(*part, magnitude[part], total)
                self._part(predictor, part, planes[position][part], contexts, signed[part])
        self.usual = (
            32,
            32 * predictor.nonzeros // predictor.weights,
            32 * predictor.magnitude // predictor.weights,
        )
        self.zeros.forget()
        self.values.forget()

    def _part(
        self,
        predictor: Predictor,
        part: Part,
        weights: NDArray[np.int8],
        contexts: NDArray[np.uint8],
        near: NDArray[np.int16],
    ) -> None:
        """Codes weights [rows, columns], given contexts of zeros and signed neighbours."""
        decoding = self.coder.decoding
        symbols = None if decoding else (weights != 0).ravel()
        symbols = self._symbols(self.zeros, contexts.ravel(), symbols)
        nonzero = symbols.astype(bool).reshape(weights.shape)
        index = np.flatnonzero(nonzero)
        expected = near.ravel()[index]
        negative = expected < 0
        if decoding:
            symbols = None
        else:
            values = weights.ravel()[index].astype(np.int16)
            symbols = np.abs(values) - 1
            symbols[(values < 0) != negative] += MAGNITUDES
        per_row = np.count_nonzero(nonzero, axis=1)
        contexts = predictor.value_contexts(part[0], per_row, np.abs(expected))
        symbols = self._symbols(self.values, contexts, symbols)
        magnitude = symbols % MAGNITUDES + 1
        if decoding:
            flat = np.zeros(weights.size, np.int8)
            flat[index] = np.where((symbols >= MAGNITUDES) != negative, -magnitude, magnitude)
            weights[:] = flat.reshape(weights.shape)
        predictor.add(*part, nonzero, magnitude)

    def _symbols(
        self,
        table: ZeroTable | ValueTable,
        contexts: NDArray[np.uint8],
        symbols: NDArray[Any] | None,
    ) -> NDArray[Any]:
        """Codes symbols [n] (None when decoding) grouped by their contexts [n]; returns them."""
        order = np.argsort(contexts, kind="stable")
        if symbols is None:
            grouped = np.empty(len(order), np.int32)
        else:
            grouped = symbols[order].astype(np.int32)
        sizes = np.bincount(contexts)
        used = np.flatnonzero(sizes)
        counts = np.zeros((len(used), table.alphabet), np.int64)
        end = 0
        for frequencies, count, size in zip(
            table.frequencies(used), counts, sizes[used], strict=True
        ):
            start, end = end, end + size
            self.coder.code(grouped[start:end], frequencies)
            count[:] = np.bincount(grouped[start:end], minlength=table.alphabet)
        table.learn(used, counts)
        if symbols is None:
            symbols = np.empty_like(grouped)
            symbols[order] = grouped
        return symbols


def _positions(height: int, width: int) -> list[int]:
    """Returns the positions in a kernel, its centre first: that is near to most others."""

    def distance(position: int) -> int:
        down, across = divmod(position, width)
        return (2 * down + 1 - height) ** 2 + (2 * across + 1 - width) ** 2

    return sorted(range(height * width), key=distance)


def _neighbours(known: list[int], position: int, width: int) -> Iterator[tuple[int, int]]:
    """Yields the known positions that touch a position, with weight 2, or 1 at a corner."""
    for other in known:
        down = abs(other // width - position // width)
        across = abs(other % width - position % width)
        if max(down, across) == 1:
            yield other, 3 - down - across


def _parts(rows: int, columns: int, first: bool) -> Iterator[Part]:
    """Yields the rectangles of a plane: one, or growing ones while channels are unknown."""
    if not first:
        yield slice(0, rows), slice(0, columns)
        return
    for row in _growing(rows):
        for column in _growing(columns):
            yield row, column


def _growing(size: int) -> list[slice]:
    bounds = [0, size // 8, size // 4, size // 2, size]
    return [slice(a, b) for a, b in pairwise(bounds) if a < b]
