"""Classifying image files with a deployed model."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pqd.data.images import RESIZE, decode
from pqd.errors import UserError, one_line
from pqd.measure.cpu import cores
from pqd.measure.graph import LIMIT, Input
from pqd.runtimes import REFERENCE, Session, get

LARGEST = 1e6  # of what pixels are shifted and scaled by


class Prediction(NamedTuple):
    """An image, the name of its likeliest class, and that class's probability in [0, 1]."""

    path: Path
    name: str
    probability: float


@dataclass(frozen=True)
class Metadata:
    """What a model's file says of its images and classes, see `pqd.export.onnx_file`."""

    classes: list[str]
    mean: list[float]
    std: list[float]
    image_size: int
    channels: int
    resize: str = "crop"  # as files do that do not say

    def check(self, model: Path, taken: list[int | str], given: list[int | str]) -> None:
        """Checks all that a file from elsewhere may say.

        Args:
            model: the file, for messages.
            taken: the shape of the model's input, numbers where they are fixed.
            given: that of its output.

        Raises:
            UserError: a value cannot be right; the message names the key and what is accepted.
        """

        def need(key: str, holds: bool, accepted: str) -> None:
            if not holds:
                found = one_line(json.dumps(getattr(self, key)))[:60]
                raise UserError(f"{model}: pqd.{key} is {found}; accepted: {accepted}")

        channels, *sides = taken[1:] if len(taken) == 4 else [None]
        images, logits = (f"[{', '.join(map(str, shape))}]" for shape in (taken, given))
        need(
            "channels",
            _whole(self.channels) and self.channels in (1, 3) and self.channels == channels,
            f"1 or 3, as the model's input {images} has",
        )
        need(
            "image_size",
            _whole(self.image_size) and sides == [self.image_size] * 2,
            f"the side, in pixels, of the model's input {images}",
        )
        need("resize", self.resize in list(RESIZE), f"one of {', '.join(RESIZE)}")
        names = self.classes if isinstance(self.classes, list) else []
        need(
            "classes",
            [len(names)] == given[1:] and all(isinstance(name, str) for name in names),
            f"a list of names, one for each of the model's logits {logits}",
        )
        for key, least in (("mean", -LARGEST), ("std", 1 / LARGEST)):
            values = getattr(self, key)
            need(
                key,
                isinstance(values, list)
                and len(values) == self.channels
                and all(_number(value) and least <= value <= LARGEST for value in values),
                f"a list of {self.channels} numbers from {least:g} to {LARGEST:g}",
            )


def predict(model: Path, images: list[Path]) -> Iterator[Prediction | UserError]:
    """Classifies images in the reference runtime; they are prepared as the model's metadata says.

    Args:
        model: a `model.onnx` or `model.pqd` written by pqd. A package is unpacked in memory.
        images: image files of any format that Pillow reads and of any size. Of a folder, all
            image files in it.

    Yields:
        A prediction for each image, or the error that names it and says why there is none.

    Raises:
        UserError: the model is none of pqd's or cannot be run, or a folder holds no image.
    """
    session, metadata, uint8 = _open(model)
    for path in [file for given in images for file in _files(given)]:
        try:
            logits = session(_prepare(path, metadata, uint8))[0].astype(np.float64)
            if not np.isfinite(logits).all():
                raise UserError(f"{path}: the model gives logits that are not finite")
        except UserError as error:
            yield error
            continue
        odds = np.exp(logits - logits.max())
        best = int(odds.argmax())
        yield Prediction(path, metadata.classes[best], float(odds[best] / odds.sum()))


def _read(model: Path) -> bytes:
    if model.suffix == ".pqd":
        from pqd.package import unpack_bytes

        return unpack_bytes(model)
    try:
        if model.stat().st_size > LIMIT:
            raise UserError(f"{model} is larger than 2 GiB, more than an ONNX file can be")
        return model.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {model}: {error.strerror}") from None


def _open(model: Path) -> tuple[Session, Metadata, bool]:
    """Opens a model, checks its metadata, and sees to it that it classifies an image.

    Returns:
        What runs it, what it says of itself, and whether it takes pixels, uint8 [B, H, W, C].

    Raises:
        UserError: it is none of pqd's, its metadata does not fit it, or the runtime refuses it.
    """
    import onnx
    from google.protobuf.message import DecodeError

    content = _read(model)
    try:
        network = onnx.load_from_string(content)
        found = {p.key.removeprefix("pqd."): p.value for p in network.metadata_props}
        known = {of.name for of in fields(Metadata)} & found.keys()
        metadata = Metadata(**{key: json.loads(found[key]) for key in known})
        taken, given = (_shape(values[0]) for values in (network.graph.input, network.graph.output))
    except (DecodeError, ValueError, LookupError, RecursionError, TypeError):
        raise UserError(
            f"{model} is no model.onnx or model.pqd written by pqd: "
            "it does not say its classes and how images are prepared"
        ) from None
    uint8 = network.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    if uint8 and len(taken) == 4:
        taken = [taken[0], taken[3], *taken[1:3]]
    metadata.check(model, taken, given)
    side = metadata.image_size
    batch = Input((metadata.channels, side, side), uint8).batch(1)
    try:
        session = get(REFERENCE).open(content, len(cores()))
        session(np.zeros(batch, np.uint8 if uint8 else np.float32))
    except Exception as error:  # a runtime raises almost anything
        raise UserError(f"{model} cannot be run: {one_line(error)}") from None
    return session, metadata, uint8


def _shape(value: Any) -> list[int | str]:
    """The dimensions of an ONNX input or output; a dimension of any size by its name."""
    return [dim.dim_value or dim.dim_param or "?" for dim in value.type.tensor_type.shape.dim]


def _files(path: Path) -> list[Path]:
    """The image files of a folder, of its folders too; or the file itself."""
    if not path.is_dir():
        return [path]
    from PIL import Image

    Image.init()
    readable = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files = [
        file
        for file in sorted(path.rglob("*"))
        if file.suffix.lower() in readable and not file.name.startswith(".") and file.is_file()
    ]
    if not files:
        raise UserError(f"{path} holds no image file (.png, .jpg, .webp, ...)")
    return files


def _prepare(path: Path, metadata: Metadata, uint8: bool) -> np.ndarray:
    """Reads an image as the data sets do: float32 [1, C, H, W], normalised, or uint8 pixels."""
    from PIL import Image

    from pqd.data.batches import affine

    try:
        pixels = decode(path, metadata.image_size, resize=True, how=metadata.resize)
    except Exception as error:  # Pillow's decoders raise almost anything
        reason = getattr(error, "strerror", None) or one_line(error)
        raise UserError(f"{path} cannot be read as an image: {reason}") from None
    if metadata.channels == 1:
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))[:, :, None]
    if uint8:
        return pixels[None]
    scale, shift = affine(metadata.mean, metadata.std)
    normalised = pixels.astype(np.float32) * scale + shift
    return np.ascontiguousarray(normalised.transpose(2, 0, 1)[None])


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
