"""One image file as RGB pixels."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pqd.data.folders import shown
from pqd.errors import UserError

BILINEAR = Image.Resampling.BILINEAR  # with anti-aliasing, as all of Pillow's

# How an image of any shape becomes a square: distorted; its shorter side resized and the centre
# cropped; its longer side resized and the rest black.
RESIZE: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "stretch": lambda image, size: image.resize((size, size), BILINEAR),
    "crop": lambda image, size: ImageOps.fit(image, (size, size), BILINEAR),
    "pad": lambda image, size: ImageOps.pad(image, (size, size), BILINEAR, color="black"),
}


def decode(file: Path, size: int, *, resize: bool, how: str = "crop") -> np.ndarray:
    """Decodes one file to RGB, uint8 [size, size, 3].

    Turned upright by its EXIF orientation; of an animation the first frame; transparent pixels on
    white; of 16-bit pixels the upper byte.

    Args:
        file: in any format that Pillow reads.
        size: the side in pixels.
        resize: resizes; else the image must have that size.
        how: a name in `RESIZE`.

    Raises:
        UserError: the image has another size and `resize` is false.
        Exception: it cannot be decoded; Pillow's decoders raise almost anything.
    """
    with Image.open(file) as image:
        if not resize and image.size != (size, size):
            raise UserError(
                f"images differ in size ({shown(file)} is {image.width}x{image.height}, others are "
                f"{size}x{size}); give dataset.image_size=N"
            )
        if resize:
            image.draft("RGB", (2 * size, 2 * size))  # large JPEGs: decode at a fraction
        upright = _to_rgb(ImageOps.exif_transpose(image), image.format)
    return np.asarray(RESIZE[how](upright, size) if resize else upright)


def _to_rgb(image: Image.Image, kind: str | None) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PNG", "PPM")):
        # Pillow's own conversion would clip 16 bits at 255.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("pixels of 32 bits have no known range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
