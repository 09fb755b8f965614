"""A stage that is killed, after whichever epoch, ends as one that is not: bit for bit on a CPU."""

import copy

import numpy as np
import pytest

from configs import config, settings
from nets import quantized
from pqd.config import AugmentConfig, DatasetConfig, TrainConfig
from pqd.constraints import attach, constraints, describe, package_size, without_integers
from pqd.constraints.bits.measured import Layers
from pqd.constraints.package_size import PackageSize
from pqd.networks import RECIPE, load_network
from pqd.stages import STAGES
from pqd.stages.registry import spelled
from pqd.trainer import Trainer
from sized import Coded

EPOCHS = 3  # of 3 steps: bits are chosen within epochs, too
SIZED = {"size_kib": 0.8, "freeze_observers": 1.0}
SOME = {"sparsity": 0.3}
FEWER = {"what": "channels", "sparsity": 0, "macs": 0.6, "round_to": 2, "min_channels": 2}
CASES = {
    "abs_max": ("q", {"quantize": {"freeze_batch_norm": 0.5}}),
    "lsq": ("q", {"quantize": {"quantizer": "lsq", "weight_bits": 3}}),
    "reestimated": ("q", {"quantize": {"reestimate_batch_norm": True, "weight_bits": 3}}),
    "sized": ("q", {"quantize": SIZED}),
    "sized-lsq": ("q", {"quantize": SIZED | {"quantizer": "lsq"}}),
    "sized-reestimated": ("q", {"quantize": SIZED | {"reestimate_batch_norm": True}}),
    "sized-then-pruned": ("qp", {"quantize": SIZED, "prune": SOME}),
    "sized-lsq-then-pruned": ("qp", {"quantize": SIZED | {"quantizer": "lsq"}, "prune": SOME}),
    "sized-then-fewer-channels": ("qp", {"quantize": SIZED, "prune": FEWER}),
    "pruned": ("p", {"prune": {"ramp": 0.8}}),
    "fewer-channels": ("p", {"prune": FEWER | {"ramp": 0.8, "regularize": 0.1}}),
    "taught": ("d", {}),
}


class Stopped(Exception):
    pass


def trainer_of(order="none", **options):
    given = {name: {"epochs": EPOCHS} | options.get(name, {}) for name in ("prune", "quantize")}
    return Trainer(
        config(
            order,
            dataset=DatasetConfig("digits", "", train_limit=96, augment=AugmentConfig(0, False)),
            train=TrainConfig(device="cpu", precision="fp32", batch_size=32),
            baseline=settings("baseline", epochs=2),
            distill=settings("distill", epochs=EPOCHS),
            **{name: settings(name, **values) for name, values in given.items()},
        )
    )


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    trainer_of().train(
        STAGES["baseline"],
        None,
        folder,
        baseline=None,
        checkpoint=folder / "checkpoint",
        on_epoch=lambda metrics: None,
    )
    return folder


@pytest.mark.parametrize("case", CASES)
def test_a_stage_that_is_killed_ends_alike(dense, tmp_path, monkeypatch, case):
    monkeypatch.setattr(package_size, "packed", Coded())
    order, options = CASES[case]
    trainer = trainer_of(order, **options)

    def train(kind, parent, name, stop=None):
        def on_epoch(metrics):
            if metrics["epoch"] == stop:
                raise Stopped

        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        checkpoint = tmp_path / f"{name}.checkpoint"
        places = {"baseline": dense, "checkpoint": checkpoint, "on_epoch": on_epoch}
        return folder, trainer.train(kind, parent, folder, **places)

    *before, last = spelled(order)
    parent = dense
    for kind in before:
        parent, _ = train(kind, parent, kind.name)
    whole = ending(*train(last, parent, "whole"))
    if "bits" in whole:
        assert len({layer["bits"] for layer in whole["bits"]["layers"].values()}) > 1
    for stop in range(1, EPOCHS + 1):  # the last one: all is trained, and nothing is saved
        name = f"stopped-{stop}"
        with pytest.raises(Stopped):
            train(last, parent, name, stop)
        assert not (tmp_path / name / RECIPE).exists()
        again = ending(*train(last, parent, name))
        assert again.keys() == whole.keys()
        assert [key for key in whole if again[key] != whole[key]] == []


def ending(folder, figures):
    """All that a stage leaves behind, but times."""
    model = load_network(folder)
    assert len(figures["history"]) == EPOCHS
    times = ("seconds", "images_per_s")
    history = [{k: v for k, v in epoch.items() if k not in times} for epoch in figures["history"]]
    state = {name: tensor.tolist() for name, tensor in model.state_dict().items()}
    return figures | {"history": history, "seconds": None, "recipe": describe(model)} | state


def test_bits_are_in_use_as_soon_as_a_state_is_loaded():
    def sized():
        model = quantized()
        attach(model, PackageSize(1, 8))
        return model

    model, other = sized(), sized()
    (_, size) = constraints(model)
    size._use(model, Layers(model), np.array([6, 0, 3]))
    other.load_state_dict(model.state_dict())
    assert Layers(other).widths.tolist() == [6, 0, 3]
    copied = copy.deepcopy(other)
    without_integers(copied)
    copied.load_state_dict(copied.state_dict())  # nothing is left to be looked for
    other.load_state_dict(sized().state_dict())
    assert Layers(other).widths.tolist() == [6, 6, 6]
