"""The images of a run, wherever this machine has them."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pqd.config import AugmentConfig, DatasetConfig
from pqd.errors import UserError, one_line
from pqd.files import read_json
from pqd.measure.graph import Input
from pqd.result import FILE

if TYPE_CHECKING:
    from torch import Tensor

    from pqd.data import Dataset


def dataset_of(run: Path) -> "Dataset":
    """Loads the data set that a run was trained and tested on.

    Raises:
        UserError: it is not here; the message says why.
    """
    from pqd.data import load_dataset

    try:
        record = read_json(run / FILE)
        dataset = load_dataset(_config(record["config"]["dataset"]))
        if record["final"].get("dataset", dataset.fingerprint) != dataset.fingerprint:
            raise UserError("the images found are not those of the run")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError) as error:
        raise UserError(one_line(error)) from None
    return dataset


def test_batches(dataset: "Dataset", taken: Input, batch_size: int) -> "Iterator[Tensor]":
    """Yields all test images in order, in batches as an ONNX file takes them."""
    import torch

    from pqd.data import eval_batches

    if taken.uint8:
        for start in range(0, len(dataset.test), batch_size):
            yield dataset.test.images[start : start + batch_size]
    else:
        for images, _ in eval_batches(dataset.test, dataset, batch_size, torch.device("cpu")):
            yield images


def _config(given: dict[str, Any]) -> DatasetConfig:
    """The run's data set, in PQD_DATA where this machine has one, else where the run had it."""
    config = DatasetConfig(**given | {"augment": AugmentConfig(**given["augment"])})
    if config.name.startswith("cifar"):
        config.root = os.environ.get("PQD_DATA", config.root)
    if not Path(config.root).is_dir():  # it would be made, and the data downloaded to it
        raise UserError(f"there is no folder {config.root}")
    return config
