"""The images of a run, wherever this machine has them."""

import os
from pathlib import Path
from typing import Any

from pqd.config import AugmentConfig, DatasetConfig
from pqd.data import Dataset
from pqd.errors import UserError, one_line
from pqd.files import read_json
from pqd.result import FILE


def dataset_of(run: Path) -> Dataset:
    """Loads the data set that a run was trained and tested on.

    Raises:
        UserError: it is not here; the message says why.
    """
    from pqd import data

    try:
        record = read_json(run / FILE)
        dataset = data.load_dataset(_config(record["config"]["dataset"]))
        if record["final"].get("dataset", dataset.fingerprint) != dataset.fingerprint:
            raise UserError("the images found are not those of the run")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError) as error:
        raise UserError(one_line(error)) from None
    return dataset


def _config(given: dict[str, Any]) -> DatasetConfig:
    """The run's data set, in PQD_DATA where this machine has one, else where the run had it."""
    config = DatasetConfig(**given | {"augment": AugmentConfig(**given["augment"])})
    if config.name.startswith("cifar"):
        config.root = os.environ.get("PQD_DATA", config.root)
    if not Path(config.root).is_dir():  # it would be made, and the data downloaded to it
        raise UserError(f"there is no folder {config.root}")
    return config
