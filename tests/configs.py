"""Configurations and contexts of stages for tests, without Hydra."""

import torch

from pqd import schema, training
from pqd.config import (
    AugmentConfig,
    BackboneConfig,
    CacheConfig,
    DatasetConfig,
    LoggerConfig,
    OrderConfig,
    TrainConfig,
)
from pqd.stages import STAGES, Context

# A network on digits as they are, 8 x 8 pixels in gray, to the bit.
GRAY = {
    "backbone": BackboneConfig("resnet8", "resnet8"),
    "dataset": DatasetConfig("digits", "", augment=AugmentConfig(0, False)),
    "train": TrainConfig(device="cpu", precision="fp32"),
}


def config(order="none", **given):
    """The whole configuration with defaults; a stage's settings are given by its name."""
    required = {
        "order": OrderConfig(order),
        "backbone": BackboneConfig("nets.tiny", "tiny"),
        "dataset": DatasetConfig("digits", ""),
        "logger": LoggerConfig("none"),
        "cache": CacheConfig(False, ""),
    }
    return schema.schema()(**required | given)


def settings(stage, **options):
    """The settings of a stage."""
    return STAGES[stage].settings_class()(**options)


def stage(name, batches=(), *, epochs=1, seed=0, baseline=None, train=None, **options):
    """A stage with these settings, in a run of these batches."""
    given = {name: settings(name, **options)} | ({"train": train} if train else {})
    context = Context(config(**given), None, batches, torch.device("cpu"), epochs, seed, baseline)
    return STAGES[name](context)


def fitted(model, found, **given):
    """The network, trained by a stage on its batches."""
    training.fit(
        model,
        found.context.batches,
        found.loss,
        settings=TrainConfig(device="cpu", precision="fp32", compile="false"),
        epochs=found.context.epochs,
        lr=0.05,
        seed=0,
        validate=None,
        before_step=lambda step: found.before_step(model, step),
        **given,
    )
    return model
