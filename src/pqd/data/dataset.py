"""The data set of a run: read, resized, and cut into train, validation and test."""

from collections.abc import Callable
from dataclasses import dataclass

from pqd.config import DatasetConfig
from pqd.data import cifar, digits, imagefolder
from pqd.data.split import Source, Split, cut, fingerprint, resize, statistics
from pqd.errors import UserError, choices

READERS: dict[str, Callable[[DatasetConfig], Source]] = {
    "digits": digits.read,
    "cifar10": cifar.read,
    "cifar100": cifar.read,
    "imagefolder": imagefolder.read,
}


@dataclass(frozen=True)
class Dataset:
    """The images of a run.

    Attributes:
        name: `dataset.name`.
        classes: name of every class, by label.
        train: what is trained on.
        validation: held out of the train split; whatever is tuned is tuned on it.
        test: only for the final figures.
        mean: of every channel over train as its makers split it, so that it depends neither on
            the validation split nor on `train_limit`; in units of 1 (pixel / 255).
        std: standard deviation, likewise.
        fingerprint: 16 hex digits that change with any pixel, label or split.
    """

    name: str
    classes: list[str]
    train: Split
    validation: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str


def load_dataset(cfg: DatasetConfig) -> Dataset:
    """Reads the data set that `cfg` names, downloading CIFAR where it is missing.

    The validation split is stratified and comes out of train; `train_limit` then keeps a
    stratified part of the rest.

    Raises:
        UserError: an unknown name, missing or damaged data, or a split without images.
    """
    if cfg.name not in READERS:
        raise choices("dataset.name", cfg.name, READERS)
    source = READERS[cfg.name](cfg)
    train, test = (_resized(split, cfg.image_size) for split in (source.train, source.test))
    mean, std = statistics(train.images)
    validation, train = cut(train, round(cfg.validation * len(train)), cfg.split_seed)
    if cfg.train_limit is not None:
        train, _ = cut(train, cfg.train_limit, cfg.split_seed)
    if len(train) < 2 or not len(validation):
        raise UserError(
            f"dataset.validation={cfg.validation} and dataset.train_limit={cfg.train_limit} leave "
            f"{len(train)} images to train and {len(validation)} to validate; at least 2 and 1 are "
            f"needed"
        )
    identity = fingerprint((source.classes, mean, std), train, validation, test)
    return Dataset(cfg.name, source.classes, train, validation, test, mean, std, identity)


def _resized(split: Split, size: int | None) -> Split:
    return split if size is None else Split(resize(split.images, size), split.labels)
