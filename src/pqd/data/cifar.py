"""CIFAR-10 and CIFAR-100 from parquet shards, from torchvision's files, or downloaded.

A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

import logging
import warnings
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pqd.config import DatasetConfig
from pqd.data import cifar_parquet
from pqd.data.folders import root_of
from pqd.data.split import Source, Split
from pqd.errors import UserError, one_line
from pqd.locks import held

log = logging.getLogger(__name__)

DEFAULT_ROOT = Path("data")  # of `conf/dataset/cifar*.yaml`; made where it is missing

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
    root = root_of(cfg, f"{cfg.name} or that it is to be downloaded to")
    for found in ((root / cfg.name).rglob("train-*.parquet"), root.glob("train-*.parquet")):
        if first := min(found, default=None):
            train, test = cifar_parquet.read(
                cfg.name, first.parent, variant.label_column, len(variant.classes)
            )
            return Source(variant.classes, train, test)
    if not root.exists() and Path(cfg.root) != DEFAULT_ROOT:
        raise _missing(
            cfg.name,
            root,
            "this folder does not exist, and is not made, as its name may be mistyped; make it to "
            "have the data downloaded to it",
        )
    try:
        return Source(variant.classes, *_read_torchvision(cfg.name, root))
    except (OSError, RuntimeError, HTTPException, UserError) as error:
        reason = one_line(error, named=not isinstance(error, UserError))
        raise _missing(cfg.name, root, reason) from error


def _missing(name: str, root: Path, reason: str) -> UserError:
    variant = VARIANTS[name]
    return UserError(
        f"{name} is neither in {root} nor could it be downloaded ({reason}); three ways to provide "
        f"it: (1) run once with access to the internet; (2) put torchvision's folder "
        f"{variant.torchvision_folder} into {root}; (3) put the parquet shards train-* and test-* "
        f"of the Hugging Face data set {variant.hub_name} into {root / name}. Another place is set "
        f"by dataset.root or PQD_DATA"
    )


def _read_torchvision(name: str, root: Path) -> list[Split]:
    """Reads train and test from torchvision's files, which are downloaded where they are missing.

    Their MD5 is checked first, so that no foreign pickle is loaded.

    Raises:
        OSError, RuntimeError, HTTPException, UserError: they are neither there nor downloaded.
    """
    import pqd.backbones._torchvision  # noqa: F401, I001  must come before torchvision
    from torchvision import datasets

    variant = VARIANTS[name]
    kind = getattr(datasets, variant.torchvision_class)
    folder = root / name if (root / name / variant.torchvision_folder).is_dir() else root

    def load() -> list[Split]:
        with warnings.catch_warnings():  # numpy 2.4 finds these old pickles deprecated
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            return [_split(kind(folder, train=train)) for train in (True, False)]

    try:
        return load()
    except RuntimeError:  # missing, incomplete or damaged
        folder.mkdir(exist_ok=True)
        with held(folder / f".{name}.lock", lambda: log.info("another run downloads %s", name)):
            kind(folder, download=True)
        return load()


def _split(data: Any) -> Split:
    labels = torch.tensor(data.targets, dtype=torch.int64)
    return Split(torch.from_numpy(np.ascontiguousarray(data.data)), labels)
