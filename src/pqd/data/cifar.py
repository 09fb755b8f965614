"""CIFAR-10 and CIFAR-100 from parquet shards, from torchvision's files, or downloaded.

A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

import io
import logging
import re
import warnings
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pqd.config import DatasetConfig
from pqd.data.cache import decoded
from pqd.data.split import Source, Split
from pqd.errors import UserError

log = logging.getLogger(__name__)

CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""


@dataclass(frozen=True)
class Variant:
    """What differs between the two data sets."""

    classes: list[str]
    label_column: str  # of the parquet shards
    torchvision_class: str
    torchvision_folder: str
    hub_name: str  # of the parquet shards' data set on the Hugging Face hub


VARIANTS = {
    "cifar10": Variant(
        CIFAR10.split(), "label", "CIFAR10", "cifar-10-batches-py", "uoft-cs/cifar10"
    ),
    "cifar100": Variant(
        CIFAR100.split(), "fine_label", "CIFAR100", "cifar-100-python", "uoft-cs/cifar100"
    ),
}


def read(cfg: DatasetConfig) -> Source:
    """Reads `cfg.name` (cifar10 or cifar100) from `cfg.root`, or downloads it to there.

    Looked for in this order: `train-*.parquet` and `test-*.parquet` anywhere below
    `root/<name>`, or in `root` itself; torchvision's folder in `root` or `root/<name>`.

    Raises:
        UserError: the data is damaged, or missing and cannot be downloaded.
    """
    variant = VARIANTS[cfg.name]
    root = Path(cfg.root).expanduser().absolute()
    for found in ((root / cfg.name).rglob("train-*.parquet"), root.glob("train-*.parquet")):
        if first := min(found, default=None):
            return _read_parquet(cfg.name, variant, first.parent)
    return _read_torchvision(cfg.name, variant, root)


def _read_parquet(name: str, variant: Variant, folder: Path) -> Source:
    shards = {split: sorted(folder.glob(f"{split}-*.parquet")) for split in ("train", "test")}
    for split, files in shards.items():
        _check_complete(split, files, folder)

    def decode() -> dict[str, Tensor]:
        log.info("decoding %s, once: the pixels are kept for the next runs", name)
        tensors = {}
        for split, files in shards.items():
            parts = [_decode_shard(file, variant) for file in files]
            tensors[f"{split}.images"] = torch.cat([images for images, _ in parts])
            tensors[f"{split}.labels"] = torch.cat([labels for _, labels in parts])
        return tensors

    tensors = decoded(name, shards["train"] + shards["test"], variant.label_column, decode)
    train, test = (Split(tensors[f"{s}.images"], tensors[f"{s}.labels"]) for s in shards)
    return Source(variant.classes, train, test)


def _check_complete(split: str, files: list[Path], folder: Path) -> None:
    """Compares the shards with the number of shards that their names tell (-00000-of-00004)."""
    numbered = [m for f in files if (m := re.search(r"-of-(\d+)\.parquet$", f.name))]
    wanted = max((int(m[1]) for m in numbered), default=1)
    if len(files) != wanted:
        raise UserError(f"{folder} holds {len(files)} of {wanted} shards {split}-*.parquet")


def _decode_shard(file: Path, variant: Variant) -> tuple[Tensor, Tensor]:
    """Decodes one shard: uint8 [N, 32, 32, 3], int64 [N]."""
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(file, columns=["img", variant.label_column])
        encoded = table["img"].combine_chunks().field("bytes").to_pylist()
        labels = table[variant.label_column].to_numpy().astype(np.int64)
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        raise UserError(
            f"{file} cannot be read as parquet with the columns img (struct of bytes, path) and "
            f"{variant.label_column}: {_one_line(error)}"
        ) from error
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(variant.classes):
        raise UserError(f"{file} has labels outside 0 to {len(variant.classes) - 1}")
    images = np.empty((len(encoded), 32, 32, 3), np.uint8)
    for row, content in enumerate(encoded):
        try:
            images[row] = _decode(content)
        except Exception as error:  # Pillow's decoders raise almost anything
            raise UserError(f"{file}, row {row}: no readable image: {_one_line(error)}") from error
    return torch.from_numpy(images), torch.from_numpy(labels)


def _decode(content: bytes) -> np.ndarray:
    """Decodes one image of 32x32 pixels."""
    from PIL import Image

    image: Image.Image = Image.open(io.BytesIO(content), formats=("PNG", "WEBP"))
    if image.size != (32, 32):
        raise ValueError(f"its size is {image.width}x{image.height}, not 32x32")
    if image.mode != "RGB":
        image = image.convert("RGB")
    return np.frombuffer(image.tobytes(), np.uint8).reshape(32, 32, 3)


def _read_torchvision(name: str, variant: Variant, root: Path) -> Source:
    """Reads torchvision's files after checking their MD5, so that no foreign pickle is loaded."""
    import pqd.backbones._torchvision  # noqa: F401, I001  must come before torchvision
    from filelock import FileLock
    from torchvision import datasets

    kind = getattr(datasets, variant.torchvision_class)
    folder = root / name if (root / name / variant.torchvision_folder).is_dir() else root

    def load() -> list[Split]:
        with warnings.catch_warnings():  # numpy 2.4 finds these old pickles deprecated
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            return [_split(kind(folder, train=train)) for train in (True, False)]

    try:
        try:
            train, test = load()
        except RuntimeError:  # missing, incomplete or damaged
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / f".{name}.lock"):
                kind(folder, download=True)
            train, test = load()
    except (OSError, RuntimeError, HTTPException) as error:
        raise UserError(
            f"{name} is neither in {root} nor could it be downloaded ({_one_line(error)}); three "
            f"ways to provide it: (1) run once with access to the internet; (2) put torchvision's "
            f"folder {variant.torchvision_folder} into {root}; (3) put the parquet shards train-* "
            f"and test-* of the Hugging Face data set {variant.hub_name} into {root / name}. "
            f"Another place is set by dataset.root or PQD_DATA"
        ) from error
    return Source(variant.classes, train, test)


def _split(data: Any) -> Split:
    labels = torch.tensor(data.targets, dtype=torch.int64)
    return Split(torch.from_numpy(np.ascontiguousarray(data.data)), labels)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
