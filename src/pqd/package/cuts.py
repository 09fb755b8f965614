"""What a package cuts out of an ONNX file.

Codes are INT8 weights, which are entropy-coded. Products are float arrays that are a factor times
an array before them, of which only the factor is stored: the scales of a bias are the scale of the
layer's input times the scales of its weights.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pqd.package.scan import FLOAT, INT8, Tensor

CODES, PRODUCT = 0, 1
RECORD = struct.Struct("<B5I")  # kind, bytes since the last cut, numbers

BLOCKS, BLOCK_CODES = 2**9, 2**22  # of codes, at most; a larger tensor is cut into blocks of rows
LEAST_CODES = 2**8  # fewer are not worth it
SIDE = 2**16  # rows or columns of a block, at most
KERNEL = 49  # positions in a kernel, at most; those of a larger one are laid out as columns
PRODUCTS, LEAST_PRODUCT = 2**11, 8  # at most so many products, of at least so many numbers

Numbers = tuple[int, int, int, int]


@dataclass(frozen=True, order=True)
class Cut:
    """One piece that was cut out.

    The numbers are the shape [O, I, kH, kW] of codes. Of a product they are its length, the bits of
    its float32 factor, the offset in the file of the array that it multiplies, and 0.
    """

    offset: int  # in the file
    kind: int
    numbers: Numbers

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return math.prod(self.numbers) if self.kind == CODES else 4 * self.numbers[0]


def is_weight(tensor: Tensor) -> bool:
    """Whether a tensor holds INT8 weights (zero points, say, have one dimension)."""
    return tensor.data_type == INT8 and len(tensor.shape) >= 2


def find_cuts(model: bytes, tensors: list[Tensor]) -> list[Cut]:
    """Chooses what to cut out, in file order."""
    blocks = [block for tensor in tensors if is_weight(tensor) for block in _blocks(tensor)]
    blocks.sort(key=lambda block: -block.size)
    products = list(_products(model, tensors))
    return sorted(blocks[:BLOCKS] + products[:PRODUCTS])


def _blocks(tensor: Tensor) -> Iterator[Cut]:
    rows, columns, *kernel = tensor.shape
    height, width = math.prod(kernel[:-1]), math.prod(kernel[-1:])
    if height * width > KERNEL:
        columns, height, width = columns * height * width, 1, 1
    row = columns * height * width
    step = min(SIDE, BLOCK_CODES // row)
    if step == 0 or columns > SIDE:
        return
    for first in range(0, rows, step):
        shape = min(step, rows - first), columns, height, width
        if math.prod(shape) >= LEAST_CODES:
            yield Cut(tensor.offset + first * row, CODES, shape)


def _products(model: bytes, tensors: list[Tensor]) -> Iterator[Cut]:
    floats = [tensor for tensor in tensors if tensor.data_type == FLOAT]
    scalars = [floats_at(model, tensor.offset, 1)[0] for tensor in floats if tensor.size == 1]
    factors = np.array(scalars, np.float32)
    source, before = 0, np.empty(0, np.float32)  # the array before that is no product itself
    for tensor in floats:
        if len(tensor.shape) == 1 and tensor.size >= LEAST_PRODUCT:
            array = floats_at(model, tensor.offset, tensor.size)
            factor = _factor(factors, before, array)
            if factor is None:
                source, before = tensor.offset, array
            else:
                bits = int(factor.view(np.uint32))
                yield Cut(tensor.offset, PRODUCT, (tensor.size, bits, source, 0))


def _factor(
    factors: NDArray[np.float32], before: NDArray[np.float32], array: NDArray[np.float32]
) -> np.float32 | None:
    normal = np.isfinite(array) & (np.abs(array) >= np.finfo(np.float32).tiny)
    if len(before) != len(array) or not normal.all():
        return None  # machines differ in NaNs, and some flush smaller numbers to zero
    with np.errstate(all="ignore"):
        likely = factors[factors * before[0] == array[0]]
    matches = (factor for factor in likely if product(before, factor) == array.tobytes())
    return next(matches, None)


def floats_at(model: bytes | bytearray, offset: int, count: int) -> NDArray[np.float32]:
    """Returns the float32 array [count] at an offset of the file, a view."""
    return np.frombuffer(model, "<f4", count, offset)


def product(array: NDArray[np.float32], factor: np.float32) -> bytes:
    """Returns the bytes of an array times a factor: one correctly rounded operation per number."""
    with np.errstate(all="ignore"):
        return (array * factor).astype("<f4").tobytes()


def pack_cuts(cuts: list[Cut]) -> bytes:
    """Returns the records of cuts in file order."""
    records, end = [], 0
    for cut in cuts:
        records.append(RECORD.pack(cut.kind, cut.offset - end, *cut.numbers))
        end = cut.offset + cut.size
    return b"".join(records)


def unpack_cuts(records: memoryview, size: int) -> list[Cut]:
    """Reads records and checks all that they claim.

    Args:
        records: what `pack_cuts` returned, or an attacker wrote.
        size: bytes of the ONNX file.

    Raises:
        ValueError: the records describe no cuts of a file of this size.
    """
    cuts: list[Cut] = []
    end = 0
    for kind, gap, *numbers in RECORD.iter_unpack(records):
        a, b, c, d = numbers
        cut = Cut(end + gap, kind, (a, b, c, d))
        end = cut.offset + cut.size
        if kind == CODES:
            valid = LEAST_CODES <= cut.size <= BLOCK_CODES and max(a, b) <= SIDE and c * d <= KERNEL
        else:  # a product, of an array that is there before it
            valid = kind == PRODUCT and a >= LEAST_PRODUCT and c + cut.size <= cut.offset
        if not valid or end > size:
            raise ValueError("the list of cuts is damaged")
        cuts.append(cut)
    blocks = sum(cut.kind == CODES for cut in cuts)
    if blocks > BLOCKS or len(cuts) - blocks > PRODUCTS:
        raise ValueError("the list of cuts is too long")
    return cuts
