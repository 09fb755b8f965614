"""`model.pqd`: an ONNX file whose INT8 weights are entropy-coded; restored bit for bit.

    header    magic, version, sizes, SHA-256 of the ONNX file (little endian)
    checksum  SHA-256 of everything else in the package
    rest      a zstd frame: where weights were cut out, then the ONNX file without them
    codes     the weights, range-coded (`_codec`)
    padding   zeros

A package is read as if an enemy had written it: sizes are checked before anything is allocated. A
package of n bytes may stand for at most 16 MiB + 1000 n bytes, and for at most 2 GiB (protobuf's
own limit), so that a small file cannot claim much memory; a model that compresses even better is
padded. Unpacking holds the package, at most twice the ONNX file, and 200 MB.
"""

import hashlib
import math
import os
import struct
from pathlib import Path

import numpy as np
import zstandard

from pqd.errors import UserError
from pqd.export import _codec
from pqd.export.package_scan import Weights, int8_weights

MAGIC = b"\x89PQD"
VERSION = 1
HEADER = struct.Struct("<4sHHQQQ32s")  # magic, version, blocks, bytes of: model, rest, codes; hash
START = HEADER.size + 32
PLACE = struct.Struct("<QIIII")  # of a block: offset in the ONNX file, shape [O, I, kH, kW]

MODEL_LIMIT = 2**31  # bytes
SMALL, RATIO = 2**24, 1000  # bytes of the model: at most SMALL + RATIO * bytes of the package
BLOCKS, BLOCK_CODES = 2**9, 2**22  # at most; a larger tensor is cut into blocks of rows
LEAST_CODES = 2**8  # fewer stay in the rest
SIDE = 2**16  # rows or columns of a block at most
KERNEL = 49  # positions in a kernel at most; a larger one is laid out as columns
BEST_ZSTD = 2**23  # bytes up to which the best zstd level takes seconds at most

Place = tuple[int, tuple[int, int, int, int]]


def pack(model: Path, package: Path) -> int:
    """Writes an ONNX file as a package, atomically, once it is known to restore.

    Args:
        model: any ONNX file that keeps its weights in itself. Its INT8 initializers of two or more
            dimensions are entropy-coded, everything else is zstd-compressed.
        package: the file to write.

    Returns:
        The size of the package in bytes.

    Raises:
        UserError: the model cannot be read, is no such ONNX file, or is larger than 2 GiB.
    """
    content = _read(model)
    packed = _pack(content, _int8_weights(model, content))
    if _unpack(packed) != content:
        raise AssertionError(f"the package of {model} does not restore it: a bug in pqd")
    _write(package, packed)
    return len(packed)


def unpack(package: Path, model: Path) -> None:
    """Writes the ONNX file that a package holds, bit for bit, atomically.

    Raises:
        UserError: the package cannot be read, is none, or is damaged.
    """
    _write(model, unpack_bytes(package))


def unpack_bytes(package: Path) -> bytes:
    """Returns the bytes of the ONNX file that a package holds.

    Raises:
        UserError: the package cannot be read, is none, or is damaged.
    """
    content = _read(package)
    try:
        return _unpack(content)
    except ValueError as error:
        raise UserError(f"{package}: {error}") from None


def floor_bytes(model: Path) -> int:
    """Returns the Shannon floor of an ONNX file's INT8 weights in bytes, rounded up.

    That is the sum over tensors and over codes of `count * log2(size / count)` bits. No coder gets
    below it that takes the weights of a tensor for independent draws from one distribution, even if
    that distribution cost nothing to tell. The tensors are those that `pack` entropy-codes, however
    small.

    Raises:
        UserError: as for `pack`.
    """
    content = _read(model)
    bits = 0.0
    for weights in _int8_weights(model, content):
        codes = np.frombuffer(content, np.uint8, weights.size, weights.offset)
        counts = np.bincount(codes)
        counts = counts[counts > 0]
        bits += float(np.sum(counts * np.log2(weights.size / counts)))
    return math.ceil(bits / 8)


def _int8_weights(path: Path, model: bytes) -> list[Weights]:
    try:
        return int8_weights(model)
    except ValueError as error:
        raise UserError(f"{path} is no ONNX model that can be packed: {error}") from None


