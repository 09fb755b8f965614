"""CIFAR from parquet shards in the layout of the Hugging Face hub."""

import io
import logging
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pqd.data.cache import decoded
from pqd.data.split import Split
from pqd.errors import UserError, one_line

log = logging.getLogger(__name__)


def read(name: str, folder: Path, label_column: str, classes: int) -> list[Split]:
    """Reads train and test from the shards `train-*.parquet` and `test-*.parquet` in `folder`.

    Args:
        name: of the data set, for the log and the cache.
        folder: holds the shards.
        label_column: the column with the labels.
        classes: number of classes.

    Raises:
        UserError: shards are missing, damaged, or hold something else.
    """
    shards = {split: sorted(folder.glob(f"{split}-*.parquet")) for split in ("train", "test")}
    for split, files in shards.items():
        _check_complete(split, files, folder)

    def decode() -> dict[str, Tensor]:
        log.info("decoding %s, once: the pixels are kept for the next runs", name)
        tensors = {}
        for split, files in shards.items():
            parts = [_decode_shard(file, label_column, classes) for file in files]
            tensors[f"{split}.images"] = torch.cat([images for images, _ in parts])
            tensors[f"{split}.labels"] = torch.cat([labels for _, labels in parts])
        return tensors

    tensors = decoded(name, shards["train"] + shards["test"], label_column, decode)
    return [Split(tensors[f"{split}.images"], tensors[f"{split}.labels"]) for split in shards]


def _check_complete(split: str, files: list[Path], folder: Path) -> None:
    """Compares the shards with the number of shards that their names tell (-00000-of-00004)."""
    totals = {int(m[1]) for f in files if (m := re.search(r"-of-(\d+)\.parquet$", f.name))}
    if len(totals) > 1:
        raise UserError(
            f"{folder} mixes shards {split}-*.parquet of {' and '.join(map(str, sorted(totals)))}"
        )
    wanted = max(totals, default=1)
    if len(files) != wanted:
        raise UserError(f"{folder} holds {len(files)} of {wanted} shards {split}-*.parquet")


def _decode_shard(file: Path, label_column: str, classes: int) -> tuple[Tensor, Tensor]:
    """Decodes one shard: uint8 [N, 32, 32, 3], int64 [N]."""
    encoded, labels = _read_shard(file, label_column)
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise UserError(f"{file} has labels outside 0 to {classes - 1}")
    images = np.empty((len(encoded), 32, 32, 3), np.uint8)
    for row, content in enumerate(encoded):
        try:
            images[row] = _decode(content)
        except Exception as error:  # Pillow's decoders raise almost anything
            reason = one_line(error, named=True)
            raise UserError(f"{file}, row {row}: no readable image: {reason}") from error
    return torch.from_numpy(images), torch.from_numpy(labels)


def _read_shard(file: Path, label_column: str) -> tuple[list[bytes], np.ndarray]:
    """The encoded images and the labels, int64 [N]."""
    import pyarrow
    from pyarrow import parquet, types

    try:
        with parquet.ParquetFile(file) as shard:
            kinds = {field.name: field.type for field in shard.schema_arrow}
            image, label = kinds["img"], kinds[label_column]
            if not (types.is_struct(image) and types.is_integer(label)):
                raise TypeError(f"img is {image}, {label_column} is {label}")
            table = shard.read(columns=["img", label_column])
        encoded = table["img"].combine_chunks().field("bytes").to_pylist()
        labels = table[label_column].combine_chunks()
        if labels.null_count:
            raise ValueError(f"{label_column} is empty in {labels.null_count} rows")
        return encoded, labels.to_numpy().astype(np.int64)
    except (pyarrow.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file} cannot be read as parquet with the columns img (struct of bytes, path) and "
            f"{label_column} (integers): {one_line(error, named=True)}"
        ) from error


def _decode(content: bytes) -> np.ndarray:
    """Decodes one image of 32x32 pixels."""
    from PIL import Image

    image: Image.Image = Image.open(io.BytesIO(content), formats=("PNG", "WEBP"))
    if image.size != (32, 32):
        raise ValueError(f"its size is {image.width}x{image.height}, not 32x32")
    if image.mode != "RGB":
        image = image.convert("RGB")
    return np.frombuffer(image.tobytes(), np.uint8).reshape(32, 32, 3)
