"""Kept channels: taking channels away changes nothing that zeros would not, in every order."""

import copy

import onnx
import pytest
import torch
from torch import nn

from nets import PreActivation, Residual, images, traced
from pqd.backbones import build
from pqd.config import BackboneConfig
from pqd.constraints import attach, describe, rebuild
from pqd.constraints.channels import KeptChannels
from pqd.constraints.fake_quant import activation_fake_quants
from pqd.constraints.mask import Masks, masks, set_masks
from pqd.constraints.quantization import FakeQuantization
from pqd.export.deploy import deployed
from pqd.export.onnx_file import write_onnx
from pqd.graph.channels import channels
from pqd.stages.quantize import calibrate

NAMED = ["resnet8", "resnet20", "resnet18", "resnet18_imagenet_stem", "vgg16_bn"]
WIDE = pytest.param("wrn28_10", marks=pytest.mark.slow)
TIMM = ["mobilenetv2_050", "regnetx_002", "densenet121", "legacy_seresnet18", "ghostnet_050"]


def kept(model, size, seed=0):
    """A random half of the units of every group."""
    groups = channels(model, (3, size, size)).groups
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.rand(group.units, generator=generator).argsort() for group in groups]
    return KeptChannels.of(model, groups, [order < (len(order) + 1) // 2 for order in drawn])


def backbone(name, size, builder=None):
    torch.manual_seed(0)
    model = build(BackboneConfig(builder or name, name), 10, 3, size)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2)
    return model


def codes(model, x):
    """The codes of every activation quantizer, [B, C, ...], and the logits."""
    found = {}

    def note(name, quantizer):
        def hook(_module, _inputs, output):
            found[name] = torch.round(output / quantizer.scale)

        return hook

    quantizers = activation_fake_quants(model)
    hooks = [q.register_forward_hook(note(name, q)) for name, q in quantizers.items()]
    with torch.no_grad():
        logits = model.eval()(x)
    for hook in hooks:
        hook.remove()
    return found, logits


def assert_same(masked, shrunk, x):
    """In float64, where no sum is rounded so much that a code changes."""
    wanted, logits = codes(masked.double(), x.double())
    given, own = codes(shrunk.double(), x.double())
    assert torch.allclose(logits, own, rtol=1e-9, atol=1e-9)
    for name, code in wanted.items():
        if code.shape == given[name].shape:
            assert torch.equal(code, given[name])
            continue
        # Channels stay in their order; what is left out is constant over all images.
        left = iter(code.transpose(0, 1))
        for channel in given[name].transpose(0, 1):
            assert any(torch.equal(channel, other) for other in left)


class TestShrinking:
    @pytest.mark.parametrize("quantized", [False, True])
    @pytest.mark.parametrize("name", [*NAMED, WIDE, *TIMM])
    def test_changes_nothing(self, name, quantized):
        size = 32
        model = backbone(name, size, "timm" if name in TIMM else None)
        x = images(2, size)
        if quantized:
            attach(model, FakeQuantization(127))
            calibrate(model, [x])
        constraint = kept(model, size)
        masked = copy.deepcopy(model)
        constraint.zero(masked)
        attach(model, constraint)
        assert sum(p.numel() for p in model.parameters()) < sum(
            p.numel() for p in masked.parameters()
        )
        assert_same(masked, model, x)

    @pytest.mark.parametrize("kind", [Residual, PreActivation])
    @pytest.mark.parametrize("order", ["c", "cq", "qc", "mc", "cm", "mcq", "qmc", "mqc", "cmq"])
    def test_every_order_of_constraints(self, kind, order):
        x = images(8)
        model = traced(kind)
        layers = ["conv1", "conv2", "fc"]
        given = {
            "m": lambda: Masks(layers),
            "q": lambda: FakeQuantization(127),
            "c": lambda: kept(model, 8),
        }
        for letter in order:
            constraint = given[letter]()
            if letter == "c":
                masked = copy.deepcopy(model)
                constraint.zero(masked)
                attach(model, constraint)
                assert_same(masked, copy.deepcopy(model), x)
                continue
            attach(model, constraint)
            if letter == "m":
                set_masks(model, 0.5, "layer")
            else:
                calibrate(model, [x])
        again = traced(kind, seed=7)
        rebuild(again, describe(model))
        again.load_state_dict(model.state_dict())
        assert torch.equal(again.eval()(x), model.eval()(x))
        assert {name: mask.mask.shape for name, mask in masks(model).items()} == {
            name: model.get_submodule(name).weight.shape for name in masks(model)
        }
        deployed(model)

    def test_a_narrow_strided_convolution_gets_a_pool(self):
        model = backbone("resnet20", 32)
        constraint = kept(model, 32)
        attach(model, constraint)
        layer = model.get_submodule("layer2.0.downsample.0")
        assert layer.in_channels == 8
        assert layer.stride == (1, 1)
        again = backbone("resnet20", 32)
        rebuild(again, describe(model))
        assert again.code == model.code

    def test_no_channel_of_the_file_is_zero(self, tmp_path):
        model = traced(Residual)
        attach(model, FakeQuantization(127))
        calibrate(model, [images(8)])
        attach(model, kept(model, 8))
        write_onnx(model, tmp_path / "model.onnx", (3, 8, 8), {})
        weights = [
            onnx.numpy_helper.to_array(tensor)
            for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer
            if len(tensor.dims) > 1
        ]
        assert sorted(weight.shape for weight in weights) == [(4, 3, 3, 3), (4, 4), (4, 4, 3, 3)]
        for weight in weights:
            for axis in (0, 1):
                others = tuple(set(range(weight.ndim)) - {axis})
                assert abs(weight).max(axis=others).all()
