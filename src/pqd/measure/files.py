"""Sizes of a run's files."""

from pathlib import Path

from pqd.measure.graph import is_quantized

ZSTD_LEVEL = 19


def sizes(model: Path, package: Path, dense: Path, checkpoint: Path) -> dict[str, int]:
    """The sizes of a run's artifacts in bytes.

    Args:
        model: the final network, ONNX.
        package: the same as a pqd package.
        dense: the dense FP32 network, ONNX.
        checkpoint: the dense FP32 network's state dict, safetensors.

    Returns:
        `fp32_checkpoint`, `fp32_onnx`, `package`, and of a quantized model also `int8_onnx`,
        `int8_onnx_zstd` (zstd level 19) and `floor` (Shannon, of the integer codes).
    """
    import zstandard

    from pqd.package import floor_bytes

    found = {
        "fp32_checkpoint": checkpoint.stat().st_size,
        "fp32_onnx": dense.stat().st_size,
        "package": package.stat().st_size,
    }
    if is_quantized(model):
        compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
        found["int8_onnx"] = model.stat().st_size
        found["int8_onnx_zstd"] = len(compressor.compress(model.read_bytes()))
        found["floor"] = floor_bytes(model)
    return found
