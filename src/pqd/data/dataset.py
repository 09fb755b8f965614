"""The data set of a run: read, resized, and cut into train, validation and test."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pqd.config import DatasetConfig
from pqd.data import cifar, digits, imagefolder, memory
from pqd.data.split import Source, Split, cut, fingerprint, statistics
from pqd.data.stored import StoredImages
from pqd.errors import UserError, choices, one_line

log = logging.getLogger(__name__)

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
        mean: of every channel, what images are normalised with, in units of 1 (pixel / 255):
            `dataset.mean`, else that over train as its makers split it, so that it depends neither
            on the validation split nor on `train_limit`.
        std: standard deviation, likewise.
        fingerprint: 16 hex digits that change with any pixel, label or split.
        resize: `dataset.resize`, how images of other sizes are brought to this one.
    """

    name: str
    classes: list[str]
    train: Split
    validation: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    resize: str = "crop"


def load_dataset(cfg: DatasetConfig) -> Dataset:
    """Reads the data set that `cfg` names, downloading CIFAR where it is missing.

    The validation split is stratified and comes out of train; `train_limit` then keeps a
    stratified part of the rest.

    Raises:
        UserError: an unknown name, missing or damaged data, more images than fit into memory, or
            a split without images, a mean or deviation that does not fit the images.
    """
    if cfg.name not in READERS:
        raise choices("dataset.name", cfg.name, READERS)
    try:
        classes, train, test = READERS[cfg.name](cfg)
    except OSError as error:
        raise UserError(f"dataset.root={cfg.root} cannot be read: {one_line(error)}") from error
    for name, split in (("train", train), ("test", test)):
        if not len(split):
            raise UserError(f"the {name} split of {cfg.name} in {cfg.root} holds no images")
    side, channels = train.images.shape[2:]
    stored = isinstance(train.images, StoredImages)
    memory.check(cfg, len(train), len(test), side, channels, stored=stored)
    if cfg.image_size is not None:  # each split's original is freed before the next is resized
        train = train.resized(cfg.image_size)
        test = test.resized(cfg.image_size)
    mean, std = _normalisation(cfg, channels) or statistics(train.images)
    held_out, rest = cut(train.labels, round(cfg.validation * len(train)), cfg.split_seed)
    if cfg.train_limit is not None:
        rest = rest[cut(train.labels[rest], cfg.train_limit, cfg.split_seed)[0]]
    if len(rest) < 2 or not len(held_out):
        raise UserError(
            f"dataset.validation={cfg.validation} and dataset.train_limit={cfg.train_limit} leave "
            f"{len(rest)} images to train and {len(held_out)} to validate; at least 2 and 1 are "
            f"needed"
        )
    validation, train = train.take(held_out), train.take(rest)
    _warn_of_classes_without_images(classes, train)
    identity = fingerprint((classes, mean, std), train, validation, test)
    if stored and memory.holds(nbytes := sum(s.images.nbytes for s in (train, validation, test))):
        train, validation, test = (split.loaded() for split in (train, validation, test))
    elif stored:
        log.info("%.2f GiB of images stay in their file: batches are read from it", nbytes / 2**30)
    return Dataset(cfg.name, classes, train, validation, test, mean, std, identity, cfg.resize)


def _normalisation(
    cfg: DatasetConfig, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation as given; None where they are not."""
    if cfg.mean is None and cfg.std is None:
        return None
    if cfg.mean is None or cfg.std is None:
        missing = "mean" if cfg.mean is None else "std"
        raise UserError(f"dataset.{missing} is missing; give dataset.mean and dataset.std, or none")
    for key, values in (("mean", cfg.mean), ("std", cfg.std)):
        if len(values) != channels:
            raise UserError(
                f"dataset.{key}={values} must be {channels} numbers in units of 1 (pixel / 255), "
                "one for each channel"
            )
    return tuple(cfg.mean), tuple(cfg.std)


def _warn_of_classes_without_images(classes: list[str], train: Split) -> None:
    counts = torch.bincount(train.labels, minlength=len(classes)).tolist()
    if empty := [name for name, count in zip(classes, counts, strict=True) if not count]:
        log.warning(
            "no image of %d of %d classes is left to train on, first %s; lower dataset.validation "
            "or raise dataset.train_limit",
            len(empty),
            len(classes),
            empty[0],
        )
