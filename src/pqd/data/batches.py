"""Batches of normalised images; those for training are augmented on the device."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pqd.config import AugmentConfig
from pqd.data.dataset import Dataset
from pqd.data.mixing import mixes
from pqd.data.split import Split
from pqd.data.stored import Images

AHEAD = 2  # batches that are fetched before they are asked for


class Batch(NamedTuple):
    """What one training step sees; of mixed images, two labels each."""

    images: Tensor  # float32 [B, C, H, W] in channels_last, normalised
    labels: Tensor  # int64 [B]; of mixed images those that weigh more
    rows: Tensor  # int64 [B], which images of the train split these are
    others: Tensor | None = None  # int64 [B], the other labels of mixed images
    share: Tensor | None = None  # float32 [], what `labels` weigh, in [0.5, 1]

    def weighed(self, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """Returns a loss of labels [B]; of mixed images its mean over both, as they weigh."""
        of_labels = loss(self.labels)
        if self.others is None or self.share is None:
            return of_labels
        return self.share * of_labels + (1 - self.share) * loss(self.others)


class TrainBatches:
    """Random batches of the train split, augmented by one gather for the whole batch.

    The images stay on the device where they fit into half of what is free there; else the next
    batches are fetched and moved in the background. The offsets of the crop and the flip are folded
    into the index of every pixel, so nothing is copied per image and the host never waits for the
    device.
    Padding is black, as in torchvision's RandomCrop; cutout (DeVries and Taylor 2017,
    arXiv 1708.04552) puts in the mean colour, which is 0 after normalisation. Images are mixed
    last (`mixing`), each with one of its batch.
    """

    def __init__(
        self, dataset: Dataset, augment: AugmentConfig, batch_size: int, device: torch.device
    ) -> None:
        """Copies the train split to `device`, where it fits.

        Args:
            dataset: its train split is drawn from.
            augment: which augmentation.
            batch_size: images per batch, at most the whole split; the last, smaller batch of an
                epoch is dropped.
            device: where the batches are made.
        """
        self.images, self.device = _on(device, dataset.train.images), device
        _, self.height, self.width, self.channels = self.images.shape
        self.augment = augment
        self.batch_size = min(batch_size, len(dataset.train))
        self.mean, self.std = dataset.mean, dataset.std
        self.labels = dataset.train.labels.to(device)

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.labels) // self.batch_size

    def epoch(self, seed: int) -> Iterator[Batch]:
        """One pass over the train split in random order.

        Everything random comes from generators seeded with `seed`, of which that of crops and flips
        is the device's: the same seed gives the same batches, bit by bit on the CPU.
        """
        device, pad = self.device, self.augment.crop_padding
        generator = torch.Generator(device).manual_seed(seed)
        used = len(self) * self.batch_size

        def draw(high: int) -> tuple[Tensor, ...]:
            numbers = torch.randint(high, (used, 1), device=device, generator=generator)
            return numbers.split(self.batch_size)

        chosen = torch.randperm(len(self.labels), device=device, generator=generator)[:used]
        offsets = 2 * self.augment.crop_padding + 1
        tops, lefts = draw(offsets), draw(offsets)
        flips = draw(2 if self.augment.flip else 1)
        centres = zip(draw(self.height), draw(self.width), strict=True)
        row, column, image = (
            torch.arange(n, device=device) for n in (self.height, self.width, self.batch_size)
        )
        mixed = mixes(self.augment, seed, len(self), (self.height, self.width), device)
        wanted = chosen.to(self.images.device).split(self.batch_size)
        found, batches = fetched(self.images, wanted, device), chosen.split(self.batch_size)
        for originals, batch, top, left, flip, (y, x), mix in zip(
            found, batches, tops, lefts, flips, centres, mixed, strict=True
        ):
            padded = functional.pad(originals, (0, 0, pad, pad, pad, pad))
            rows = image[:, None] * padded.shape[1] + top + row
            columns = left + torch.where(flip.bool(), self.width - 1 - column, column)
            where = rows[:, :, None] * padded.shape[2] + columns[:, None, :]
            pixels = padded.view(-1, self.channels).index_select(0, where.view(-1))
            images = normalise(pixels.view(*where.shape, self.channels), self.mean, self.std)
            if self.augment.cutout:
                hole = self._side(row, y)[:, :, None] & self._side(column, x)[:, None, :]
                images.masked_fill_(hole[:, None], 0)
            if mix is None:
                yield Batch(images, self.labels[batch], batch)
            else:
                own = batch.flip(0) if mix.partner_weighs_more else batch
                labels = self.labels[own]
                yield Batch(mix.of(images), labels, own, labels.flip(0), mix.weight)

    def _side(self, position: Tensor, centre: Tensor) -> Tensor:
        """Which positions [n] lie in the square's side around each centre [B, 1]: bool [B, n]."""
        start = centre - self.augment.cutout // 2
        return (position >= start) & (position < start + self.augment.cutout)


