"""Where the initializers lie inside the bytes of an ONNX file.

The package must restore the file bit for bit, so it needs byte ranges of the file, which the onnx
library does not tell. The protobuf wire format is small enough to be walked here
(https://protobuf.dev/programming-guides/encoding/); field numbers are those of onnx.proto3.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MODEL_GRAPH, GRAPH_INITIALIZER = 7, 5
DIMS, DATA_TYPE, NAME, RAW_DATA, DATA_LOCATION = 1, 2, 8, 9, 14
EXTERNAL = 1
FLOAT, INT8 = 1, 3
ITEM_SIZE = {FLOAT: 4, INT8: 1}  # bytes


@dataclass(frozen=True)
class Tensor:
    """An initializer whose little-endian numbers are in the file from byte `offset` on."""

    offset: int
    shape: tuple[int, ...]
    data_type: int  # FLOAT or INT8
    name: str = ""

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


def initializers(model: bytes) -> list[Tensor]:
    """Finds the FLOAT and INT8 initializers that are stored as raw data, in file order.

    Args:
        model: a serialized ONNX `ModelProto`.

    Raises:
        ValueError: the bytes are no ONNX model, or it keeps weights in other files.
    """
    graphs = [span for number, span in _fields(model, 0, len(model)) if number == MODEL_GRAPH]
    if not graphs:
        raise ValueError("it has no graph")
    found = []
    for graph in graphs:
        for number, span in _fields(model, *_submessage(graph)):
            if number == GRAPH_INITIALIZER:
                tensor = _tensor(model, *_submessage(span))
                if tensor:
                    found.append(tensor)
    return found


def _tensor(model: bytes, start: int, end: int) -> Tensor | None:
    shape: list[int] = []
    data_type, raw, name = 0, None, ""
    for number, span in _fields(model, start, end):
        if number == DATA_LOCATION and span == EXTERNAL:
            raise ValueError("it keeps weights in external files, and a package holds one file")
        if number == DATA_TYPE and isinstance(span, int):
            data_type = span
        elif number == RAW_DATA:
            raw = _submessage(span)
        elif number == NAME:
            name = model[slice(*_submessage(span))].decode(errors="replace")
        elif number == DIMS:  # repeated int64, packed or not
            if isinstance(span, int):
                shape.append(span)
            else:
                position = span[0]
                while position < span[1]:
                    value, position = _varint(model, position, span[1])
                    shape.append(value)
    if data_type not in ITEM_SIZE or raw is None:
        return None
    tensor = Tensor(raw[0], tuple(shape), data_type, name)
    return tensor if tensor.size * ITEM_SIZE[data_type] == raw[1] - raw[0] > 0 else None


def _fields(model: bytes, start: int, end: int) -> Iterator[tuple[int, int | tuple[int, int]]]:
    """Yields (field number, value of a varint or (start, end) of anything else)."""
    position = start
    while position < end:
        key, position = _varint(model, position, end)
        kind = key & 7
        if kind == VARINT:
            value, position = _varint(model, position, end)
            yield key >> 3, value
            continue
        if kind == BYTES:
            length, position = _varint(model, position, end)
        elif kind in (FIXED64, FIXED32):
            length = 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"it is no protobuf message (byte {position - 1})")
        if length > end - position:
            raise ValueError(f"a field ends outside its message (byte {position})")
        yield key >> 3, (position, position + length)
        position += length


def _varint(model: bytes, position: int, end: int) -> tuple[int, int]:
    value = 0
    for index in range(10):
        if position >= end:
            break
        byte = model[position]
        position += 1
        value |= (byte & 127) << (7 * index)
        if byte < 128:
            return value, position
    raise ValueError(f"a number does not end (byte {position})")


def _submessage(span: int | tuple[int, int]) -> tuple[int, int]:
    if isinstance(span, int):
        raise ValueError("a field has the wrong type")
    return span
