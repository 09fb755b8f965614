"""Convolutions with standardized weights (timm's BiT networks): right in every stage and export."""

import json

import onnx
import pytest
import torch
from torch import nn

import odd_nets
from nets import images
from pqd.backbones import build
from pqd.config import BackboneConfig
from pqd.constraints import attach
from pqd.constraints.fake_quant import WeightFakeQuant
from pqd.constraints.integers import round_biases
from pqd.constraints.lsq import LearnedSteps
from pqd.constraints.mask import Mask, Masks, set_masks, sparsity
from pqd.constraints.parametrization import attached
from pqd.constraints.quantization import FakeQuantization
from pqd.export.deploy import deployed
from pqd.export.onnx_file import write_onnx
from pqd.graph.channels import channels
from pqd.graph.standardize import Standardize
from pqd.graph.trace import trace
from pqd.networks import Blueprint, load_network, save_network
from pqd.runtimes import usable
from pqd.stages.quantize import calibrate
from pqd.weights import load_checkpoint


def tiny(classes: int, channels: int, image_size: int, same: bool = False) -> nn.Module:
    """A BiT network of two stages, with group norms, as `resnetv2_50x1_bit`."""
    from functools import partial

    from timm.layers import GroupNormAct, StdConv2d, StdConv2dSame
    from timm.models.resnetv2 import ResNetV2

    return ResNetV2(
        layers=(1, 1),
        channels=(32, 64),
        num_classes=classes,
        in_chans=channels,
        stem_chs=16,
        stem_type="same" if same else "fixed",
        norm_layer=partial(GroupNormAct, num_groups=8),
        conv_layer=partial(StdConv2dSame if same else StdConv2d, eps=1e-4),
    )


def blueprint(same: bool = False) -> Blueprint:
    backbone = BackboneConfig(builder=f"{__name__}.tiny", name="bit", kwargs={"same": same})
    return Blueprint(backbone, classes=10, channels=3, image_size=8)


def built(same: bool = False):
    torch.manual_seed(0)
    return blueprint(same).build()


LAYERS = "stem.conv", "stages.0.blocks.0.conv2", "stages.1.blocks.0.downsample.conv"


@pytest.mark.parametrize("same", [False, True])
def test_it_computes_what_timm_does(same):
    torch.manual_seed(0)
    untraced, net = tiny(10, 3, 8, same), built(same)
    for training in (True, False):
        x = images(4, 8)
        torch.testing.assert_close(net.train(training)(x), untraced.train(training)(x))
    net(x).square().sum().backward()
    untraced(x).square().sum().backward()
    for name in LAYERS:
        gradient = attached(net.get_submodule(name)).original.grad
        torch.testing.assert_close(gradient, untraced.get_submodule(name).weight.grad)


def test_a_bit_network_of_timm_is_accepted():
    net = build(BackboneConfig("timm", "resnetv2_50x1_bit"), classes=7, channels=3, image_size=32)
    kinds = {type(p) for m in net.modules() for p in attached(m) or ()}
    assert kinds == {Standardize}


@pytest.mark.parametrize("order", ["pq", "qp"])
@pytest.mark.parametrize("quantization", [FakeQuantization, LearnedSteps])
def test_weights_are_standardized_then_masked_then_quantized(order, quantization):
    net = built()
    constraints = {"p": Masks(LAYERS), "q": quantization(127)}
    for letter in order:
        attach(net, constraints[letter])
    for layer in LAYERS:
        first, second, third = attached(net.get_submodule(layer))
        assert [type(first), type(second)] == [Standardize, Mask]
        assert isinstance(third, WeightFakeQuant)
    weights = {name: net.get_submodule(name).weight for name in LAYERS}
    set_masks(net, 0.5, "global")
    assert sparsity(net) == pytest.approx(0.5, abs=1e-4)
    for name in LAYERS:
        left = net.get_submodule(name).weight
        pruned = ~attached(net.get_submodule(name))[1].mask
        assert pruned.any()
        assert (left[pruned] == 0).all()
        if quantization is FakeQuantization:  # its scales follow the largest weights, which stay
            assert torch.equal(left[~pruned], weights[name][~pruned])


