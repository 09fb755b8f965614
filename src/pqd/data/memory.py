"""Whether a data set fits into the memory there is: found out before it is decoded."""

import gc
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from pqd.config import DatasetConfig
from pqd.errors import UserError

MEMBERSHIP = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")
MARGIN = 1.1  # on top of the images: decoders, intermediate results, the allocator
BATCH = 128  # images, at least, whose padded copies are counted
STORED = 2**30  # bytes of images beyond which those in a file stay there
LARGEST = 2**16  # pixels, and images, up to which a value that fits is looked for


def holds(nbytes: int) -> bool:
    """Whether images in a file of its own are better in memory: few, that leave half of it free."""
    return nbytes <= min(STORED, available() // 2)


def check(
    cfg: DatasetConfig, train: int, test: int, side: int, channels: int, stored: bool
) -> None:
    """Refuses a data set that needs more memory than there is.

    What the network itself needs is not counted. The padded copies of a batch are, also where they
    will be on a GPU.

    Args:
        cfg: the image size, the splits and the padding.
        train: number of images of the train split as its makers split it.
        test: number of images of the test split.
        side: of the images as they are stored, in pixels.
        channels: 1 or 3.
        stored: the images are in a file of the final size; else they are in memory already, and
            are resized there.

    Raises:
        UserError: says how much is needed, how much there is, and what would fit.
    """
    free = available()

    def needed(changes: dict[str, Any]) -> int:
        return round(MARGIN * _peak(replace(cfg, **changes), train, test, side, channels, stored))

    need = needed({})
    if need > free:
        gc.collect()  # an earlier job of this process may have left its images in a cycle
        free = available()
    if need <= free:
        return
    size = cfg.image_size or side
    fitting = []
    for key, now in (("image_size", size), ("train_limit", min(cfg.train_limit or train, train))):
        costs = partial(lambda key, value: needed({key: value}), key)
        most = bisect_right(range(1, min(now, LARGEST)), free, key=costs)
        if most > 1:
            fitting.append(f"dataset.{key}={most}")
    raise UserError(
        f"{train + test} images of {size}x{size} pixels need {_gib(need)} of memory (decoded, cut "
        f"into splits, padded), {_gib(free)} are available; lower dataset.image_size, "
        "dataset.train_limit or dataset.augment.crop_padding"
        + (f" ({' or '.join(fitting)} would fit)" if fitting else "")
    )


def _peak(cfg: DatasetConfig, train: int, test: int, side: int, channels: int, stored: bool) -> int:
    """Bytes at the worst moment from reading the images to the first batch, beyond those held."""
    size = cfg.image_size or side
    image, padded = (n * n * channels for n in (size, size + 2 * cfg.augment.crop_padding))
    held_out = round(cfg.validation * train)
    kept = min(train - held_out, cfg.train_limit or train)
    batch = min(kept, BATCH) * (image + padded)
    if stored:
        return batch
    source = (train + test) * side * side * channels
    everything = (train + test) * image
    reading = everything + (source if size != side else 0)
    cutting = everything + (kept + held_out) * image
    training = (kept + held_out + test) * image + batch
    return max(reading, cutting, training) - source


def available() -> int:
    """Bytes that this process can still take: of the machine, its control groups and `ulimit`."""
    return max(0, min([psutil.virtual_memory().available, *_cgroups(), *_address_space()]))


def _cgroups() -> Iterator[int]:
    """What is left in every control group around this process that has a limit (v1 and v2)."""
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, limit, used, prefix = CGROUPS, "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            root, prefix = CGROUPS / "memory", "total_"
            limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        inner = Path(path.lstrip("/"))
        for group in (root / inner, *(root / outer for outer in inner.parents)):
            try:
                most, now = ((group / name).read_text().strip() for name in (limit, used))
                pairs = dict(
                    row.split() for row in (group / "memory.stat").read_text().splitlines()
                )
            except OSError:  # a container sees its own group as the root
                continue
            if most != "max":
                # Cached files are counted as used, but give way.
                cached = (
                    int(pairs.get(f"{prefix}{age}_file", 0)) for age in ("inactive", "active")
                )
                yield int(most) - int(now) + sum(cached)


def _address_space() -> Iterator[int]:
    """What `ulimit -v` leaves."""
    try:
        import resource
    except ImportError:  # Windows
        return
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most != resource.RLIM_INFINITY:
        yield most - psutil.Process().memory_info().vms


def _gib(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB"
