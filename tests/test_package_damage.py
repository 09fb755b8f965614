"""The package trusts no input: what is damaged, forged or no package is named."""

import hashlib
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
import zstandard
from onnx import TensorProto

from pqd.errors import UserError
from pqd.package import floor_bytes, pack, unpack, unpack_bytes
from pqd.package.cuts import CODES, PRODUCT, RECORD
from pqd.package.format import HEADER, START
from tiny_onnx import laplace, model_bytes

ROOT = Path(__file__).parents[1]


@pytest.fixture
def packed(tmp_path):
    """A tiny model and its package."""
    model = tmp_path / "tiny.onnx"
    model.write_bytes(model_bytes(laplace((8, 8, 3, 3), 0.8), np.ones(3, np.float32)))
    pack(model, tmp_path / "tiny.pqd")
    return tmp_path / "tiny.pqd"


def forge(path, payload=None, **fields):
    """Rewrites header fields and payload with a checksum that fits."""
    names = ("magic", "version", "cuts", "size", "text", "codes", "digest")
    content = path.read_bytes()
    header = dict(zip(names, HEADER.unpack_from(content), strict=True)) | fields
    start = HEADER.pack(*header.values())
    payload = content[START:] if payload is None else payload
    path.write_bytes(start + hashlib.sha256(start + payload).digest() + payload)


def forge_cuts(path, size, cuts, rest=b"", codes=b""):
    frame = zstandard.compress(b"".join(RECORD.pack(*cut) for cut in cuts) + rest)
    forge(path, frame + codes, cuts=len(cuts), size=size, text=len(frame), codes=len(codes))


def test_every_truncation_and_every_damaged_byte_is_found(packed):
    content = packed.read_bytes()
    broken = [content[:length] for length in range(len(content))]
    for index, byte in enumerate(content):
        broken.append(content[:index] + bytes([byte ^ 64]) + content[index + 1 :])
    for mutant in broken:
        packed.unlink()  # some file systems wait for the disk when a file is written over
        packed.write_bytes(mutant)
        with pytest.raises(UserError):
            unpack_bytes(packed)
    packed.write_bytes(content + b"\0")
    with pytest.raises(UserError, match="truncated or damaged"):
        unpack_bytes(packed)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 2}, "has format 2; this pqd reads format 1"),
        ({"size": 2**63}, "claims to hold 9223372036854775808 bytes"),
        ({"size": 2**31 + 1}, "claims to hold"),
        ({"cuts": 65535}, "does not fit the package"),
        ({"text": 2**64 - 1}, "claims to have parts"),
        ({"codes": 2**40}, "claims to have parts"),
        ({"text": 10}, "zstd frame is damaged"),
        ({"codes": 3}, "no whole number of words"),
        ({"size": 900}, "does not fit the model"),
        ({"digest": bytes(32)}, "does not restore the model"),
    ],
)
def test_forged_headers_are_refused(packed, fields, message):
    forge(packed, **fields)
    with pytest.raises(UserError, match=message):
        unpack_bytes(packed)


@pytest.mark.parametrize(
    ("size", "cuts", "message"),
    [
        (2**24, [(CODES, 2**32 - 1, 8, 8, 3, 3)], "is damaged"),  # outside
        (500, [(CODES, 0, 8, 8, 3, 3)], "is damaged"),  # outside
        (0, [(CODES, 0, 0, 8, 3, 3)], "is damaged"),  # empty
        (9, [(CODES, 0, 1, 1, 3, 3)], "is damaged"),  # too small to be worth it
        (2**24, [(CODES, 0, 2**12, 2**12, 1, 1)], "is damaged"),  # too large a block
        (2**20, [(CODES, 0, 2**17, 8, 1, 1)], "is damaged"),  # too many rows
        (800, [(CODES, 0, 2, 4, 10, 10)], "is damaged"),  # too large a kernel
        (2**24, [(CODES, 0, *[2**32 - 1] * 4)], "is damaged"),  # enormous
        (577, [(CODES, 0, 8, 8, 3, 3)], "does not fit the model's size"),  # a byte is missing
        (2**17, [(CODES, 0, 16, 16, 1, 1)] * 512 + [(CODES, 0, 1, 1, 1, 1)], "is damaged"),
        (2**18, [(CODES, 0, 16, 16, 1, 1)] * 513, "is too long"),
        (64, [(PRODUCT, 32, 8, 0, 1, 0)], "is damaged"),  # of what is not there before it
        (64, [(PRODUCT, 32, 2**30, 0, 0, 0)], "is damaged"),  # enormous
        (64, [(2, 32, 8, 0, 0, 0)], "is damaged"),  # of an unknown kind
    ],
)
def test_forged_cuts_are_refused(packed, size, cuts, message):
    forge_cuts(packed, size, cuts)
    with pytest.raises(UserError, match=f"the list of cuts {message}"):
        unpack_bytes(packed)


def test_declared_sizes_allocate_nothing(packed):
    frame = bytearray(zstandard.compress(bytes(2**16)))
    assert frame[4] == 0x60  # one segment, content size in two bytes; now in eight:
    huge = bytes(frame[:4]) + b"\xe0" + struct.pack("<Q", 2**40) + bytes(frame[7:])
    assert zstandard.frame_content_size(huge) == 2**40
    forge(packed, huge, text=len(huge), codes=0, cuts=0, size=2**24)
    tracemalloc.start()
    with pytest.raises(UserError, match="claims a size that does not fit"):
        unpack_bytes(packed)
    forge_cuts(packed, 2**22, [(CODES, 0, 2048, 2048, 1, 1)], codes=bytes(range(256)) * 4)
    with pytest.raises(UserError):
        unpack_bytes(packed)
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()


def test_short_fuzzing():
    command = [sys.executable, ROOT / "benchmarks/fuzz_package.py", "--count", "150", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "150 mutants, none crashed" in done.stdout, done.stdout + done.stderr


def test_unusable_files_are_named(tmp_path, packed):
    other = tmp_path / "other"
    other.write_bytes(b"\x89PNG and so on")
    with pytest.raises(UserError, match="other: this is no pqd package"):
        unpack_bytes(other)
    with pytest.raises(UserError, match="other is no ONNX model"):
        pack(other, tmp_path / "other.pqd")
    with pytest.raises(UserError, match=r"cannot read .*absent: No such file"):
        unpack_bytes(tmp_path / "absent")
    with pytest.raises(UserError, match=r"cannot read .*: Is a directory"):
        floor_bytes(tmp_path)
    with pytest.raises(UserError, match="cannot write"):
        unpack(packed, tmp_path / "absent" / "m.onnx")
    model = onnx.load_from_string(model_bytes(np.zeros((4, 4), np.int8)))
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    other.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="external files"):
        pack(other, tmp_path / "other.pqd")
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".tmp", ".part")]
