"""The settings of a search, as `conf/hydra/sweeper/search.yaml` explains them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING, OmegaConf

from pqd import options
from pqd.options import option


@dataclass
class SearchSettings:
    """How to search; `hydra.sweeper` holds them."""

    n_trials: int = option(MISSING, low=1)  # of the whole search
    batch: int = option(MISSING, low=1)  # trials chosen at once
    storage: str = MISSING  # the study's file
    seed: int = option(0, low=0, high=2**31)  # trials add to it, and NumPy's end at 2^32
    margin: float | None = option(None, low=0)  # points of validation accuracy
    limits: dict[str, float] | None = None


def parse(given: Mapping[str, Any]) -> SearchSettings:
    """Reads and checks the settings.

    Raises:
        OmegaConfBaseException: there is no such setting, or a value is of another type.
        UserError: a value is not accepted.
    """
    known = {"hydra": {"sweeper": OmegaConf.structured(SearchSettings)}}
    merged = OmegaConf.merge(known, {"hydra": {"sweeper": dict(given)}})
    found = OmegaConf.to_object(merged.hydra.sweeper)
    assert isinstance(found, SearchSettings)
    options.check(found, "hydra.sweeper.")
    return found
