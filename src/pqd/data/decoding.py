"""Files decoded into one file of pixels, a part at a time: a decode that dies goes on later."""

import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from errno import EINVAL
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pqd.data import cache
from pqd.data.folders import shown
from pqd.data.split import histogram
from pqd.data.stored import StoredImages
from pqd.errors import UserError, one_line
from pqd.files import read_json, write_json
from pqd.locks import held

PART = 2**26  # bytes of images that are decoded, written and recorded at a time
TELL_SECONDS = 30  # between two lines of the log

_OF_CONTENT = {None, EINVAL}  # the number of an error of Pillow's, and of reading where no byte is

Decode = Callable[[Path], np.ndarray]

log = logging.getLogger(__name__)


@dataclass
class Record:
    """How far the decoding of a list of files has come; written after each part, beside it."""

    done: int = 0  # files
    counts: list[list[int]] = field(default_factory=lambda: [[0] * 256] * 3)  # [C][256]
    digest: str = ""  # of the last digest and the part that followed, hexadecimal
    unreadable: dict[str, str] = field(default_factory=dict)  # reason by index in the list


@dataclass(frozen=True)
class Job:
    """What is decoded: RGB images of one size, in the order of the files.

    Attributes:
        name: for the people who find the file.
        files: the image files.
        side: of the decoded images, in pixels.
        settings: what else the pixels depend on.
        decode: returns uint8 [side, side, 3] of a file. A `UserError` ends the decoding; whatever
            else it raises is the reason why that file is left out.
    """

    name: str
    files: Sequence[Path]
    side: int
    settings: object
    decode: Decode

    @property
    def image(self) -> tuple[int, int, int]:
        """The shape of an image."""
        return self.side, self.side, 3

    @property
    def image_bytes(self) -> int:
        """Bytes of an image."""
        return self.side * self.side * 3


def decoded(job: Job) -> tuple[StoredImages, dict[int, str]]:
    """The decoded images of all readable files, from the cache where they were decoded before.

    While files are decoded, `PART` bytes of them are in memory, and one file per core.

    Returns:
        The images, and why files are left out, by their index.

    Raises:
        UserError: the disk is full, a file may not be read, or see `Job`.
    """
    name = cache.named(job.name, job.files, job.settings)
    pixels = cache.folder() / f"{name}.pixels"
    if (record := _read(job, pixels)).done == len(job.files):
        return _open(job, pixels, record)
    try:
        pixels.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(pixels.parent, os.W_OK):
            raise PermissionError(13, "not writable", str(pixels.parent))
    except OSError as error:
        log.warning("decoded images are not kept for the next run: %s", one_line(error))
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
            pixels = Path(temporary, name)  # its mapping outlives it
            return _open(job, pixels, _decode(job, pixels, Record()))
    with held(pixels.with_suffix(".lock"), lambda: log.info("another run decodes these images")):
        return _open(job, pixels, _decode(job, pixels, _read(job, pixels)))


def check_space(jobs: Sequence[Job]) -> None:
    """Sees to it that what is not decoded yet fits on the disk.

    Raises:
        UserError: it does not.
    """
    folder = cache.folder()
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    need = 0
    for job in jobs:
        record = _read(job, folder / f"{cache.named(job.name, job.files, job.settings)}.pixels")
        need += (len(job.files) - record.done) * job.image_bytes
    if need > free:
        side, count = jobs[0].side, sum(len(job.files) for job in jobs)
        raise UserError(
            f"{count} images of {side}x{side} pixels need {need / 2**30:,.2f} GiB of disk in "
            f"{folder}, {free / 2**30:,.2f} GiB are free; lower dataset.image_size, or set "
            "XDG_CACHE_HOME to a folder on a larger disk"
        )


def forget(job: Job) -> None:
    """Deletes what was decoded, so that the next run reads the files again."""
    pixels = cache.folder() / f"{cache.named(job.name, job.files, job.settings)}.pixels"
    for path in (_record(pixels), pixels):
        path.unlink(missing_ok=True)


