"""`model.pqd`: an ONNX file whose INT8 weights are entropy-coded, restored bit for bit."""

from pqd.package.format import floor_bytes, pack, unpack, unpack_bytes, weight_bytes

__all__ = ["floor_bytes", "pack", "unpack", "unpack_bytes", "weight_bytes"]