def test_pruning_ranks_standardized_weights():
    net = built()
    attach(net, Masks(LAYERS[1:2]))
    layer = net.get_submodule(LAYERS[1])
    with torch.no_grad():
        attached(layer).original[0] *= 1e-3  # and the standardized weight is what it was
        attached(layer).original[1] += 100.0
    standardized = layer.weight.detach().clone()
    set_masks(net, 0.25, "global")
    smallest = standardized.abs().flatten().sort().values[round(0.25 * standardized.numel())]
    assert torch.equal(layer.weight == 0, standardized.abs() < smallest)


def trained(compressed: bool):
    net = built()
    odd_nets.train(net, 60)
    if compressed:
        attach(net, Masks(LAYERS))
        set_masks(net, 0.5, "global")
        attach(net, FakeQuantization(127))
        calibrate(net, [odd_nets.data(256, 1)[0]])
        odd_nets.train(net, 10)
        calibrate(net, [odd_nets.data(256, seed)[0] for seed in (1, 2)])
        round_biases(net)
    return net.eval()


@pytest.mark.parametrize("compressed", [False, True])
def test_runtimes_agree(compressed, tmp_path):
    net = trained(compressed)
    write_onnx(net, tmp_path / "model.onnx", (3, 8, 8), {})
    images, classes = odd_nets.data(1000, 3)
    with torch.no_grad():
        own = net(images)
    assert (own.argmax(1) == classes).float().mean() > 0.5
    assert not any(attached(m) for m in deployed(net).modules())
    for runtime in ("onnxruntime", "openvino"):
        theirs = torch.from_numpy(usable(runtime).open(tmp_path / "model.onnx", 1)(images.numpy()))
        assert (own.argmax(1) == theirs.argmax(1)).float().mean() >= 0.995, runtime
    nodes = onnx.load(tmp_path / "model.onnx").graph.node
    assert "BatchNormalization" not in {node.op_type for node in nodes}  # standardized once


def test_pruned_weights_are_zero_in_the_deployed_network():
    net = built()
    attach(net, Masks(LAYERS))
    set_masks(net, 0.5, "layer")
    odd_nets.train(net, 3)
    weights = deployed(net)
    for name in LAYERS:
        zeros = weights.get_submodule(name).weight == 0
        assert zeros.sum() == round(0.5 * zeros.numel())


def test_a_recipe_names_masks_alone_and_gives_the_network_back(tmp_path):
    net = built()
    attach(net, Masks(LAYERS))
    set_masks(net, 0.5, "global")
    save_network(net, blueprint(), tmp_path)
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    assert [c["constraint"] for c in recipe["constraints"]] == ["mask"]
    again = load_network(tmp_path)
    x = images(4, 8)
    assert torch.equal(again.eval()(x), net.eval()(x))


def test_a_checkpoint_of_timms_network_loads(tmp_path):
    torch.manual_seed(7)
    untraced = tiny(10, 3, 8)
    torch.save(untraced.state_dict(), tmp_path / "bit.pt")
    net = built()
    load_checkpoint(net, tmp_path / "bit.pt", new_head=False)
    x = images(4, 8)
    torch.testing.assert_close(net.eval()(x), untraced.eval()(x))


def test_channels_that_are_read_standardized_stay():
    class Net(nn.Module):
        def __init__(self):
            from timm.layers import StdConv2d

            super().__init__()
            self.first = nn.Conv2d(3, 8, 3)
            self.second = StdConv2d(8, 8, 3, padding=0)
            self.third = nn.Conv2d(8, 8, 1)
            self.last = nn.Conv2d(8, 4, 2)

        def forward(self, x):
            x = torch.relu(self.second(torch.relu(self.first(x))))
            return self.last(torch.relu(self.third(x))).mean((2, 3))

    found = channels(trace(Net(), "net", (3, 8, 8)), (3, 8, 8))
    assert [group.name for group in found.groups] == ["third"]
    assert found.unsupported == ("second (ParametrizedConv2d)",)
