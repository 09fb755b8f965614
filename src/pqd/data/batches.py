"""Batches of normalised images; those for training are augmented on the device."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pqd.config import AugmentConfig
from pqd.data.dataset import Dataset
from pqd.data.split import Split
from pqd.errors import UserError


class Batch(NamedTuple):
    """What one training step sees."""

    images: Tensor  # float32 [B, C, H, W] in channels_last, normalised
    labels: Tensor  # int64 [B]
    rows: Tensor  # int64 [B], which images of the train split these are


class TrainBatches:
    """Random batches of the train split, augmented by one gather for the whole batch.

    The padded images stay on the device; the offsets of the crop and the flip are folded into the
    index of every pixel, so nothing is copied per image and the host never waits for the device.
    Padding is black, as in torchvision's RandomCrop; cutout (DeVries and Taylor 2017,
    arXiv 1708.04552) puts in the mean colour, which is 0 after normalisation.
    """

    def __init__(
        self, dataset: Dataset, augment: AugmentConfig, batch_size: int, device: torch.device
    ) -> None:
        """Copies the padded train split to `device`.

        Args:
            dataset: its train split is drawn from.
            augment: which augmentation.
            batch_size: images per batch, at most the whole split; the last, smaller batch of an
                epoch is dropped.
            device: where the batches are made.

        Raises:
            UserError: the images do not fit into the device's memory.
        """
        images = dataset.train.images
        _, self.height, self.width, self.channels = images.shape
        self.augment = augment
        self.batch_size = min(batch_size, len(dataset.train))
        self.mean, self.std = dataset.mean, dataset.std
        pad = augment.crop_padding
        try:
            padded = functional.pad(images.to(device), (0, 0, pad, pad, pad, pad))
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{len(images)} images ({images.nbytes / 2**30:.1f} GiB) do not fit into the memory"
                f" of {device}; lower dataset.image_size or dataset.train_limit"
            ) from error
        self.padded_height, self.padded_width = padded.shape[1:3]
        self.pixels = padded.view(-1, self.channels)
        self.labels = dataset.train.labels.to(device)

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.labels) // self.batch_size

    def epoch(self, seed: int) -> Iterator[Batch]:
        """One pass over the train split in random order.

        Everything random comes from one generator on the device, seeded with `seed`: the same seed
        gives the same batches, bit by bit on the CPU.
        """
        device = self.labels.device
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
        row, column = (torch.arange(n, device=device) for n in (self.height, self.width))
        for batch, top, left, flip, (y, x) in zip(
            chosen.split(self.batch_size), tops, lefts, flips, centres, strict=True
        ):
            rows = batch[:, None] * self.padded_height + top + row
            columns = left + torch.where(flip.bool(), self.width - 1 - column, column)
            where = rows[:, :, None] * self.padded_width + columns[:, None, :]
            pixels = self.pixels.index_select(0, where.view(-1))
            images = normalise(pixels.view(*where.shape, self.channels), self.mean, self.std)
            if self.augment.cutout:
                hole = self._side(row, y)[:, :, None] & self._side(column, x)[:, None, :]
                images.masked_fill_(hole[:, None], 0)
            yield Batch(images, self.labels[batch], batch)

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
    for images, labels in zip(
        split.images.split(batch_size), split.labels.split(batch_size), strict=True
    ):
        yield normalise(images.to(device), dataset.mean, dataset.std), labels.to(device)


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
