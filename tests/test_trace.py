"""What the trace makes of layers, calls, paddings, pools and strides, and what it refuses."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pqd.constraints import attach as constrain
from pqd.constraints.quantization import FakeQuantization
from pqd.errors import UserError
from pqd.export.deploy import deployed
from pqd.export.onnx_file import write_onnx
from pqd.graph.trace import trace
from pqd.runtimes import usable
from pqd.stages.quantize import calibrate


def traced(net: nn.Module, size: int = 8, channels: int = 3):
    return trace(net, "net", (channels, size, size))


def images(batch: int = 4, size: int = 8, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, channels, size, size, generator=generator)


def layers(net) -> list[str]:
    return [
        type(net.get_submodule(node.target)).__name__
        for node in net.graph.nodes
        if node.op == "call_module"
    ]


def assert_same(net: nn.Module, size: int = 8, channels: int = 3):
    """The traced network computes what it did, and keeps its parameters; returns it."""
    before = copy.deepcopy(net)
    result = traced(net, size, channels)
    assert set(result.state_dict()) == set(before.state_dict())
    for batch in (1, 4):
        x = images(batch, size, channels)
        torch.testing.assert_close(result.eval()(x), before.eval()(x), rtol=0, atol=1e-6)
    return result


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
        x = images()
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


class Pool(nn.Module):
    """Integer layers around a pool."""

    def __init__(self, pool):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.relu = nn.ReLU()
        self.pool = pool
        self.last = nn.Conv2d(8, 8, 1)
        self.flatten = nn.Flatten()

    def forward(self, x):
        return self.flatten(self.last(self.pool(self.relu(self.conv(x)))))


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.inner = nn.Identity()  # a layer without children would stay whole

    def forward(self, x):
        return self.function(x)


class Negative(nn.Module):
    def forward(self, x):
        return x - 1


POOLS = {
    "average 3 2 1 ceil": lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    "average 3 2 0 ceil": lambda: nn.AvgPool2d(3, 2, ceil_mode=True),
    "average 2 ceil": lambda: nn.AvgPool2d(2, ceil_mode=True),
    "average 3 3 1 ceil": lambda: nn.AvgPool2d(3, 3, 1, ceil_mode=True),
    "average 5 4 2 ceil": lambda: nn.AvgPool2d(5, 4, 2, ceil_mode=True),
    "average (3, 2) ceil": lambda: nn.AvgPool2d((3, 2), (2, 3), (1, 0), ceil_mode=True),
    "average, padding not counted": lambda: nn.AvgPool2d(3, 2, 1, True, False),
    "average, functional": lambda: Function(lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True)),
    "max 3 2 1 ceil": lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    "adaptive average": lambda: nn.AdaptiveAvgPool2d(3),
    "adaptive average, larger": lambda: nn.AdaptiveAvgPool2d(12),
    "adaptive max": lambda: nn.AdaptiveMaxPool2d((1, None)),
    "interpolate": lambda: nn.Upsample(scale_factor=1.5, mode="bilinear"),
    "same max": lambda: Function(
        lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-float("inf")), 3, 2)
    ),
    "max in zeros": lambda: nn.Sequential(Negative(), nn.ZeroPad2d(1), nn.MaxPool2d(3, 2)),
    "same average": lambda: Function(lambda x: F.avg_pool2d(F.pad(x, (0, 1, 0, 1)), 3, 2)),
}


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("integers", [True, False], ids=["integers", "floats"])
def test_pools_are_exported_right(pool, size, integers, tmp_path):
    torch.manual_seed(0)
    net = assert_same(Pool(POOLS[pool]()), size)
    x = images(16, size)
    if integers:
        constrain(net, FakeQuantization(127))
        calibrate(net, [x])
    with torch.no_grad():
        want = deployed(net.eval())(x)
    write_onnx(net, tmp_path / "model.onnx", (3, size, size), {})
    for runtime in ("onnxruntime", "openvino"):
        got = torch.tensor(usable(runtime).open(tmp_path / "model.onnx", 1)(x.numpy()))
        assert (got - want).abs().mean() < 1e-3 * want.abs().mean(), runtime


@pytest.mark.parametrize("size", [8, 9])
def test_an_adaptive_max_pool_of_even_windows_is_a_max_pool(size):
    net = assert_same(nn.Sequential(nn.AdaptiveMaxPool2d(2)), size)  # 9: two of 5 that overlap
    assert layers(net) == ["MaxPool2d"]


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (nn.AdaptiveMaxPool2d(3), r"output_size=\(3, 3\) of maps of \(8, 8\), which ONNX lacks"),
        (nn.AvgPool2d(3, divisor_override=5), "divisor_override=5.*divisor_override=None is supp"),
        (nn.CircularPad2d(1), "mode=circular, which OpenVINO lacks; constant or reflect is supp"),
        (Function(lambda x: F.pad(x, (1, 1, 1, 1), mode="circular")), "mode=circular, which OpenV"),
        (nn.ConstantPad2d(1, -float("inf")), "value=-inf; a finite value, or a max-pool behind"),
        (
            Function(lambda x: F.interpolate(x, (3, 3), mode="bilinear", antialias=True)),
            "antialias=True, which OpenVINO ignores; antialias=False is supported",
        ),
    ],
)
def test_what_a_runtime_gets_wrong_is_refused(operation, message):
    with pytest.raises(UserError, match=f"=net cannot be exported: .* has {message}"):
        traced(nn.Sequential(operation))


class TestStridesLargerThanMaps:
    def test_bfloat16_gradients_are_right(self):
        """Where the CPU computes in bfloat16; elsewhere they are right anyway."""
        grid = itertools.product((2, 3, 5), (2, 3, (1, 2), (2, 1)), (1, 2), (1, 2, 3), (1, 16))
        for kernel, stride, height, width, groups in grid:
            torch.manual_seed(0)
            net = nn.Sequential(nn.Conv2d(16, 16, kernel, stride, kernel // 2, groups=groups))
            exact = copy.deepcopy(net)
            result = trace(net, "net", (16, height, width)).to(memory_format=torch.channels_last)
            x = torch.randn(4, 16, height, width).contiguous(memory_format=torch.channels_last)
            want = exact(x)
            want.square().sum().backward()
            torch.testing.assert_close(result(x), want)
            with torch.autocast("cpu", torch.bfloat16):
                got = result(x)
            got.float().square().sum().backward()
            difference = (net[0].weight.grad - exact[0].weight.grad).norm()
            assert difference < 0.02 * exact[0].weight.grad.norm(), (kernel, stride, height, width)

    def test_no_stride_is_larger_than_its_map(self):
        """The condition under which oneDNN leaves the gradient uninitialized."""
        for kernel, stride, size in itertools.product((2, 3, 5), (2, 3, 5), (1, 2, 3)):
            net = nn.Sequential(nn.Conv2d(3, 4, kernel, stride, kernel // 2, bias=False))
            result = assert_same(net, size)
            calls = [node for node in result.graph.nodes if node.op == "call_module"]
            *padding, convolution = (result.get_submodule(n.target) for n in calls)
            grown = size + 2 * padding[0].padding[0] if padding else size
            assert convolution.stride[0] <= grown, (kernel, stride, size)

    def test_other_convolutions_keep_their_stride(self):
        for layer in (nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(16, 4, 1, 2)):
            net = assert_same(nn.Sequential(layer), 8, layer.in_channels)
            assert layers(net) == ["Conv2d"]
            assert net.get_submodule("0").stride == (2, 2)
