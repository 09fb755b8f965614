"""The user's own images, at any depth below `root/train/<class>` and `root/test/<class>`."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pqd.config import DatasetConfig
from pqd.data import memory
from pqd.data.cache import decoded
from pqd.data.folders import list_classes, root_of, shown
from pqd.data.images import decode
from pqd.data.split import Source, Split
from pqd.errors import UserError, one_line

log = logging.getLogger(__name__)


def read(cfg: DatasetConfig) -> Source:
    """Reads all images as RGB, decoding each file once in all runs.

    Raises:
        UserError: folders or images are missing, train and test differ in their classes, a file
            cannot be read (unless `cfg.on_corrupt` is skip), sizes differ and `cfg.image_size` is
            not given, or the images do not fit into memory.
    """
    root = root_of(cfg, "train/<class>/* and test/<class>/*")
    train, test = (list_classes(root / split) for split in ("train", "test"))
    _check_classes(root, train, test)
    files = [[file for listed in split.values() for file in listed] for split in (train, test)]
    size = cfg.image_size or _size_of_all(files[0] + files[1])
    memory.check(cfg, len(files[0]), len(files[1]), size, 3, held=False)
    return Source(
        list(train), _read_split("train", train, size, cfg), _read_split("test", test, size, cfg)
    )


def _check_classes(root: Path, train: dict[str, list[Path]], test: dict[str, list[Path]]) -> None:
    for here, there, missing in (
        ("train", "test", sorted(train.keys() - test.keys())),
        ("test", "train", sorted(test.keys() - train.keys())),
    ):
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(
                f"class {missing[0]}{more} is in {root / here} but not in {root / there}; "
                f"both need the same folders"
            )
    if len(train) < 2:
        raise UserError(f"{root / 'train'} holds {len(train)} class folders; at least 2 are needed")


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
                f"{shown(file)} is not square ({width}x{height} pixels); give dataset.image_size=N"
            )
        return width
    raise UserError(f"{shown(files[0])} and all other images cannot be read")


def _read_split(split: str, classes: dict[str, list[Path]], size: int, cfg: DatasetConfig) -> Split:
    files = [file for listed in classes.values() for file in listed]
    labels = torch.repeat_interleave(torch.tensor([len(listed) for listed in classes.values()]))
    tensors = decoded(
        f"imagefolder-{split}",
        files,
        (size, cfg.image_size and cfg.resize, cfg.on_corrupt),
        lambda: _decode_all(files, size, cfg),
    )
    kept = tensors["kept"]
    for index in (~kept).nonzero().flatten().tolist():
        log.warning("skipped, as it cannot be read: %s", shown(files[index]))
    for label, (name, listed) in enumerate(classes.items()):
        if not (labels[kept] == label).any():
            raise UserError(f"{listed[0].parent}: none of the images of class {name} can be read")
    return Split(tensors["images"], labels[kept])


def _decode_all(files: list[Path], size: int, cfg: DatasetConfig) -> dict[str, Tensor]:
    """Decodes `files`: images, uint8 [M, size, size, 3], and kept, bool [N], which files they are.

    Raises:
        UserError: see `read`.
    """
    log.info("decoding %d images, once: the pixels are kept for the next runs", len(files))
    images = np.empty((len(files), size, size, 3), np.uint8)

    def fill(index: int) -> str | None:
        try:
            resize = cfg.image_size is not None
            images[index] = decode(files[index], size, resize=resize, how=cfg.resize)
        except UserError:
            raise
        except Exception as error:  # Pillow's decoders raise almost anything
            return f"{shown(files[index])} ({one_line(error, named=True)})"
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        problems = list(pool.map(fill, range(len(files))))
    corrupt = [problem for problem in problems if problem]
    if corrupt and cfg.on_corrupt == "refuse":
        raise UserError(
            f"{len(corrupt)} of {len(files)} images cannot be read, first {corrupt[0]}; remove "
            f"them or give dataset.on_corrupt=skip"
        )
    kept = [index for index, problem in enumerate(problems) if problem is None]
    for place, index in enumerate(kept if corrupt else ()):
        images[place] = images[index]  # in place: a copy of all may not fit into memory
    return {
        "images": torch.from_numpy(images[: len(kept)]),
        "kept": torch.tensor([problem is None for problem in problems]),
    }
