"""Bits of each layer: the best choice, what it costs, and where it is shown."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import report_runs
from nets import Residual, images, quantized, traced
from pqd.constraints import constraints, rebuild
from pqd.constraints.bits.allocation import WIDTHS, allocate, bits_of, code_max_of
from pqd.constraints.bits.measured import Layers, loss_increases
from pqd.constraints.fake_quant import WeightFakeQuant
from pqd.constraints.lsq import LearnedSteps
from pqd.constraints.parametrization import find
from pqd.constraints.quantization import FakeQuantization
from pqd.report.load import load
from pqd.report.page import html, markdown
from pqd.report.view import view
from pqd.result import Allocation, LayerBits
from pqd.tables import ending
from pqd.tracking.records import record_result

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
