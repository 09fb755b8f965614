"""Classifying image files with a deployed model."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from pqd.errors import UserError
from pqd.measure.cpu import cores
from pqd.runtimes import REFERENCE, get

KEYS = ("classes", "mean", "std", "image_size", "channels")


def predict(model: Path, images: list[Path]) -> list[tuple[Path, str, float]]:
    """Classifies images in the reference runtime; they are prepared as the model's metadata says.

    Args:
        model: a `model.onnx` or `model.pqd` written by pqd. A package is unpacked in memory.
        images: image files of any format that Pillow reads and of any size: the shorter side is
            resized to the model's, the centre is cut out.

    Returns:
        For each image its path, the name of the likeliest class and its probability in [0, 1].

    Raises:
        UserError: the model is none of pqd's, or an image cannot be read.
    """
    content = _read(model)
    settings = _metadata(model, content)
    session = get(REFERENCE).open(content, len(cores()))
    found = []
    for path in images:
        logits = session(_prepare(path, settings))[0].astype(np.float64)
        odds = np.exp(logits - logits.max())
        best = int(odds.argmax())
        found.append((path, str(settings["classes"][best]), float(odds[best] / odds.sum())))
    return found


def _read(model: Path) -> bytes:
    if model.suffix == ".pqd":
        from pqd.package import unpack_bytes

        return unpack_bytes(model)
    try:
        return model.read_bytes()
    except OSError as error:
        raise UserError(f"{model} cannot be read: {error.strerror}") from None


def _metadata(model: Path, content: bytes) -> dict[str, Any]:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        properties = onnx.load_from_string(content).metadata_props
        found = {p.key.removeprefix("pqd."): json.loads(p.value) for p in properties}
        return {key: found[key] for key in KEYS}
    except (DecodeError, json.JSONDecodeError, KeyError):
        raise UserError(
            f"{model} is no model.onnx or model.pqd written by pqd: "
            "it does not say its classes and how images are prepared"
        ) from None


def _prepare(path: Path, settings: dict[str, Any]) -> np.ndarray:
    """Reads an image as the data sets do: float32 [1, C, H, W], normalised."""
    from PIL import Image

    from pqd.data.imagefolder import decode

    size = settings["image_size"]
    try:
        pixels = decode(path, size, resize=True)
    except Exception as error:  # Pillow's decoders raise almost anything
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as an image: {reason}") from None
    if settings["channels"] == 1:
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))[:, :, None]
    mean, std = (np.float32(settings[key]) for key in ("mean", "std"))
    normalised = (pixels.astype(np.float32) / 255 - mean) / std
    return np.ascontiguousarray(normalised.transpose(2, 0, 1)[None])
