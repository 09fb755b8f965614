"""The user's own images, at any depth below `root/train/<class>` and `root/test/<class>`."""

import logging
from pathlib import Path

import torch
from PIL import Image

from pqd.config import DatasetConfig
from pqd.data.decoding import Job, check_space, decoded, forget
from pqd.data.folders import list_classes, root_of, shown
from pqd.data.images import decode
from pqd.data.split import Source, Split
from pqd.errors import UserError

log = logging.getLogger(__name__)


def read(cfg: DatasetConfig) -> Source:
    """Reads all images as RGB, decoding each file once in all runs.

    Raises:
        UserError: folders or images are missing, train and test differ in their classes, a file
            cannot be read (unless `cfg.on_corrupt` is skip), sizes differ and `cfg.image_size` is
            not given, or the decoded images do not fit on the disk.
    """
    root = root_of(cfg, "train/<class>/* and test/<class>/*")
    train, test = (list_classes(root / split) for split in ("train", "test"))
    _check_classes(root, train, test)
    files = [file for split in (train, test) for listed in split.values() for file in listed]
    size = cfg.image_size or _size_of_all(files)
    jobs = [_job("train", train, size, cfg), _job("test", test, size, cfg)]
    check_space(jobs)
    splits = zip(jobs, (train, test), strict=True)
    return Source(list(train), *(_read_split(job, classes, cfg) for job, classes in splits))


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


def _job(split: str, classes: dict[str, list[Path]], size: int, cfg: DatasetConfig) -> Job:
    resize = cfg.image_size is not None
    return Job(
        f"imagefolder-{split}",
        [file for listed in classes.values() for file in listed],
        size,
        (size, resize and cfg.resize),
        lambda file: decode(file, size, resize=resize, how=cfg.resize),
    )


def _read_split(job: Job, classes: dict[str, list[Path]], cfg: DatasetConfig) -> Split:
    images, unreadable = decoded(job)
    if unreadable and cfg.on_corrupt == "refuse":
        forget(job)
        index, reason = next(iter(unreadable.items()))
        raise UserError(
            f"{len(unreadable)} of {len(job.files)} images cannot be read, first "
            f"{shown(job.files[index])} ({reason}); remove them or give dataset.on_corrupt=skip"
        )
    for index in unreadable:
        log.warning("skipped, as it cannot be read: %s", shown(job.files[index]))
    counts = torch.tensor([len(listed) for listed in classes.values()])
    labels = torch.repeat_interleave(counts)[images.rows]
    for label, (name, listed) in enumerate(classes.items()):
        if not (labels == label).any():
            raise UserError(f"{listed[0].parent}: none of the images of class {name} can be read")
    return Split(images, labels)