def _record(pixels: Path) -> Path:
    return pixels.with_suffix(".json")


def _read(job: Job, pixels: Path) -> Record:
    """How far a decode has come that ended, or that died; from the start where that is unknown."""
    path = _record(pixels)
    try:
        record = Record(**read_json(path))
        if pixels.stat().st_size < record.done * job.image_bytes:
            raise ValueError(f"{pixels} is shorter than it says")
    except FileNotFoundError:
        return Record()
    except (OSError, ValueError, TypeError) as error:
        log.warning("%s cannot be read and is made anew: %s", path, one_line(error))
        return Record()
    return record


def _open(job: Job, pixels: Path, record: Record) -> tuple[StoredImages, dict[int, str]]:
    unreadable = {int(index): reason for index, reason in record.unreadable.items()}
    rows = torch.tensor([index for index in range(len(job.files)) if index not in unreadable])
    counts = torch.tensor(record.counts)
    return StoredImages(pixels, job.image, counts, record.digest, rows.long()), unreadable


def _decode(job: Job, pixels: Path, record: Record) -> Record:
    """Decodes what a record lacks; it is true to the file of pixels at every moment."""
    if record.done == len(job.files):  # another run has done it meanwhile
        return record
    size = len(job.files) * job.image_bytes / 2**30
    log.info(
        "decoding %d images, once: %.2f GiB of pixels are kept in %s", len(job.files), size, pixels
    )
    told, step = time.monotonic(), max(1, PART // job.image_bytes)
    try:
        if not record.done:  # a run that reads from an old file keeps its pixels
            pixels.unlink(missing_ok=True)
        with _opened(pixels) as file, ThreadPoolExecutor(os.cpu_count()) as pool:
            file.truncate(record.done * job.image_bytes)
            file.seek(0, os.SEEK_END)
            while record.done < len(job.files):
                images, bad = _part(job, job.files[record.done : record.done + step], pool)
                file.write(images.data)
                file.flush()
                os.fsync(file.fileno())
                record = _longer(record, images, bad)
                write_json(_record(pixels), asdict(record))
                if time.monotonic() - told > TELL_SECONDS:
                    told = time.monotonic()
                    log.info("decoded %d of %d images", record.done, len(job.files))
    except OSError as error:
        raise UserError(f"decoded images cannot be kept: {one_line(error)}") from error
    return record


def _part(
    job: Job, files: Sequence[Path], pool: ThreadPoolExecutor
) -> tuple[np.ndarray, dict[int, str]]:
    """Decodes a part of the files: images [B, H, W, C], and why some are black instead."""
    images = np.zeros((len(files), *job.image), np.uint8)
    reasons = pool.map(lambda file, image: _fill(job, file, image), files, images)
    return images, {i: reason for i, reason in enumerate(reasons) if reason is not None}


def _longer(record: Record, images: np.ndarray, bad: dict[int, str]) -> Record:
    good = torch.from_numpy(np.delete(images, list(bad), axis=0) if bad else images)
    digest = hashlib.sha256(record.digest.encode())
    digest.update(images.data)
    return Record(
        record.done + len(images),
        (torch.tensor(record.counts) + histogram(good)).tolist(),
        digest.hexdigest(),
        record.unreadable | {str(record.done + i): reason for i, reason in bad.items()},
    )


def _fill(job: Job, file: Path, image: np.ndarray) -> str | None:
    """Decodes a file into an image; returns why that is not possible.

    Raises:
        UserError: see `Job`; or the system refuses the file, which is no fault of its content,
            may pass, and so is not recorded.
    """
    try:
        image[:] = job.decode(file)
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise almost anything
        if isinstance(error, MemoryError) or getattr(error, "errno", None) not in _OF_CONTENT:
            reason = getattr(error, "strerror", None) or "out of memory"
            raise UserError(f"{shown(file)} cannot be read: {reason}") from error
        image[:] = 0
        return one_line(error, named=True)
    return None


@contextmanager
def _opened(pixels: Path) -> Iterator[Any]:
    pixels.touch()
    with pixels.open("r+b") as file:
        yield file
