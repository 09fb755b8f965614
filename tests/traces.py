"""Networks that are traced, and whether they compute what they did."""

import copy

import torch
from torch import nn

from nets import images
from pqd.graph.trace import trace


def traced(net: nn.Module, size: int = 8, channels: int = 3):
    return trace(net, "net", (channels, size, size))


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
        x = images(batch, size, channels=channels)
        torch.testing.assert_close(result.eval()(x), before.eval()(x), rtol=0, atol=1e-6)
    return result


def channels_last(*args, **kwargs):
    """As `nets.images`, in the layout in which networks are trained."""
    return images(*args, **kwargs).contiguous(memory_format=torch.channels_last)


def assert_same_function(traced: nn.Module, untraced: nn.Module, channels: int = 3) -> None:
    """Equal bits in both modes and at several batch sizes; equal gradients but for rounding."""
    assert set(traced.state_dict()) == set(untraced.state_dict())
    assert traced.training
    for training, batch in ((False, 2), (False, 5), (True, 3), (True, 5), (False, 3)):
        outputs = []
        for net in (traced, untraced):
            net.train(training)
            torch.manual_seed(2)  # of dropout
            outputs.append(net(channels_last(batch, channels=channels)))
        torch.testing.assert_close(*outputs, rtol=0, atol=0)
    for net in (traced, untraced):  # in NCHW, where oneDNN's gradients are right
        net(images(5, channels=channels)).sum().backward()
    want = dict(untraced.named_parameters())
    for name, parameter in traced.named_parameters():
        difference = (parameter.grad - want[name].grad).norm()
        assert difference <= 1e-5 * want[name].grad.norm(), name
