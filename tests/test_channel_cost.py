"""What a network costs with fewer channels, and how a budget is shared among layers."""

import numpy as np
import pytest
import torch

from nets import backbone
from pqd.constraints.channels import KeptChannels
from pqd.graph.channels import channels
from pqd.pruning.cost import Shapes, allocate, levels


def macs(model, size):
    """Multiply-accumulates of one image, counted while it runs."""
    counted = []

    def count(layer, _inputs, output):
        counted.append(output.numel() * layer.weight[0].numel())

    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    model.eval()(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    return sum(counted)


class TestCost:
    @pytest.mark.parametrize("name", ["resnet20", "vgg16_bn", "mobilenetv2_050", "densenet121"])
    def test_is_that_of_the_network(self, name):
        model = backbone(name)
        found = channels(model, (3, 32, 32))
        shapes = Shapes(model, found)
        assert shapes.macs(shapes.dense) == macs(model, 32)
        assert shapes.parameters(shapes.dense) == sum(p.numel() for p in model.parameters())
        half = (shapes.dense + 1) // 2
        kept = [torch.arange(g.units) < n for g, n in zip(found.groups, half, strict=True)]
        KeptChannels.of(model, found.groups, kept).attach(model)
        assert shapes.macs(half) == macs(model, 32)
        assert shapes.parameters(half) == sum(p.numel() for p in model.parameters())

    def test_levels(self):
        assert levels(64, 1, 16, 8) == [64, 48, 32, 16]
        assert levels(20, 1, 8, 8) == [20, 16, 8]
        assert levels(32, 4, 16, 1) == [32, 28, 24, 20, 16, 12, 8, 4]
        assert levels(64, 1, 8, 20) == [64, 56, 48, 40, 32, 24]
        assert levels(8, 1, 8, 8) == [8]

    def test_equal_channels_are_narrowed_alike(self):
        model = backbone("resnet20")
        shapes = Shapes(model, channels(model, (3, 32, 32)))
        allowed = [levels(int(n), 1, 1, 1) for n in shapes.dense]
        equal = [np.ones(n) for n in shapes.dense]
        units = allocate(equal, allowed, shapes.macs, 0.25 * shapes.macs(shapes.dense))
        shares = units / shapes.dense
        assert shapes.macs(units) <= 0.25 * shapes.macs(shapes.dense)
        assert shares.min() > 0.4
        assert shares.max() < 0.6

    def test_where_narrower_is_slower_the_cheapest_shape_on_the_way_is_taken(self):
        first = {16: 4.0, 8: 5.0}  # as kernels for few channels may be
        second = {32: 4.0, 24: 4.0, 16: 2.0, 8: 3.0}  # and no faster for 24 than for 32
        allowed, equal = [list(first), list(second)], [np.ones(16), np.ones(32)]

        def chosen(most):
            return allocate(equal, allowed, lambda u: first[u[0]] + second[u[1]], most).tolist()

        assert chosen(8.0) == [16, 32]
        assert chosen(7.0) == [16, 16]
        assert chosen(1.0) == [16, 16]  # out of reach, and the smallest costs 8

    def test_what_matters_less_goes_first(self):
        model = backbone("resnet8")
        shapes = Shapes(model, channels(model, (3, 32, 32)))
        allowed = [levels(int(n), 1, 1, 1) for n in shapes.dense]
        values = [np.ones(n) for n in shapes.dense]
        values[1][4:] = 1e-3
        units = allocate(values, allowed, shapes.macs, 0.8 * shapes.macs(shapes.dense))
        assert units[1] < 16
        assert [g for g, n in enumerate(units) if n < shapes.dense[g]] == [1]
