"""Feeds mutated packages to `unpack_bytes`: each must restore the model or raise a UserError.

Half of the mutants carry a valid checksum, as an attacker would see to; otherwise nothing behind
the checksum would be tested. Memory is bounded by the operating system, time by a watchdog, and
anything else than a UserError (a crash in native code included) ends the script with an error.

    python benchmarks/fuzz_package.py --count 100000
"""

import argparse
import faulthandler
import hashlib
import math
import random
import resource
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import zstandard
from onnx import helper, numpy_helper

from pqd.errors import UserError
from pqd.package import pack, unpack_bytes
from pqd.package.cuts import CODES, RECORD
from pqd.package.format import HEADER, START

MEMORY = 200_000_000  # bytes beyond what is in use before the first mutant
HANG = 60  # seconds
NUMBERS = (0, 1, 2, 255, 2**15, 2**16, 2**22, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)


def tiny_model() -> bytes:
    """An ONNX file with a convolution, a linear layer, scales and a product of them."""
    rng = np.random.default_rng(0)
    factor, scales = np.full(1, 0.3, np.float32), rng.random(16, np.float32)
    tensors = {"factor": factor, "scales": scales, "products": factor * scales}
    for name, shape in {"conv": (6, 6, 3, 3), "linear": (10, 26)}.items():
        codes = np.rint(rng.laplace(0, 20, shape)).clip(-127, 127)
        tensors[name] = (codes * (rng.random(shape) < 0.3)).astype(np.int8)
    initializers = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    graph = helper.make_graph([], "tiny", [], [], initializers)
    return helper.make_model(graph).SerializeToString()


def forged(package: bytes) -> bytes:
    """The package with a checksum that fits."""
    header, payload = package[: HEADER.size], package[START:]
    return header + hashlib.sha256(header + payload).digest() + payload


def damaged(package: bytes, rng: random.Random) -> bytes:
    """The package with a few bytes changed, dropped or added anywhere."""
    content = bytearray(package)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at = rng.randrange(len(content) or 1)
        size = rng.choice((1, 1, 2, 4, 8, 64))
        match rng.choice(("flip", "flip", "overwrite", "delete", "insert", "truncate")):
            case "flip" if content:
                content[at] ^= 1 << rng.randrange(8)
            case "overwrite":
                content[at : at + size] = rng.randbytes(size)
            case "delete":
                del content[at : at + size]
            case "insert":
                content[at:at] = rng.randbytes(size)
            case "truncate":
                del content[max(at, 1) :]
    return bytes(content)


def lying_header(package: bytes, rng: random.Random) -> bytes:
    """The package with one size in its header replaced."""
    fields = list(HEADER.unpack_from(package))
    index = rng.randrange(1, 6)
    bits = 16 if index < 3 else 64
    fields[index] = rng.choice((*NUMBERS, rng.getrandbits(bits), fields[index] + 1)) % 2**bits
    return HEADER.pack(*fields) + package[HEADER.size :]


def lying_cuts(package: bytes, rng: random.Random) -> bytes:
    """The package with numbers in its list of cuts replaced."""
    fields = list(HEADER.unpack_from(package))
    payload = package[START:]
    text = zstandard.decompress(payload[: fields[4]])
    records = [list(record) for record in RECORD.iter_unpack(text[: fields[2] * RECORD.size])]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        record = rng.choice(records)
        index = rng.randrange(6)
        number = rng.choice((*NUMBERS, 3, 6, 9, 10, 16, 26, 260, record[index] + 1))
        record[index] = number % 2**32 if index else number % 3
    rest = text[fields[2] * RECORD.size :]
    if rng.random() < 0.5:  # a size that fits, so that the lie is not found at once
        sizes = [math.prod(r[2:]) if r[0] == CODES else 4 * r[2] for r in records]
        fields[3] = min(sum(sizes) + len(rest), 2**64 - 1)
    frame = zstandard.compress(b"".join(RECORD.pack(*record) for record in records) + rest)
    fields[4], old = len(frame), fields[4]
    return HEADER.pack(*fields) + package[HEADER.size : START] + frame + payload[old:]


def other_codes(package: bytes, rng: random.Random) -> bytes:
    """The package with other coded weights."""
    *_, codes, _ = HEADER.unpack_from(package)
    return package[: len(package) - codes] + rng.choice((bytes, rng.randbytes))(codes)


def swollen(package: bytes, rng: random.Random) -> bytes:
    """The package with more coded weights than it has any use for, and a header that says so."""
    fields = list(HEADER.unpack_from(package))
    more = rng.choice((4, 1000, 10**6, 2**24))
    fields[5] += more
    return HEADER.pack(*fields) + package[HEADER.size :] + bytes(more)


def main() -> None:
    """Runs the fuzzer and prints what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        model, path = Path(folder, "model.onnx"), Path(folder, "model.pqd")
        model.write_bytes(tiny_model())
        pack(model, path)
        package, content = path.read_bytes(), model.read_bytes()
        mutators = [damaged] * 36 + [lying_header, lying_cuts, other_codes] * 12 + [swollen]
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, in_use + MEMORY))
        for number in range(options.count):
            mutate = rng.choice(mutators)
            mutant = mutate(package, rng)
            if mutate is not damaged or rng.random() < 1 / 3:
                mutant = forged(mutant)
            path.unlink()  # some file systems wait for the disk when a file is written over
            path.write_bytes(mutant)
            faulthandler.dump_traceback_later(HANG, exit=True)
            start = time.perf_counter()
            try:
                restored = unpack_bytes(path)
                outcomes["restored"] += 1
                assert restored == content, "a mutant restored another model"
            except UserError as error:
                message = str(error).removeprefix(f"{path}: ")
                assert "\n" not in message
                outcomes["".join(c for c in message if not c.isdigit())] += 1
            except BaseException:
                print(f"mutant {number} of seed {options.seed}: {mutant.hex()}")
                raise
            slowest = max(slowest, time.perf_counter() - start)
            faulthandler.cancel_dump_traceback_later()
    for outcome, times in outcomes.most_common():
        print(f"{times:8d}  {outcome}")
    print(f"{options.count} mutants, none crashed; the slowest took {slowest:.2f} s, all in")
    print(f"{MEMORY // 1_000_000} MB beyond the {in_use // 1_000_000} MB in use before (virtual)")


if __name__ == "__main__":
    main()
