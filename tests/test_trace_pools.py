"""Pools and paddings are exported as they were traced, or refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nets import images
from pqd.constraints import attach as constrain
from pqd.constraints.quantization import FakeQuantization
from pqd.errors import UserError
from pqd.export.deploy import deployed
from pqd.export.onnx_file import write_onnx
from pqd.runtimes import usable
from pqd.stages.quantize import calibrate
from traces import assert_same, layers, traced


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


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular", "replicate"])
@pytest.mark.parametrize("padding", [0, 1])
def test_zeros_around_a_convolution_stay_zeros(mode, padding):
    convolution = nn.Conv2d(3, 8, 3, padding=padding, padding_mode=mode)
    assert_same(nn.Sequential(nn.ZeroPad2d(1), convolution), 8)
