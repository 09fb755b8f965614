"""`model.pqd`: an ONNX file whose INT8 weights are entropy-coded; restored bit for bit.

    header    magic, version, sizes, SHA-256 of the ONNX file (little endian)
    checksum  SHA-256 of everything else in the package
    text      a zstd frame: what was cut out of the ONNX file (`cuts`), and what remains
    codes     the weights that were cut out, range-coded (`codec`)
    padding   zeros

A package is read as if an enemy had written it: sizes are checked before anything is allocated. A
package of n bytes may stand for at most 16 MiB + 1000 n bytes, and for at most 2 GiB (protobuf's
own limit), so that a small file cannot claim much memory; a model that compresses even better is
padded. Unpacking holds at most the package twice, three times the ONNX file, and 100 MB.
"""

import hashlib
import math
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import zstandard
from numpy.typing import NDArray

from pqd import files
from pqd.errors import UserError
from pqd.package import codec
from pqd.package.cuts import (
    CODES,
    RECORD,
    Cut,
    find_cuts,
    floats_at,
    is_weight,
    pack_cuts,
    product,
    unpack_cuts,
)
from pqd.package.scan import ITEM_SIZE, Tensor, initializers

MAGIC = b"\x89PQD"
VERSION = 1
HEADER = struct.Struct("<4sHHQQQ32s")  # magic, version, cuts, bytes of: model, text, codes; hash
START = HEADER.size + 32

MODEL_LIMIT = 2**31  # bytes
SMALL, RATIO = 2**24, 1000  # bytes of the model: at most SMALL + RATIO * bytes of the package
BEST_ZSTD = 2**23  # bytes up to which the best zstd level takes seconds at most


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
    packed = _pack(content, _initializers(model, content))
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
    for tensor in filter(is_weight, _initializers(model, content)):
        codes = np.frombuffer(content, np.uint8, tensor.size, tensor.offset)
        counts = np.bincount(codes)
        counts = counts[counts > 0]
        bits += float(np.sum(counts * np.log2(tensor.size / counts)))
    return math.ceil(bits / 8)


def weight_bytes(model: bytes) -> dict[str, int]:
    """Returns how many bytes of a package each tensor of an ONNX file takes, by its name.

    Of INT8 weights that is exact, to a word. FLOAT tensors of two or more dimensions are
    compressed with all that is around them: theirs is what zstd makes of each alone.

    Raises:
        ValueError: it is no ONNX model, or it keeps weights in other files.
    """
    tensors = initializers(model)
    cuts = [cut for cut in find_cuts(model, tensors) if cut.kind == CODES]
    sizes = codec.lengths(_blocks(model, cuts))
    coded = {cut.offset: size for cut, size in zip(cuts, sizes, strict=True)}
    compressor = zstandard.ZstdCompressor(level=9)
    found = {}
    for tensor in tensors:
        size = tensor.size * ITEM_SIZE[tensor.data_type]
        span = range(tensor.offset, tensor.offset + size)
        inside = [coded[start] for start in coded if start in span]
        if inside:
            found[tensor.name] = sum(inside)
        elif len(tensor.shape) > 1:
            found[tensor.name] = len(compressor.compress(model[span.start : span.stop]))
    return found


def _blocks(model: bytes, cuts: list[Cut]) -> Iterator[NDArray[np.int8]]:
    """Yields the codes of the cuts that are entropy-coded."""
    for cut in cuts:
        if cut.kind == CODES:
            yield np.frombuffer(model, np.int8, cut.size, cut.offset).reshape(cut.numbers)


def _initializers(path: Path, model: bytes) -> list[Tensor]:
    try:
        return initializers(model)
    except ValueError as error:
        raise UserError(f"{path} is no ONNX model that can be packed: {error}") from None


def _pack(model: bytes, tensors: list[Tensor]) -> bytes:
    cuts = find_cuts(model, tensors)
    text, end = [pack_cuts(cuts)], 0
    for cut in cuts:
        text.append(model[end : cut.offset])
        end = cut.offset + cut.size
    text_bytes = b"".join([*text, model[end:]])
    level = 19 if len(text_bytes) <= BEST_ZSTD else 9
    frame = zstandard.ZstdCompressor(level=level).compress(text_bytes)
    codes = codec.encode(_blocks(model, cuts))
    padding = math.ceil((len(model) - SMALL) / RATIO) - (START + len(frame) + len(codes))
    digest = hashlib.sha256(model).digest()
    header = HEADER.pack(MAGIC, VERSION, len(cuts), len(model), len(frame), len(codes), digest)
    payload = frame + codes + bytes(max(0, padding))
    return header + hashlib.sha256(header + payload).digest() + payload


def _unpack(package: bytes) -> bytes:
    """Restores the ONNX file; a ValueError says what is wrong with the package."""
    if not package.startswith(MAGIC):
        raise ValueError("this is no pqd package")
    if len(package) < START:
        raise ValueError("the package is truncated")
    header, checksum = package[: HEADER.size], package[HEADER.size : START]
    _, version, count, size, text_size, codes_size, digest = HEADER.unpack(header)
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
    if text_size + codes_size > len(payload):
        raise ValueError("the package claims to have parts that it has not")
    records = count * RECORD.size
    text = _decompress(payload[:text_size], least=records, most=records + size)
    cuts = unpack_cuts(text[:records], size)
    codes = payload[text_size : text_size + codes_size]
    model = _assemble(cuts, text[records:], codes, size)
    if hashlib.sha256(model).digest() != digest:
        raise ValueError("the package does not restore the model it was made from")
    return bytes(model)


def _decompress(frame: memoryview, least: int, most: int) -> memoryview:
    # zstandard trusts the size in a frame's header, whatever maximum it is given.
    try:
        if not least <= zstandard.frame_content_size(frame) <= most:
            raise ValueError("the zstd frame claims a size that does not fit the package")
        return memoryview(zstandard.ZstdDecompressor().decompress(frame))
    except zstandard.ZstdError:
        raise ValueError("the zstd frame is damaged") from None


def _assemble(cuts: list[Cut], text: memoryview, codes: memoryview, size: int) -> bytearray:
    """Puts cuts and text together."""
    if sum(cut.size for cut in cuts) + len(text) != size:
        raise ValueError("the list of cuts does not fit the model's size")
    model = bytearray(size)
    blocks = codec.decode(codes, [cut.numbers for cut in cuts if cut.kind == CODES])
    position = end = 0  # in the text, in the model
    for cut in cuts:
        gap = cut.offset - end
        model[end : cut.offset] = text[position : position + gap]
        position, end = position + gap, cut.offset + cut.size
        if cut.kind == CODES:
            model[cut.offset : end] = next(blocks)
        else:
            count, factor, source, _ = cut.numbers
            array = floats_at(model, source, count)
            model[cut.offset : end] = product(array, np.uint32(factor).view(np.float32))
    model[end:] = text[position:]
    return model


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MODEL_LIMIT:
            raise UserError(f"{path} is larger than 2 GiB, more than an ONNX file can be")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _write(path: Path, content: bytes) -> None:
    try:
        files.write(path, content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
