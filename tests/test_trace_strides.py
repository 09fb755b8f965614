"""Strides whose gradients oneDNN gets wrong are traced into others."""

import copy
import itertools

import torch
from torch import nn

from pqd.backbones import build
from pqd.config import BackboneConfig
from pqd.graph.trace import trace
from traces import assert_same, assert_same_function, channels_last, layers, traced


def test_gradients_of_a_narrow_strided_convolution_are_right_in_channels_last():
    net = nn.Sequential(nn.Conv2d(3, 8, 1, stride=2, bias=False))
    exact = copy.deepcopy(net).double()
    got = traced(net)(channels_last(2))
    want = exact(channels_last(2).double())
    torch.testing.assert_close(got, want.float())
    got.square().sum().backward()
    want.square().sum().backward()
    torch.testing.assert_close(net[0].weight.grad, exact[0].weight.grad.float())


def test_a_padded_strided_convolution_keeps_its_stride():
    net = nn.Sequential(nn.Conv2d(3, 8, 1, stride=2, padding=1))
    assert_same_function(traced(copy.deepcopy(net)), net)


def test_small_images_meet_no_stride_that_is_larger_than_their_map():
    """As oneDNN gets the gradients of such convolutions wrong in bfloat16."""
    net = build(
        BackboneConfig("resnet18_imagenet_stem", "resnet18_imagenet_stem"),
        classes=10,
        channels=1,
        image_size=8,
    )
    strides = [net.get_submodule(f"layer{i}.0.conv1").stride for i in (2, 3, 4)]
    assert strides == [(2, 2), (1, 1), (1, 1)]  # maps of 2x2, 1x1, 1x1


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
