"""A package of a given size: bits are chosen for it, and it is kept to the last stage."""

import json

import numpy as np
import pytest
import torch

from configs import config, settings
from nets import quantized
from pqd.artifact import Subject, doubts
from pqd.config import AugmentConfig, BackboneConfig, DatasetConfig, TrainConfig
from pqd.constraints import attach, constraints, package_size, without_integers
from pqd.constraints.bits.allocation import WIDTHS
from pqd.constraints.bits.measured import Layers, packed
from pqd.constraints.lsq import LearnedSteps
from pqd.constraints.mask import set_masks
from pqd.constraints.package_size import PackageSize
from pqd.constraints.quantization import FakeQuantization
from pqd.errors import UserError
from pqd.networks import RECIPE, load_network
from pqd.result import Allocation, Final, LayerBits
from pqd.stages import STAGES
from pqd.trainer import Trainer
from sized import Coded
from test_config import line_for


@pytest.fixture
def coded(monkeypatch):
    monkeypatch.setattr(package_size, "packed", found := Coded())
    return found


def sized(kib, kind=FakeQuantization, sparsity=0.0):
    model = quantized(kind, 8, sparsity)
    constraint = PackageSize(kib, 8)
    attach(model, constraint)
    falling = 4.0 ** -np.arange(7)[None] * np.array([[3.0], [1.0], [2.0]])
    constraint.learn(model, falling)
    return model, constraint


class TestPackageSize:
    def test_aims_below_the_size_and_leaves_what_fits(self, coded):
        model, constraint = sized(1.2)
        constraint.before_step(model, 0, 100, None)
        chosen = Layers(model).widths.tolist()
        assert sum(chosen) < 18
        assert coded(model, None) <= 0.99 * 1.2 * 1024
        constraint.before_step(model, 25, 100, None)
        assert Layers(model).widths.tolist() == chosen
        assert model.package_size_widths.tolist() == chosen

    def test_bits_rise_where_pruning_made_room(self, coded):
        model, constraint = sized(1.2, sparsity=0.01)
        constraint.before_step(model, 0, 100, None)
        before = Layers(model).widths.sum()
        set_masks(model, 0.6, "layer")
        constraint.before_step(model, 24, 100, None)
        assert Layers(model).widths.sum() == before  # not due
        constraint.before_step(model, 25, 100, None)
        assert Layers(model).widths.sum() > before
        assert coded(model, None) <= 1.2 * 1024 - 64

    def test_what_cannot_fit_is_said_and_ends(self, coded, caplog, monkeypatch):
        model, constraint = sized(1.2)
        equal = np.full((3, len(WIDTHS)), 20.0)  # a width more costs nothing
        monkeypatch.setattr(Layers, "bytes", lambda self: equal)
        coded.rest += 10**5
        found = constraint.settle(model, None)["bits"]
        assert not Layers(model).widths.any()
        assert f"2 bits everywhere take {found['package_bytes']} bytes" in caplog.text

    @pytest.mark.parametrize("kind", [FakeQuantization, LearnedSteps])
    def test_at_the_end_layers_lose_bits_until_it_fits(self, coded, kind):
        model, constraint = sized(1.2, kind)
        constraint.before_step(model, 0, 100, None)
        trained = Layers(model).widths
        coded.rest += 100
        found = constraint.settle(model, None)["bits"]
        assert (Layers(model).widths <= trained).all()
        assert found["package_bytes"] == coded(model, None) <= 1.2 * 1024 - 64
        assert found["limit_bytes"] == 1228
        widths = [WIDTHS[width] for width in Layers(model).widths]
        assert [layer["bits"] for layer in found["layers"].values()] == widths
        assert [layer["weights"] for layer in found["layers"].values()] == [216, 576, 32]

    def test_a_size_that_2_bits_exceed_names_the_smallest(self, coded):
        model, constraint = sized(0.5)
        with pytest.raises(
            UserError, match=r"^quantize.size_kib=0.5 is too small: .* at least"
        ) as e:
            constraint.before_step(model, 0, 100, None)
        least = float(str(e.value).split("at least ")[1].split()[0])
        model, constraint = sized(least)
        constraint.before_step(model, 0, 100, None)
        with torch.no_grad():  # whatever the weights become
            for name in ("conv1", "conv2", "fc"):
                stored = model.get_submodule(name).parametrizations.weight.original
                stored.copy_(torch.randint(-1, 2, stored.shape))
        assert constraint.settle(model, None)["bits"]["package_bytes"] <= 1024 * least

    def test_taken_off_in_float(self):
        model, _ = sized(2)
        without_integers(model)
        assert constraints(model) == []
        assert not any(name.startswith("package_size") for name in model.state_dict())


def test_a_size_needs_bits_to_choose():
    assert "quantize.size_kib=9 chooses between 2 and" in line_for(
        "quantize.size_kib=9", "quantize.weight_bits=2"
    )
    assert "quantize.size_kib=0.0 must be greater than 0" in line_for("quantize.size_kib=0")


def test_a_package_above_its_limit_is_said():
    final = Final(90.0, 90.0, 0.0, sizes={"package": 1030})
    bits = Allocation(1024, 1000, {"fc": LayerBits(4, 10, 5), "conv": LayerBits(8, 30, 9)})
    assert bits.mean_bits == 7
    assert doubts(final, 100, bits) == ["model.pqd has 1,030 bytes, 1,024 are its limit"]
    final.sizes["package"] = 1024
    assert doubts(final, 100, bits) == []


def run(folder, order, **quantize):
    """Trains an order on digits; returns its folders and figures by stage."""
    trainer = Trainer(
        config(
            order,
            backbone=BackboneConfig("resnet8", "resnet8"),
            dataset=DatasetConfig("digits", "", train_limit=256, augment=AugmentConfig(0, False)),
            train=TrainConfig(device="cpu", precision="fp32", batch_size=64),
            baseline=settings("baseline", epochs=1),
            prune=settings("prune", epochs=1, sparsity=0.7),
            quantize=settings("quantize", epochs=2, **quantize),
            distill=settings("distill", epochs=1),
        )
    )
    folders, figures, previous = {}, {}, None
    for letter in ["", *order]:
        kind = next(s for s in STAGES.values() if s.letter == letter)
        folders[kind.name] = folder / kind.name
        folders[kind.name].mkdir(parents=True, exist_ok=True)
        figures[kind.name] = trainer.train(
            kind,
            folders[previous] if previous else None,
            folders[kind.name],
            baseline=folders.get("baseline"),
            left=1,
            checkpoint=folder / f"{kind.name}.checkpoint",
            on_epoch=lambda metrics: None,
        )
        previous = kind.name
    return trainer, folders, figures


def test_a_later_stage_keeps_the_size_and_uses_it(tmp_path):
    trainer, folders, figures = run(tmp_path, "qp", size_kib=30)
    assert figures["baseline"].get("bits") is None
    bits = []
    for name in ("quantize", "prune"):
        model = load_network(folders[name])
        subject = Subject(folders[name], trainer.dataset, "resnet8", "qp")
        size = packed(model, subject.write)
        found = figures[name]["bits"]
        assert 0.9 * 30 * 1024 < size <= 30 * 1024
        assert abs(size - found["package_bytes"]) < 64
        bits.append([layer["bits"] for layer in found["layers"].values()])
        assert bits[-1] == [WIDTHS[width] for width in Layers(model).widths]
    assert sum(bits[1]) > sum(bits[0])  # what pruning saved
    recipe = json.loads((folders["prune"] / RECIPE).read_text())["constraints"]
    assert recipe[1] == {"constraint": "package_size", "kib": 30, "most_bits": 8}
