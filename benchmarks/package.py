"""Size of a package against the Shannon floor and zstd; time and memory of packing and unpacking.

The floor is that of codes drawn independently, per tensor; "codes" is the range-coded part of the
package, which stands for the same numbers.

A model given gets a second row, of its weights shuffled within each tensor: that has the same
floor, and nothing for a context model to learn.

Without arguments, weights of ResNet-18's shapes (11.2 M) are drawn at random at four sparsities:
the worst case for a context model, whose gain shows on trained networks only.

    python benchmarks/package.py [MODEL.onnx ...]
"""

import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import zstandard

RESNET18 = [(64, 3, 3, 3), *[(64, 64, 3, 3)] * 4, (10, 512)]
for wide in (128, 256, 512):
    RESNET18 += [(wide, wide // 2, 3, 3), (wide, wide // 2, 1, 1), *[(wide, wide, 3, 3)] * 3]


def write_random_model(path: Path, sparsity: float) -> None:
    """Writes an ONNX file whose INT8 weights are independent draws."""
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(0)
    initializers = []
    for index, shape in enumerate(RESNET18):
        codes = np.rint(rng.laplace(0, 20, shape)).clip(-127, 127).astype(np.int8)
        codes[rng.random(shape) < sparsity] = 0
        initializers.append(numpy_helper.from_array(codes, f"weight{index}"))
    graph = helper.make_graph([], "resnet18", [], [], initializers)
    path.write_bytes(helper.make_model(graph).SerializeToString())


def write_shuffled(model: Path, path: Path) -> None:
    """Writes a copy whose INT8 weights stand in random order within their tensor."""
    import onnx
    from onnx import numpy_helper

    rng = np.random.default_rng(0)
    copy = onnx.load(model)
    for tensor in copy.graph.initializer:
        codes = numpy_helper.to_array(tensor)
        if codes.dtype == np.int8:
            shuffled = rng.permutation(codes.ravel()).reshape(codes.shape)
            tensor.CopyFrom(numpy_helper.from_array(shuffled, tensor.name))
    onnx.save(copy, path)


def peak_memory() -> int:
    """Peak resident memory of this process in bytes (of Linux; `ru_maxrss` would be inherited)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def measure(model: Path, folder: Path) -> tuple[int, int, int, float, float, int]:
    """Packs and unpacks in a fresh process.

    Returns:
        Floor, codes and package in bytes, seconds to pack and to unpack, peak memory in bytes
        beyond that of the imported libraries and of the model itself.
    """
    from pqd.package import floor_bytes, pack, unpack
    from pqd.package.format import HEADER

    before = peak_memory()
    package, restored = folder / "model.pqd", folder / "restored.onnx"
    start = time.perf_counter()
    size = pack(model, package)
    packed = time.perf_counter()
    unpack(package, restored)
    unpacked = time.perf_counter()
    memory = peak_memory() - before - model.stat().st_size
    assert restored.read_bytes() == model.read_bytes()
    *_, codes, _ = HEADER.unpack_from(package.read_bytes())
    return floor_bytes(model), codes, size, packed - start, unpacked - packed, memory


def main() -> None:
    """Prints one row per model."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = [Path(argument) for argument in sys.argv[1:]]
        models = []
        for index, model in enumerate(given):
            (folder / str(index)).mkdir()
            models += [model, folder / str(index) / f"{model.stem}, shuffled.onnx"]
            write_shuffled(*models[-2:])
        for sparsity in () if given else (50, 80, 90, 95):
            models.append(folder / f"random {sparsity} %.onnx")
            write_random_model(models[-1], sparsity / 100)
        print("| model | ONNX | floor | codes / floor | package | package / floor ", end="")
        print("| (package - 20 kB) / floor | zstd-19 / floor | pack | unpack ", end="")
        print("| peak memory beyond the model |")
        print("|---" * 11 + "|")
        for model in models:
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                figures = pool.submit(measure, model, folder).result()
            floor, codes, size, pack, unpack, memory = figures
            if not floor:
                raise SystemExit(f"{model} has no INT8 weights")
            zstd = len(zstandard.ZstdCompressor(level=19).compress(model.read_bytes()))
            print(
                f"| {model.stem} | {model.stat().st_size} | {floor} | {codes / floor:.4f} | {size} "
                f"| {size / floor:.4f} | {(size - 20_000) / floor:.4f} | {zstd / floor:.4f} "
                f"| {pack:.2f} s | {unpack:.2f} s | {memory / 1e6:.0f} MB |",
                flush=True,
            )


if __name__ == "__main__":
    main()
