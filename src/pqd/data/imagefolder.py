"""The user's own images: `root/train/<class>/*` and `root/test/<class>/*`."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image, ImageOps
from torch import Tensor

from pqd.config import DatasetConfig
from pqd.data.cache import decoded
from pqd.data.split import Source, Split
from pqd.errors import UserError

log = logging.getLogger(__name__)


def read(cfg: DatasetConfig) -> Source:
    """Reads all images as RGB, decoding each file once in all runs.

    Raises:
        UserError: folders or images are missing, train and test differ in their classes, a file
            cannot be read (unless `cfg.on_corrupt` is skip), sizes differ and `cfg.image_size` is
            not given, or the images do not fit into memory.
    """
    if not cfg.root:
        raise UserError(
            "dataset.root is not set; give the folder that holds train/<class>/* and "
            "test/<class>/*, e.g. dataset.root=/path/to/images"
        )
    root = Path(cfg.root).expanduser()
    found = {split: _list(root / split) for split in ("train", "test")}
    classes = _common_classes(root, found)
    files = [file for split in found.values() for name in classes for file in split[name]]
    size = cfg.image_size or _size_of_all(files)
    train, test = (_read_split(split, found[split], size, cfg) for split in ("train", "test"))
    return Source(classes, train, test)


def _read_split(split: str, classes: dict[str, list[Path]], size: int, cfg: DatasetConfig) -> Split:
    files = [file for listed in classes.values() for file in listed]
    labels = torch.repeat_interleave(torch.tensor([len(listed) for listed in classes.values()]))
    tensors = decoded(
        f"imagefolder-{split}",
        files,
        (size, cfg.image_size is None, cfg.on_corrupt),
        lambda: _decode_all(files, size, cfg),
    )
    kept = tensors["kept"]
    for index in (~kept).nonzero().flatten().tolist():
        log.warning("skipped, as it cannot be read: %s", files[index])
    for label, (name, listed) in enumerate(classes.items()):
        if not (labels[kept] == label).any():
            raise UserError(f"{listed[0].parent}: none of the images of class {name} can be read")
    return Split(tensors["images"], labels[kept])


def _list(folder: Path) -> dict[str, list[Path]]:
    """The image files of every class. Hidden entries and other files are ignored."""
    if not folder.is_dir():
        raise UserError(f"{folder} is missing; images are read from {folder}/<class>/*")
    Image.init()
    readable = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    classes = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or not entry.is_dir():
            continue
        classes[entry.name] = [
            file
            for file in sorted(entry.iterdir())
            if file.suffix.lower() in readable and not file.name.startswith(".") and file.is_file()
        ]
        if not classes[entry.name]:
            raise UserError(f"{entry} holds no image file (.png, .jpg, .webp, ...)")
    return classes


def _common_classes(root: Path, found: dict[str, dict[str, list[Path]]]) -> list[str]:
    for here, there in (("train", "test"), ("test", "train")):
        if missing := sorted(set(found[here]) - set(found[there])):
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(
                f"class {missing[0]}{more} is in {root / here} but not in {root / there}; "
                f"both need the same folders"
            )
    if len(found["train"]) < 2:
        raise UserError(
            f"{root / 'train'} holds {len(found['train'])} class folders; at least 2 are needed"
        )
    return list(found["train"])


def _size_of_all(files: list[Path]) -> int:
    """The side that square images of one size share, in pixels, by the first readable one."""
    for file in files:
        try:
            with Image.open(file) as image:
                width, height = image.size
        except Exception:  # Pillow's decoders raise almost anything
            continue  # reported when it is decoded
        if width != height:
            raise UserError(
                f"{file} is not square ({width}x{height} pixels); give dataset.image_size=N"
            )
        return width
    raise UserError(f"{files[0]} and all other images cannot be read")


def _decode_all(files: list[Path], size: int, cfg: DatasetConfig) -> dict[str, Tensor]:
    """Decodes `files`: images, uint8 [M, size, size, 3], and kept, bool [N], which files they are.

    Raises:
        UserError: see `read`.
    """
    need, free = len(files) * size * size * 3, psutil.virtual_memory().available
    if need > free:
        raise UserError(
            f"{len(files)} images of {size}x{size} pixels need {need / 2**30:.1f} GiB of memory, "
            f"of which {free / 2**30:.1f} GiB are free; lower dataset.image_size"
        )
    log.info("decoding %d images, once: the pixels are kept for the next runs", len(files))
    images = np.empty((len(files), size, size, 3), np.uint8)

    def fill(index: int) -> str | None:
        try:
            images[index] = decode(files[index], size, resize=cfg.image_size is not None)
        except UserError:
            raise
        except Exception as error:  # Pillow's decoders raise almost anything
            return " ".join(f"{files[index]} ({type(error).__name__}: {error})".split())
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = list(pool.map(fill, range(len(files))))
    corrupt = [problem for problem in problems if problem]
    if corrupt and cfg.on_corrupt == "refuse":
        raise UserError(
            f"{len(corrupt)} of {len(files)} images cannot be read, first {corrupt[0]}; remove "
            f"them or give dataset.on_corrupt=skip"
        )
    kept = torch.tensor([problem is None for problem in problems])
    pixels = torch.from_numpy(images)
    return {"images": pixels[kept] if corrupt else pixels, "kept": kept}


def decode(file: Path, size: int, *, resize: bool) -> np.ndarray:
    """Decodes one file to RGB, uint8 [size, size, 3].

    Turned upright by its EXIF orientation; of an animation the first frame; transparent pixels on
    white; of 16-bit pixels the upper byte. Resized so that the shorter side is `size`, then
    cropped at the centre, bilinear with anti-aliasing.
    """
    with Image.open(file) as image:
        if not resize and image.size != (size, size):
            raise UserError(
                f"images differ in size ({file} is {image.width}x{image.height}, others are "
                f"{size}x{size}); give dataset.image_size=N"
            )
        if resize:
            image.draft("RGB", (2 * size, 2 * size))  # large JPEGs: decode at a fraction
        upright = _to_rgb(ImageOps.exif_transpose(image), image.format)
    if resize:
        upright = ImageOps.fit(upright, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(upright)


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