def _pack(model: bytes, weights: list[Weights]) -> bytes:
    places = _places(weights)
    rest = [PLACE.pack(offset, *shape) for offset, shape in places]
    end = 0
    for offset, shape in places:
        rest.append(model[end:offset])
        end = offset + math.prod(shape)
    rest.append(model[end:])
    rest_bytes = b"".join(rest)
    level = 19 if len(rest_bytes) <= BEST_ZSTD else 9
    frame = zstandard.ZstdCompressor(level=level).compress(rest_bytes)
    codes = _codec.encode(
        np.frombuffer(model, np.int8, math.prod(shape), offset).reshape(shape)
        for offset, shape in places
    )
    padding = math.ceil((len(model) - SMALL) / RATIO) - (START + len(frame) + len(codes))
    digest = hashlib.sha256(model).digest()
    header = HEADER.pack(MAGIC, VERSION, len(places), len(model), len(frame), len(codes), digest)
    payload = frame + codes + bytes(max(0, padding))
    return header + hashlib.sha256(header + payload).digest() + payload


def _places(weights: list[Weights]) -> list[Place]:
    """Returns what to entropy-code, in file order."""
    places: list[Place] = []
    for tensor in weights:
        rows, columns, *kernel = tensor.shape
        height, width = math.prod(kernel[:-1]), math.prod(kernel[-1:])
        if height * width > KERNEL:
            columns, height, width = columns * height * width, 1, 1
        row = columns * height * width
        step = min(SIDE, BLOCK_CODES // row)
        if step == 0 or columns > SIDE:
            continue
        for first in range(0, rows, step):
            shape = min(step, rows - first), columns, height, width
            if math.prod(shape) >= LEAST_CODES:
                places.append((tensor.offset + first * row, shape))
    largest = sorted(places, key=lambda place: -math.prod(place[1]))[:BLOCKS]
    return sorted(largest)


def _unpack(package: bytes) -> bytes:
    """Restores the ONNX file; a ValueError says what is wrong with the package."""
    if not package.startswith(MAGIC):
        raise ValueError("this is no pqd package")
    if len(package) < START:
        raise ValueError("the package is truncated")
    header, checksum = package[: HEADER.size], package[HEADER.size : START]
    _, version, blocks, size, rest_size, codes_size, digest = HEADER.unpack(header)
    if version != VERSION:
        raise ValueError(f"the package has format {version}; this pqd reads format {VERSION}")
    payload = memoryview(package)[START:]
    hashed = hashlib.sha256(header)
    hashed.update(payload)
    if hashed.digest() != checksum:
        raise ValueError("the package is truncated or damaged: its checksum differs")
    # From here on only a package that was forged can fail.
    if size > min(MODEL_LIMIT, SMALL + RATIO * len(package)):
        raise ValueError(f"the package claims to hold {size} bytes, too many for its length")
    if blocks > BLOCKS or rest_size + codes_size > len(payload):
        raise ValueError("the package claims to have parts that it has not")
    rest = _decompress(payload[:rest_size], limit=size + blocks * PLACE.size)
    places = _checked_places(rest, blocks, size)
    stream = bytes(payload[rest_size : rest_size + codes_size])
    pieces: list[bytes | memoryview] = []
    position, end = blocks * PLACE.size, 0  # in the rest, in the model
    tensors = _codec.decode(stream, [shape for _, shape in places])
    for (offset, _), tensor in zip(places, tensors, strict=True):
        pieces += [rest[position : position + offset - end], tensor]
        position += offset - end
        end = offset + len(tensor)
    model = b"".join([*pieces, rest[position:]])
    if hashlib.sha256(model).digest() != digest:
        raise ValueError("the package does not restore the model it was made from")
    return model


def _decompress(frame: memoryview, limit: int) -> memoryview:
    # zstandard trusts the size in a frame's header, whatever maximum it is given.
    try:
        if not 0 <= zstandard.frame_content_size(frame) <= limit:
            raise ValueError("the zstd frame claims a size that does not fit the package")
        return memoryview(zstandard.ZstdDecompressor().decompress(frame))
    except zstandard.ZstdError:
        raise ValueError("the zstd frame is damaged") from None


def _checked_places(rest: memoryview, blocks: int, size: int) -> list[Place]:
    if len(rest) < blocks * PLACE.size:
        raise ValueError("the list of weights is truncated")
    places: list[Place] = []
    end = codes = 0
    for offset, *shape in PLACE.iter_unpack(rest[: blocks * PLACE.size]):
        rows, columns, height, width = shape
        count = rows * columns * height * width
        fits = LEAST_CODES <= count <= BLOCK_CODES and height * width <= KERNEL
        if not fits or max(rows, columns) > SIDE or offset < end:
            raise ValueError("the list of weights is damaged")
        places.append((offset, (rows, columns, height, width)))
        end = offset + count
        codes += count
    if end > size or codes + len(rest) - blocks * PLACE.size != size:
        raise ValueError("the list of weights does not fit the model's size")
    return places


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MODEL_LIMIT:
            raise UserError(f"{path} is larger than 2 GiB, more than an ONNX file can be")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}") from None
