"""Decoded images in a file, read a batch at a time."""

import mmap
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

READ = 2**24  # bytes of the file that are mapped into memory at a time


class StoredImages:
    """Images in a memory-mapped file; in memory is no more than what was last asked for.

    The pages that were read stay in the system's cache of files, which gives way to programs.

    Attributes:
        device: of what is read.
        counts: int64 [C, 256], how often each value occurs in each channel of the file's images.
        digest: hexadecimal; changes with any pixel of the file.
        rows: int64 [N], which of the file's images these are.
    """

    device = torch.device("cpu")

    def __init__(
        self, file: Path, image: tuple[int, int, int], counts: Tensor, digest: str, rows: Tensor
    ) -> None:
        """Maps a file.

        Args:
            file: of uint8 images [M, H, W, C] and nothing else.
            image: their shape [H, W, C].
            counts: as the attribute.
            digest: as the attribute.
            rows: as the attribute.
        """
        with file.open("rb") as opened:
            self._mapping = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        self._pixels = np.frombuffer(self._mapping, np.uint8).reshape(-1, *image)
        self.counts, self.digest, self.rows = counts, digest, rows

    @property
    def shape(self) -> torch.Size:
        """[N, H, W, C]."""
        return torch.Size([len(self.rows), *self._pixels.shape[1:]])

    @property
    def nbytes(self) -> int:
        """Bytes that they would take in memory."""
        return self.shape.numel()

    def __len__(self) -> int:
        """Number of images."""
        return len(self.rows)

    def take(self, index: Tensor) -> "StoredImages":
        """The images at `index`, int64 [B]; nothing is read."""
        taken = object.__new__(StoredImages)
        vars(taken).update(vars(self) | {"rows": self.rows[index]})
        return taken

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """Reads the images at `index`, int64 [B] or a slice: uint8 [B, H, W, C]."""
        rows = self.rows[index]
        found = torch.empty((len(rows), *self.shape[1:]), dtype=torch.uint8)
        step = max(1, READ // self.shape[1:].numel())
        for part, out in zip(rows.split(step), found.split(step), strict=True):
            # Any mode but the usual one writes to `out` directly.
            np.take(self._pixels, part.numpy(), axis=0, out=out.numpy(), mode="clip")
            if hasattr(mmap, "MADV_DONTNEED"):  # else pages would count as this process's memory
                self._mapping.madvise(mmap.MADV_DONTNEED)
        return found


Images = Tensor | StoredImages  # uint8 [N, H, W, C] on the CPU, indexed alike