def eval_batches(
    split: Split, dataset: Dataset, batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """All images of `split` in order, without augmentation; the last batch may be smaller.

    Args:
        split: a split of `dataset`.
        dataset: gives the mean and deviation.
        batch_size: images per batch.
        device: where the batches go.

    Yields:
        Images, float32 [B, C, H, W] in channels_last, normalised; labels, int64 [B].
    """
    batches = torch.arange(len(split)).split(batch_size)
    found = fetched(split.images, batches, device)
    for images, labels in zip(found, split.labels.split(batch_size), strict=True):
        yield normalise(images, dataset.mean, dataset.std), labels.to(device)


def fetched(images: Images, batches: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """The images of each batch on `device`; those that are not there come in the background.

    Args:
        images: to choose from.
        batches: which, int64 [B] each, where `images` are.
        device: where they are wanted.

    Yields:
        uint8 [B, H, W, C].
    """
    if isinstance(images, Tensor) and images.device.type == device.type:
        for rows in batches:
            yield images.index_select(0, rows)
        return
    copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def fetch(rows: Tensor) -> Tensor:
        found = images[rows]
        if copies is None:
            return found
        with torch.cuda.stream(copies):
            moved = found.pin_memory().to(device, non_blocking=True)
        copies.synchronize()
        return moved

    with ThreadPoolExecutor(1) as background:
        coming: deque[Future[Tensor]] = deque()
        try:
            for rows in batches:
                coming.append(background.submit(fetch, rows))
                if len(coming) > AHEAD:
                    yield _arrived(coming.popleft())
            while coming:
                yield _arrived(coming.popleft())
        finally:
            for fetching in coming:  # of a reader that stopped early
                fetching.cancel()


def _arrived(fetching: Future[Tensor]) -> Tensor:
    images = fetching.result()
    if images.is_cuda:  # its memory is not to be reused before this stream has read it
        images.record_stream(torch.cuda.current_stream(images.device))
    return images


def _on(device: torch.device, images: Images) -> Images:
    """The images on `device`, or where they are if they do not fit into half of its free memory."""
    if device.type != "cuda" or not isinstance(images, Tensor):
        return images
    fits = images.nbytes <= torch.cuda.mem_get_info(device)[0] // 2
    return images.to(device) if fits else images


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(pixel / 255 - mean) / std.

    Args:
        images: uint8 [B, H, W, C].
        mean: C numbers, in units of 1.
        std: C numbers, in units of 1.

    Returns:
        float32 [B, C, H, W] in channels_last.
    """
    batch, height, width, channels = images.shape
    scale, shift = _affine(mean, std, width, images.device)
    rows = images.reshape(batch * height, width * channels).float().mul_(scale).add_(shift)
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


def affine(
    mean: Sequence[float], std: Sequence[float]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What pixels are multiplied by and what is added to normalise them, float32 [C] each."""
    scale = [1 / (255 * s) for s in std]
    shift = [-m / s for m, s in zip(mean, std, strict=True)]
    return np.array(scale, np.float32), np.array(shift, np.float32)


@lru_cache(maxsize=16)
def _affine(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Scale and shift of one row of pixels, float32 [W * C].

    Made once, so that no batch waits for a copy to the device; as long as a row, because a
    multiplication over an innermost dimension of 3 measured 10 times slower on the CPU.
    """
    scale, shift = affine(mean, std)
    with torch.inference_mode(False):  # else tensors made during an evaluation are of no use later
        return (
            torch.from_numpy(scale).repeat(width).to(device),
            torch.from_numpy(shift).repeat(width).to(device),
        )
