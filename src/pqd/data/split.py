"""What a split is, and how splits are cut, resized and hashed."""

import hashlib
import math
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pqd.data.stored import Images, StoredImages

CHUNK = 2**24  # bytes of images at once: bounds the memory of intermediate results


@dataclass(frozen=True)
class Split:
    """Images and what they show.

    Attributes:
        images: uint8 [N, H, W, C] on the CPU or in a file; C is 1 (gray) or 3 (RGB).
        labels: int64 [N].
    """

    images: Images
    labels: Tensor

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def take(self, indices: Tensor) -> "Split":
        """The images at `indices`, int64 [M]; a copy where they are in memory."""
        stored = isinstance(self.images, StoredImages)
        images = self.images.take(indices) if stored else self.images[indices]
        return Split(images, self.labels[indices])

    def resized(self, size: int) -> "Split":
        """The same with images of `size` x `size` pixels (see `resize`)."""
        if isinstance(self.images, StoredImages):  # of that size already
            return self
        return Split(resize(self.images, size), self.labels)

    def loaded(self) -> "Split":
        """The same with all images in memory."""
        return Split(self.images[:], self.labels)


class Source(NamedTuple):
    """A data set as it is stored: class names, and train and test as its makers split it."""

    classes: list[str]
    train: Split
    test: Split


def balanced_order(labels: Tensor, seed: int) -> Tensor:
    """Shuffles so that every prefix holds each class in its share of the whole.

    The image that comes k-th of n in its class is placed at (k + 1/2) / n, so a prefix of m of N
    images holds each class m n / N times, to within one image.

    Args:
        labels: int64 [N].
        seed: of the order within each class.

    Returns:
        A permutation of 0..N-1, int64 [N].
    """
    # The stream of RandomState is frozen for good; those of default_rng and torch are not.
    shuffled = np.random.RandomState(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels.numpy()[shuffled], kind="stable")]
    counts = np.bincount(labels.numpy())
    place = np.concatenate([(np.arange(n) + 0.5) / n for n in counts if n])
    return torch.from_numpy(by_class[np.argsort(place, kind="stable")])


def cut(labels: Tensor, first: int, seed: int) -> tuple[Tensor, Tensor]:
    """Cuts images in two, stratified, each part in the original order.

    Args:
        labels: int64 [N].
        first: number of images of the first part.
        seed: decides which images these are.

    Returns:
        The indices of both parts, int64 [first] and [N - first].
    """
    order = balanced_order(labels, seed)
    return order[:first].sort().values, order[first:].sort().values


def resize(images: Tensor, size: int) -> Tensor:
    """Resizes uint8 [N, H, W, C] to uint8 [N, size, size, C], bilinear with anti-aliasing."""
    count, height, width, channels = images.shape
    if (height, width) == (size, size):
        return images
    out = torch.empty((count, size, size, channels), dtype=torch.uint8)
    step = _chunk(size * size * channels)
    for source, target in zip(images.split(step), out.split(step), strict=True):
        resized = functional.interpolate(
            source.permute(0, 3, 1, 2), (size, size), mode="bilinear", antialias=True
        )
        target.copy_(resized.permute(0, 2, 3, 1))
    return out


def _chunk(image_bytes: int) -> int:
    """How many images are worked on at once."""
    return max(1, CHUNK // image_bytes)


def histogram(images: Tensor) -> Tensor:
    """How often each of the 256 values occurs in each channel of uint8 [N, H, W, C]: [C, 256]."""
    counts = torch.zeros(images.shape[-1], 256, dtype=torch.int64)
    for row, channel in zip(counts, images.unbind(-1), strict=True):
        for chunk in channel.split(_chunk(channel.shape[1:].numel())):
            row += torch.bincount(chunk.flatten(), minlength=256)
    return counts


def statistics(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel, in units of 1 (pixel / 255).

    They come from integer counts of the 256 values, summed in one order on every machine: the
    fingerprint of a data set holds them, to the last bit. A channel without any variation gets the
    deviation 1.

    Args:
        images: uint8 [N, H, W, C]; all of a file, where they are in one.

    Returns:
        Means and deviations, C numbers each.
    """
    values = np.arange(256) / 255
    means, deviations = [], []
    for counts in images.counts if isinstance(images, StoredImages) else histogram(images):
        share = counts.numpy() / int(counts.sum())
        means.append(mean := _sum(share * values))
        deviations.append(math.sqrt(_sum(share * (values - mean) ** 2)) or 1.0)
    return tuple(means), tuple(deviations)


def _sum(numbers: NDArray[np.float64]) -> float:
    """Sums float64 [256] in one fixed order, that of torch on x86.

    Libraries add in an order that depends on the width of the CPU's registers, and with it does
    the last bit.
    """
    for rows in (16, 4, 4):
        numbers = reduce(np.add, numbers.reshape(rows, -1))
    return numbers.item()


def fingerprint(facts: object, *splits: Split) -> str:
    """First 16 hex digits of the SHA-256 of `repr(facts)`, pixels and labels, in their order.

    For the pixels of a file stand its digest and which of its images there are.
    """
    digest = hashlib.sha256(repr(facts).encode())
    for split in splits:
        digest.update(repr(tuple(split.images.shape)).encode())
        if isinstance(split.images, StoredImages):
            digest.update(split.images.digest.encode())
            digest.update(split.images.rows.numpy().data)
        else:
            digest.update(split.images.numpy().data)
        digest.update(split.labels.numpy().data)
    return digest.hexdigest()[:16]
