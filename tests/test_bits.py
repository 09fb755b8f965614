"""Bits of each layer: the best choice, what it costs, and that the package keeps its size."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import report_runs
from configs import config, settings
from nets import Residual, images, traced
from pqd.artifact import Subject, doubts
from pqd.config import AugmentConfig, BackboneConfig, DatasetConfig, TrainConfig
from pqd.constraints import attach, constraints, package_size, rebuild, without_integers
from pqd.constraints.bits.allocation import WIDTHS, allocate, bits_of, code_max_of
from pqd.constraints.bits.measured import Layers, loss_increases, packed
from pqd.constraints.fake_quant import WeightFakeQuant
from pqd.constraints.lsq import LearnedSteps
from pqd.constraints.mask import Masks, set_masks
from pqd.constraints.package_size import PackageSize
from pqd.constraints.parametrization import find
from pqd.constraints.quantization import FakeQuantization
from pqd.errors import UserError
from pqd.networks import RECIPE, load_network
from pqd.report.load import load
from pqd.report.page import html, markdown
from pqd.report.view import view
from pqd.result import Allocation, Final, LayerBits
from pqd.stages import STAGES
from pqd.stages.quantize import calibrate
from pqd.tables import ending
from pqd.tracking.records import record_result
from pqd.trainer import Trainer
from test_config import line_for

ALL = np.full(3, len(WIDTHS) - 1)


def test_bits_and_largest_codes():
    assert [code_max_of(bits) for bits in WIDTHS] == [1, 3, 7, 15, 31, 63, 127]
    assert [bits_of(code_max_of(bits)) for bits in WIDTHS] == list(WIDTHS)


class TestAllocation:
    def test_a_small_case_by_hand(self):
        sizes = np.array([[10.0, 20.0, 30.0], [10.0, 20.0, 30.0]])
        losses = np.array([[0.9, 0.3, 0.0], [0.4, 0.1, 0.0]])
        most = np.array([2, 2])
        # Per 10 bytes the first layer gains 0.6, then 0.3; the second 0.3, then 0.1.
        for limit, expected in (
            (20, [0, 0]),
            (30, [1, 0]),
            (50, [2, 1]),
            (59, [2, 1]),
            (60, [2, 2]),
        ):
            assert allocate(losses, sizes, limit, most).tolist() == expected
        assert allocate(losses, sizes, 5, most).tolist() == [0, 0]  # the cheapest, at least
        assert allocate(losses, sizes, 60, np.array([1, 0])).tolist() == [1, 0]

    def test_a_width_off_the_hull_is_passed_over(self):
        sizes = np.array([[10.0, 20.0, 30.0]])
        losses = np.array([[1.0, 0.9, 0.0]])
        assert allocate(losses, sizes, 29, np.array([2])).tolist() == [0]
        assert allocate(losses, sizes, 30, np.array([2])).tolist() == [2]

    def test_more_bits_where_losses_measure_alike(self):
        sizes = np.arange(1.0, 8)[None].repeat(3, 0)
        noise = -1e-3 * np.arange(7, 0, -1)[None].repeat(3, 0)  # fewer bits measure better
        assert allocate(noise, sizes, 21, ALL).tolist() == [6, 6, 6]

    @pytest.mark.parametrize("seed", range(5))
    def test_no_choice_of_so_many_bytes_loses_less(self, seed):
        random = np.random.default_rng(seed)
        sizes = np.cumsum(random.uniform(5, 50, (3, 7)), axis=1)
        losses = np.sort(random.uniform(0, 1, (3, 7)), axis=1)[:, ::-1].copy()
        every = np.array(list(itertools.product(range(7), repeat=3)))
        rows = np.arange(3)
        bytes_, lost = (table[rows, every].sum(1) for table in (sizes, losses))
        for price in np.geomspace(1e-4, 0.1, 12):
            limit = bytes_[np.argmin(lost + price * bytes_)]
            chosen = allocate(losses, sizes, limit + 1e-9, ALL)
            assert sizes[rows, chosen].sum() <= limit + 1e-9
            assert losses[rows, chosen].sum() <= lost[bytes_ <= limit + 1e-9].min() + 1e-9


def quantized(kind=FakeQuantization, bits=8, sparsity=0.0):
    model = traced(Residual)
    if sparsity:
        attach(model, Masks(["conv1", "conv2", "fc"]))
        set_masks(model, sparsity, "layer")
    attach(model, kind(code_max_of(bits)))
    calibrate(model, [images(16)])
    return model


class TestMeasured:
    @pytest.mark.parametrize("kind", [FakeQuantization, LearnedSteps])
    def test_losses_are_those_of_one_layer_with_fewer_bits(self, kind):
        model, x, y = quantized(kind), images(32), torch.arange(32) % 4

        def loss(network):
            return F.cross_entropy(network(x), y).item()

        before = model(x)
        found = loss_increases(model, loss)
        assert found.shape == (3, 7)
        assert (found[:, 6] == 0).all()
        assert torch.equal(model(x), before)
        other = quantized(kind)
        find(other, WeightFakeQuant)["conv2"].use(3, Layers(other).weights()[1])
        assert found[1, WIDTHS.index(3)] == pytest.approx(loss(other) - loss(model), abs=1e-6)

    @pytest.mark.parametrize("sparsity", [0.0, 0.2, 0.8])
    def test_two_bits_never_take_more_than_the_worst(self, sparsity):
        model = quantized(LearnedSteps, 2, sparsity)
        layers = Layers(model)
        rng = np.random.default_rng(1)
        for share in (0.05, 0.2, 0.33, 0.5, 0.9):
            with torch.no_grad():
                for layer in layers._layers:
                    stored = layer.parametrizations.weight.original
                    zero = torch.from_numpy(rng.random(tuple(stored.shape)) < share)
                    sign = torch.from_numpy(rng.choice([-1.0, 1.0], tuple(stored.shape))).float()
                    stored.copy_(sign.masked_fill(zero, 0))
            assert layers.bytes()[:, 0].sum() <= layers.worst() + 12  # words of 4 bytes

    def test_recipe_names_the_bits_of_each_layer_where_they_differ(self):
        model = quantized(LearnedSteps)
        (constraint,) = constraints(model)
        assert constraint.describe(model)["code_max"] == 127
        Layers(model).use(np.array([6, 0, 3]))
        described = constraint.describe(model)
        assert described["code_max"] == {"conv1": 127, "conv2": 1, "fc": 15}
        again = traced(Residual)
        rebuild(again, json.loads(json.dumps([{"constraint": "lsq", **described}])))
        assert Layers(again).widths.tolist() == [6, 0, 3]
        again.load_state_dict(model.state_dict())
        assert torch.equal(again.eval()(images(8)), model.eval()(images(8)))


class Coded:
    """Stands for packing: `rest` bytes and the coded weights."""

    rest = 500

    def __call__(self, model, write):
        layers = Layers(model)
        return int(self.rest + layers.bytes()[np.arange(len(layers.widths)), layers.widths].sum())


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


class TestShown:
    def allocation(self, conv):
        return Allocation(1024, 1000, {"fc": LayerBits(8, 10, 9), "conv": LayerBits(conv, 30, 9)})

    def results(self):
        for order, bits in (("pqd", (4, 5)), ("qpd", (2, 2))):
            for seed, conv in enumerate(bits):
                found = report_runs.result(order, seed)
                found.stages[-1].bits = self.allocation(conv)
                yield found

    def test_report(self, tmp_path):
        for found in self.results():
            report_runs.write(tmp_path, found)
        shown = view(load([tmp_path]))
        assert shown.cases[0].bits.orders == ["pqd", "qpd"]
        text = markdown(shown, figure=False)
        assert "| layer | weights | pqd | qpd |\n|---|---:|---:|---:|\n" in text
        assert "| fc | 10 | 8.00 | 8.00 |\n| conv | 30 | 4.50 | 2.00 |\n" in text
        assert "| all weights | 40 | 5.38 | 3.50 |\n" in text
        assert "Bits of each layer" in html(shown, tmp_path, [])

    def test_none_chosen(self, tmp_path):
        report_runs.write(tmp_path, report_runs.result())
        shown = view(load([tmp_path]))
        assert shown.cases[0].bits is None
        assert "Bits of each layer" not in markdown(shown, figure=False)

    def test_wandb_summary(self):
        found = next(self.results())
        run = SimpleNamespace(tags=(), config={}, summary={}, log=lambda values: None)
        record_result(run, found, lambda stage, epoch: True)
        assert run.summary["bits/fc"] == 8
        assert run.summary["bits/conv"] == 4
        assert run.summary["final/mean_bits"] == 5

    def test_table(self):
        found = next(self.results())
        assert "of 1.00 KiB (5.00 bits per weight)" in ending(found, Path("run"), None)[-1]
