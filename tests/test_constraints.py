"""Masks, fake-quantizers, where they go, and a network's way to disk and back."""

import pytest
import torch
from torch import nn

from nets import PreActivation, Residual, images, traced
from pqd.constraints import fake_quant
from pqd.constraints.fake_quant import (
    ActivationFakeQuant,
    WeightFakeQuant,
    activation_fake_quants,
)
from pqd.constraints.mask import Mask, attach_masks, masks, set_masks, sparsity
from pqd.constraints.placement import insert_fake_quants
from pqd.errors import UserError
from pqd.graph.view import read_instead, unsupported_layers
from pqd.stages.quantize import calibrate


def layers(model):
    return [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


class TestMasks:
    def test_global_keeps_the_largest_of_all(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        model[0].weight.data = torch.tensor([[1.0, -8.0], [3.0, 0.5]])
        model[1].weight.data = torch.tensor([[0.1, 7.0], [-0.2, 6.0]])
        attach_masks(model)
        set_masks(model, 0.5, "global")
        assert model[0].weight.tolist() == [[0, -8], [3, 0]]
        assert model[1].weight.tolist() == [[0, 7], [0, 6]]

    def test_layer_prunes_each_alike(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        model[0].weight.data = torch.tensor([[100.0, 80.0], [30.0, 50.0]])
        model[1].weight.data = torch.tensor([[0.1, 7.0], [-0.2, 6.0]])
        attach_masks(model)
        set_masks(model, 0.5, "layer")
        assert model[0].weight.tolist() == [[100, 80], [0, 0]]
        assert model[1].weight.tolist() == [[0, 7], [0, 6]]

    @pytest.mark.parametrize("target", [0.0, 0.3, 0.5, 0.9, 0.999])
    @pytest.mark.parametrize("scope", ["global", "layer"])
    def test_sparsity_to_within_a_weight_per_tensor(self, target, scope):
        model = traced(Residual)
        attach_masks(layers(model))
        set_masks(model, target, scope)
        total = sum(layer.weight.numel() for layer in layers(model))
        zeros = sum(int((layer.weight == 0).sum()) for layer in layers(model))
        assert abs(zeros - target * total) <= (0.5 if scope == "global" else len(layers(model)))
        assert sparsity(model) == zeros / total

    def test_ties_keep_the_count_exact(self):
        layer = nn.Linear(10, 10)
        nn.init.ones_(layer.weight)
        attach_masks([layer])
        set_masks(layer, 0.37, "global")
        assert int((layer.weight == 0).sum()) == 37

    def test_a_layer_that_would_lose_everything_keeps_a_weight_per_output(self):
        model = nn.Sequential(nn.Linear(4, 10), nn.Linear(10, 3))
        model[0].weight.data = torch.arange(1.0, 41.0).view(10, 4)
        model[1].weight.data = torch.linspace(0.01, 0.3, 30).view(3, 10)
        attach_masks(layers(model))
        set_masks(model, 0.5, "global")
        zeros = [int((m.weight == 0).sum()) for m in layers(model)]
        assert zeros == [8, 27]
        assert torch.equal(model[1].weight.nonzero(), torch.tensor([[0, 9], [1, 9], [2, 9]]))

    def test_what_no_weight_is_left_of_is_named(self, caplog):
        model = nn.Sequential(nn.Linear(4, 10), nn.Linear(10, 3))
        attach_masks(layers(model))
        set_masks(model, 0.99, "global")
        assert sparsity(model) == 69 / 70
        assert "sparsity 0.99 leaves no weight in " in caplog.text

    def test_what_is_pruned_stays_pruned(self):
        layer = nn.Linear(100, 10)
        attach_masks([layer])
        set_masks(layer, 0.5, "global")
        before = masks(layer)[""].mask.clone()
        # The stored weights drift: what is masked grows, what is kept shrinks.
        original = layer.parametrizations.weight.original
        original.data = torch.where(before, original * 1e-3, torch.full_like(original, 9.0))
        set_masks(layer, 0.7, "global")
        assert not (masks(layer)[""].mask & ~before).any()
        assert int((layer.weight == 0).sum()) == 700

    def test_no_gradient_reaches_what_is_pruned(self):
        layer = nn.Linear(4, 4)
        attach_masks([layer])
        set_masks(layer, 0.5, "global")
        layer(torch.ones(1, 4)).sum().backward()
        mask = masks(layer)[""].mask
        assert torch.equal(layer.parametrizations.weight.original.grad, mask.float())

    def test_zeros_are_positive(self):
        layer = nn.Linear(8, 8)
        nn.init.constant_(layer.weight, -1.0)
        attach_masks([layer])
        set_masks(layer, 0.5, "global")
        assert not torch.signbit(layer.weight[layer.weight == 0]).any()


class TestWeightFakeQuant:
    def test_codes_and_scales(self):
        weight = torch.tensor([[127.0, -1.4, 0.6], [0.0, 0.0, 0.0], [-2.54, 1.27, 0.0]])
        quantizer = WeightFakeQuant(127)
        assert torch.allclose(quantizer.scale(weight).flatten()[[0, 2]], torch.tensor([1.0, 0.02]))
        codes = [[127, -1, 1], [0, 0, 0], [-127, 64, 0]]
        assert quantizer.codes(weight).tolist() == codes
        expected = torch.tensor(codes) * quantizer.scale(weight)
        assert torch.equal(quantizer(weight), expected)

    def test_reduced_range(self):
        weight = torch.randn(5, 3, 3, 3)
        codes = WeightFakeQuant(63).codes(weight)
        assert codes.abs().amax(dim=(1, 2, 3)).tolist() == [63] * 5

    def test_gradient_passes_unchanged(self):
        weight = torch.randn(2, 3, requires_grad=True)
        gradient = torch.randn(2, 3)
        WeightFakeQuant(127)(weight).backward(gradient)
        assert torch.equal(weight.grad, gradient)


class TestActivationFakeQuant:
    @staticmethod
    def calibrated(*batches):
        quantizer = ActivationFakeQuant()
        quantizer.observing = True
        for batch in batches:
            assert quantizer(batch) is batch
        quantizer.end_observation()
        return quantizer

    def test_range_is_the_mean_of_the_batches(self):
        quantizer = self.calibrated(torch.tensor([-1.0, 3.0]), torch.tensor([-0.02, 2.08]))
        assert quantizer.scale.item() == pytest.approx((2.54 + 0.51) / 255)
        assert quantizer.zero_point.item() == round(0.51 / (3.05 / 255))

    @pytest.mark.parametrize(("low", "high"), [(0.5, 2.55), (-2.55, -1.0), (0.0, 0.0)])
    def test_zero_is_always_in_range_and_exact(self, low, high):
        quantizer = self.calibrated(torch.tensor([low, high]))
        assert 0 <= quantizer.zero_point.item() <= 255
        assert quantizer(torch.zeros(1)).item() == 0.0

    @pytest.mark.parametrize("eager", [True, False])
    def test_values_and_gradient(self, eager, monkeypatch):
        monkeypatch.setattr(fake_quant, "eager", lambda x: eager)  # else as on a GPU
        quantizer = self.calibrated(torch.tensor([0.0, 255.0]))
        x = torch.tensor([-3.0, 0.4, 0.6, 254.5, 255.4, 300.0], requires_grad=True)
        y = quantizer(x)
        assert y.tolist() == [0, 0, 1, 254, 255, 255]
        y.sum().backward()
        assert x.grad.tolist() == [0, 1, 1, 1, 1, 0]

    def test_both_ways_to_compute_it_are_one(self, monkeypatch):
        quantizer = self.calibrated(torch.tensor([-1.3, 2.9]))
        found = []
        for eager in (True, False):
            monkeypatch.setattr(fake_quant, "eager", lambda x, eager=eager: eager)
            x = torch.linspace(-2, 4, 10007, requires_grad=True)
            y = quantizer(x)
            y.backward(torch.arange(10007.0))
            found.append((y, x.grad))
        assert torch.equal(found[0][0], found[1][0])
        assert torch.equal(found[0][1], found[1][1])
        codes = torch.round(torch.linspace(-2, 4, 10007) / quantizer.scale) + quantizer.zero_point
        inside = (codes >= 0) & (codes <= 255)
        assert torch.equal(found[0][1] != 0, inside & (torch.arange(10007) > 0))

    def test_agrees_with_torch(self):
        quantizer = self.calibrated(torch.tensor([-1.3, 2.9]))
        x = torch.randn(1000)
        expected = torch.fake_quantize_per_tensor_affine(
            x, quantizer.scale.item(), int(quantizer.zero_point), 0, 255
        )
        # torch multiplies by the inverse scale; a value between two codes may fall either way.
        assert (quantizer(x) - expected).abs().max() <= quantizer.scale * 1.001
        assert (quantizer(x) != expected).sum() <= 2


class TestPlacement:
    def test_residual(self):
        model = traced(Residual)
        insert_fake_quants(model, 127)
        placed = [name.rpartition(".")[2] for name in activation_fake_quants(model)]
        # The input; conv+bn+relu (not conv or bn, and not again after the pool); conv+bn before
        # the add; add+relu; the pooled features. Not the logits.
        assert placed == ["x", "relu", "bn2", "relu_1", "average"]

    def test_batch_norm_after_an_add_reads_and_is_followed_by_a_quantizer(self):
        model = traced(PreActivation)
        insert_fake_quants(model, 127)
        placed = [name.rpartition(".")[2] for name in activation_fake_quants(model)]
        assert placed == ["x", "conv1", "relu", "conv2", "add", "relu_1", "conv3", "add_1", "mean"]
        bn = next(n for n in model.graph.nodes if n.target == "bn")
        assert bn.args[0].target == "activation_quantizers.add"

    def test_every_reader_of_a_value_reads_the_quantized_one(self):
        model = traced(Residual)
        insert_fake_quants(model, 127)
        quantizers = [n for n in model.graph.nodes if "activation_quantizers" in str(n.target)]
        assert len(quantizers) == 5
        for node in quantizers:
            assert list(node.args[0].users) == [node]

    def test_stochastic_depth_keeps_the_grid_of_what_it_drops(self):
        from timm.layers import DropPath

        assert self.placed_around(DropPath(0.5)) == ["x", "relu", "bn2", "relu_1", "average"]

    def test_a_layer_of_that_name_that_does_more_does_not(self):
        class DropPath(nn.Module):
            def forward(self, x):
                return 2 * x

        expected = ["x", "relu", "bn2", "drop", "relu_1", "average"]
        assert self.placed_around(DropPath()) == expected

    def placed_around(self, drop):
        model = traced(Residual)
        model.add_submodule("drop", drop)
        bn = next(n for n in model.graph.nodes if n.target == "bn2")
        with model.graph.inserting_after(bn):
            dropped = model.graph.call_module("drop", (bn,))
        read_instead(bn, dropped)
        insert_fake_quants(model, 127)
        return [name.rpartition(".")[2] for name in activation_fake_quants(model)]

    def test_weights_that_no_constraint_reaches_are_named(self):
        class Functional(Residual):
            def __init__(self):
                super().__init__()
                self.bilinear = nn.Bilinear(4, 4, 4)

            def forward(self, x):
                x = super().forward(x)
                return self.bilinear(x, torch.nn.functional.linear(x, self.fc.weight[:, :4]))

        assert unsupported_layers(traced(Residual)) == []
        assert unsupported_layers(traced(Functional)) == [
            "linear (functional)",
            "bilinear (Bilinear)",
        ]

    def test_padding_that_is_not_deployed_is_refused(self):
        model = traced(Residual)
        model.conv2.padding_mode = "reflect"
        with pytest.raises(UserError, match="layer conv2 pads with padding_mode=reflect"):
            insert_fake_quants(model, 127)


class TestComposition:
    def test_either_order_gives_the_same_network(self):
        outputs = []
        for first in ("mask", "quantize"):
            model = traced(Residual)
            if first == "mask":
                attach_masks(layers(model))
                set_masks(model, 0.5, "global")
            insert_fake_quants(model, 127)
            if first == "quantize":
                attach_masks(layers(model))
                set_masks(model, 0.5, "global")
            calibrate(model, [images()])
            for layer in layers(model):
                kinds = [type(p) for p in layer.parametrizations.weight]
                assert kinds == [Mask, WeightFakeQuant]
            outputs.append((model(images(seed=2)), model.state_dict()))
        assert torch.equal(outputs[0][0], outputs[1][0])
        assert outputs[0][1].keys() == outputs[1][1].keys()
