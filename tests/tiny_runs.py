"""Whole runs on a tiny network and a few real digits."""

import itertools
from dataclasses import asdict

import configs
from configs import settings
from pqd import pipeline
from pqd.config import CacheConfig, DatasetConfig, RuntimeConfig, TrainConfig
from pqd.networks import load_network
from pqd.runtimes import REFERENCE

SIX = ["".join(order) for order in itertools.permutations("pqd")]  # all orders of three
EPOCHS = {"baseline": 2, "prune": 2, "quantize": 2, "distill": 2}
LR = {"baseline": 0.1, "prune": 0.05, "quantize": 0.02, "distill": 0.05}
OPTIONS = {
    "prune": {"sparsity": 0.75},
    "quantize": {"weight_bits": 7, "calibration_batches": 1},
}


def of(stage, **options):
    """Changes of one stage's settings."""
    given = {"epochs": EPOCHS[stage], "lr": LR[stage]} | OPTIONS.get(stage, {}) | options
    return {stage: settings(stage, **given)}


def config(tmp_path, order, **changes):
    given = {
        "dataset": DatasetConfig("digits", "", train_limit=128),
        "train": TrainConfig(batch_size=32),
        "runtime": RuntimeConfig([REFERENCE], [1], min_calls=2, min_seconds=0.0, blocks=2),
        "cache": CacheConfig(True, str(tmp_path / "cache")),
    }
    for stage in EPOCHS:
        given |= of(stage)
    return configs.config(order or "none", **given | changes)


def run(tmp_path, order, name="run", **changes):
    """The result of a run, as it is in result.json."""
    return asdict(pipeline.run(config(tmp_path, order, **changes), tmp_path / name))


def networks(tmp_path, record):
    """The network after each stage of a run."""
    return [load_network(tmp_path / "cache" / stage["key"]) for stage in record["stages"]]
