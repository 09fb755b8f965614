"""What the trace makes of layers and calls, and what it refuses."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nets import images
from pqd.errors import UserError
from pqd.graph.trace import trace
from traces import assert_same, layers, traced


class Standardized(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Cosine(nn.Linear):
    def forward(self, x):
        return 10 * F.linear(F.normalize(x), F.normalize(self.weight))


class Transposed(nn.Linear):
    def forward(self, x):
        return x @ self.weight.t() + self.bias


class PadsItself(nn.Conv2d):
    def forward(self, x):
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class PadsEvenly(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(input=F.pad(x, [1, 1, 1, 1]), weight=self.weight, bias=self.bias)


class Scaled(nn.Linear):
    def forward(self, x):
        return 10 * super().forward(x)


class Sugar(nn.Conv2d):
    def __init__(self, width):
        super().__init__(3, width, 3, padding=1, bias=False)


class SugarRelu(nn.ReLU):
    """Has a docstring of its own."""


class Leaky(nn.ReLU):
    def forward(self, x):
        return torch.where(x > 0, x, 0.1 * x)


class TestLayersThatInherit:
    @pytest.mark.parametrize(
        ("make", "kind"),
        [
            (
                lambda: Standardized(3, 4, 3),
                r"0 \(Standardized\) is no plain convolution.*F.conv2d",
            ),
            (lambda: Cosine(8, 4), r"0 \(Cosine\) is no plain linear layer.*nn.Linear .*F.linear"),
            (lambda: Transposed(8, 4), r"0 \(Transposed\) is no plain linear layer"),
            (
                lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
                r"0 \(ParametrizedConv2d with a parametrized weight\) is no plain convolution",
            ),
            (
                lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(8, 4)),
                r"0 \(ParametrizedLinear with a parametrized weight\) is no plain linear layer",
            ),
            (lambda: nn.utils.weight_norm(nn.Conv2d(3, 4, 3)), r"0 \(Conv2d\) is no plain conv"),
        ],
        ids=["standardized", "cosine", "transposed", "weight_norm", "spectral_norm", "old norm"],
    )
    def test_a_computed_weight_is_refused_in_one_line(self, make, kind):
        with pytest.raises(UserError, match=f"=net cannot be compressed: layer {kind}") as caught:
            traced(nn.Sequential(make()))
        assert "\n" not in str(caught.value)

    def test_a_padding_of_its_own_becomes_a_layer(self):
        net = assert_same(nn.Sequential(PadsItself(3, 4, 2, stride=2)))
        assert layers(net) == ["ZeroPad2d", "Conv2d"]

    def test_an_even_padding_moves_into_the_convolution(self):
        net = assert_same(nn.Sequential(PadsEvenly(3, 4, 3)))
        assert layers(net) == ["Conv2d"]
        assert type(net.get_submodule("0")) is nn.Conv2d
        assert net.get_submodule("0").padding == (1, 1)

    def test_what_follows_a_linear_layer_stays(self):
        net = assert_same(nn.Sequential(nn.Flatten(), Scaled(192, 4)))
        assert layers(net) == ["Flatten", "Linear"]
        assert type(net.get_submodule("1")) is nn.Linear

    def test_a_constructor_of_its_own_changes_nothing(self):
        net = assert_same(nn.Sequential(Sugar(4), SugarRelu()))
        assert [type(net.get_submodule(name)) for name in "01"] == [nn.Conv2d, nn.ReLU]

    def test_an_activation_that_does_more_is_no_relu(self):
        net = assert_same(nn.Sequential(nn.Conv2d(3, 4, 3), Leaky()))
        assert layers(net) == ["Conv2d", "Leaky"]

    def test_hooks_are_refused_where_they_would_be_lost(self):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        net[1].register_forward_hook(lambda module, inputs, out: out * 2)
        with pytest.raises(UserError, match=r"layer 1 \(BatchNorm2d\) carries a hook"):
            traced(net)

    def test_a_forward_set_on_the_layer_is_traced_into(self):
        net = nn.Sequential(nn.Conv2d(3, 4, 1))
        conv = net[0]
        conv.forward = lambda x: F.conv2d(2 * x, conv.weight, conv.bias)
        x = images(4)
        want = net(x)
        torch.testing.assert_close(traced(net)(x), want)

    def test_a_weight_that_others_read_is_refused(self):
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(8, 8)

            def forward(self, x):
                return self.fc(x) @ self.fc.weight

        with pytest.raises(UserError, match="matmul reads the weight of layer fc"):
            traced(Tied())
        net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        net[1].weight = net[0].weight
        with pytest.raises(UserError, match="layers 0 and 1 share their weight"):
            traced(net)

    @pytest.mark.parametrize("name", ["bias", "running_mean"])
    def test_tensors_that_layers_share_are_refused(self, name):
        net = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        setattr(net[2], name, getattr(net[0], name))
        with pytest.raises(UserError, match=f"layers 0 and 2 share their {name}; .* a {name} each"):
            traced(net)

    def test_a_batch_norm_that_is_called_twice_is_refused(self):
        norm = nn.BatchNorm2d(3)
        net = nn.Sequential(nn.Conv2d(3, 3, 1), norm, nn.Conv2d(3, 3, 1), norm)
        with pytest.raises(UserError, match="calls layer 1 2 times; once is supported"):
            traced(net)


class TestCalls:
    def test_tensors_are_positional(self):
        class Named(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 4, 3, padding=1)

            def forward(self, x):
                x = F.relu(input=self.conv(input=x))
                x = torch.add(input=x, other=F.max_pool2d(kernel_size=1, input=x))
                x = torch.cat(tensors=[x, x.add(other=x)], dim=1)
                return torch.flatten(start_dim=1, input=x)

        net = assert_same(Named())
        for node in net.graph.nodes:
            assert not any(isinstance(v, list | torch.fx.Node) for v in node.kwargs.values())
            assert node.op == "placeholder" or node.args

    def test_what_the_image_size_decides_is_decided(self):
        class Sized(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 4, 3)

            def forward(self, x):
                x = self.conv(x)
                b, c, h, w = x.shape
                if h < 7 and x.size(-1) == w and x.ndim == 4:
                    x = F.interpolate(x, size=(7, 7))
                return x.reshape(b, c * x.shape[2] * 7)

        net = assert_same(Sized())
        assert net(images(5)).shape == (5, 4 * 49)

    def test_what_the_batch_decides_is_refused(self):
        class Batched(nn.Module):
            def forward(self, x):
                return x if x.shape[0] > 1 else -x

        with pytest.raises(UserError, match=r'"return x if x.shape\[0\] > 1 else -x" in .*own'):
            traced(Batched())

    def test_tracing_leaves_buffers_and_the_generator_alone(self):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
        state, before = torch.get_rng_state(), copy.deepcopy(net.state_dict())
        result = traced(net)
        assert torch.equal(torch.get_rng_state(), state)
        after = result.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class DropsByItself(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Flatten()

    def forward(self, x):
        return F.alpha_dropout(self.fc(x), 0.5, self.training)


class Holder(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def test_an_untraceable_network_is_refused_naming_operation_and_layer():
    inner = Branching()
    inner.add_module("child", nn.ReLU())  # a layer without children is not traced into
    message = (
        r'=mine .*"return x if x.sum\(\) > 0 else -x" in layer inner \(Branching\): TraceError'
    )
    with pytest.raises(UserError, match=message):
        trace(Holder(inner), "mine", (3, 8, 8))


def test_a_network_whose_mode_would_be_frozen_is_refused():
    with pytest.raises(UserError, match="alpha_dropout differs between training and evaluation"):
        trace(Holder(DropsByItself()), "mine", (3, 8, 8))


def test_layers_that_cannot_be_deployed_are_named():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.conv(self.conv(x))

    with pytest.raises(UserError, match=r"backbone.name=net calls layer conv 2 times; once is"):
        traced(Twice())
    with pytest.raises(UserError, match="batch norm 0 keeps no running statistics"):
        traced(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)))
