"""Mixed images: mixup and cutmix.

One share is drawn for a whole batch, as by the authors of both. The first image is mixed with the
last, the second with the last but one, and so on: batches are in random order already.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pqd.config import AugmentConfig

Box = tuple[slice, slice]  # rows and columns


@dataclass(frozen=True)
class Mix:
    """How the images of one batch are mixed."""

    share: float  # that an image keeps
    weight: Tensor  # float32 []: of whatever there is more of, this or its partner
    box: Box | None  # of cutmix, what the partner takes; None is mixup

    @property
    def partner_weighs_more(self) -> bool:
        """Whether the label of a mixed image is rather its partner's."""
        return self.share < 0.5

    def of(self, images: Tensor) -> Tensor:
        """Mixes images [B, C, H, W], maybe in place."""
        partners = images.flip(0)
        if self.box is None:
            return images.lerp_(partners, 1 - self.share)
        images[:, :, *self.box] = partners[:, :, *self.box]
        return images


def mixes(
    augment: AugmentConfig, seed: int, batches: int, size: tuple[int, int], device: torch.device
) -> Iterator[Mix | None]:
    """Yields how each batch of an epoch is mixed; None where it is not.

    Mixup (Zhang et al. 2018, arXiv 1710.09412): share x + (1 - share) partner. Cutmix (Yun et al.
    2019, arXiv 1905.04899): a box of the partner, with sides sqrt(1 - share) of the image's, around
    any of its points and cut off at its edges; the share is then what is left of the image. Shares
    come from Beta(alpha, alpha). Where both are on, each batch has an even chance of either.

    Args:
        augment: which of them, and alpha.
        seed: the same seed gives the same shares and boxes.
        batches: of the epoch.
        size: height and width of the images.
        device: where the batches are.
    """
    boxed = [kind for kind, alpha in ((False, augment.mixup), (True, augment.cutmix)) if alpha]
    if not boxed:
        yield from [None] * batches
        return
    random = np.random.default_rng(seed)
    drawn: list[tuple[float, Box | None]] = []
    for _ in range(batches):
        cut = boxed[random.integers(len(boxed))]
        alpha = augment.cutmix if cut else augment.mixup
        share = float(random.beta(alpha, alpha))
        drawn.append(_cut(share, size, random) if cut else (share, None))
    # All at once, so that no batch waits for a copy to the device.
    weights = torch.tensor([max(share, 1 - share) for share, _ in drawn]).to(device)
    for (share, box), weight in zip(drawn, weights, strict=True):
        yield Mix(share, weight, box)


def _cut(share: float, size: tuple[int, int], random: np.random.Generator) -> tuple[float, Box]:
    """Draws a box of about 1 - share of an image; returns what it leaves, and the box."""
    sides = []
    for length in size:
        half = round(length * (1 - share) ** 0.5) // 2
        centre = int(random.integers(length))
        sides.append(slice(max(centre - half, 0), min(centre + half, length)))
    rows, columns = sides
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return 1 - area / (size[0] * size[1]), (rows, columns)
