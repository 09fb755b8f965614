"""Learned steps: what is trained is what is saved and deployed, exactly."""

import numpy as np
import pytest
import torch

from configs import fitted, stage
from nets import Batches, PreActivation, Residual, images, traced
from pqd.config import BackboneConfig
from pqd.constraints import attach, constraints, without_integers
from pqd.constraints.fake_quant import activation_fake_quants
from pqd.constraints.integers import round_biases
from pqd.constraints.lsq import LearnedSteps, LearnedWeightFakeQuant
from pqd.constraints.mask import Masks, masks, set_masks
from pqd.constraints.parametrization import find
from pqd.export.deploy import deployed
from pqd.export.onnx_file import write_onnx
from pqd.networks import Blueprint, load_network, save_network
from pqd.stages.quantize import calibrate


@pytest.mark.parametrize("kind", [Residual, PreActivation])
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("pruned", ["", "before", "after"])
class TestExport:
    def network(self, kind, bits, pruned):
        """A network that was trained a little."""
        batches = Batches(of=16, fixed=True)
        found = stage("quantize", batches, epochs=2, quantizer="lsq", weight_bits=bits)
        model = traced(kind)
        if pruned == "before":
            attach(model, Masks(["conv1", "conv2"]))
            set_masks(model, 0.5, "layer")
        found.attach(model)
        if pruned == "after":
            attach(model, Masks(["conv1", "conv2"]))
            set_masks(model, 0.5, "layer")
        fitted(model, found)
        round_biases(model)
        return model.eval()

    def test_deployed_is_the_network(self, kind, bits, pruned):
        model = self.network(kind, bits, pruned)
        x = images(64, seed=9)
        with torch.no_grad():
            wanted, found = model(x), deployed(model)(x)
        step = (wanted.max() - wanted.min()) / 100
        assert (wanted.argmax(1) == found.argmax(1)).float().mean() >= 0.98
        assert (wanted - found).abs().mean() < step

    def test_codes_and_scales_are_those_that_were_trained(self, kind, bits, pruned):
        model = self.network(kind, bits, pruned)
        integer = deployed(model)
        for name, quantizer in find(model, LearnedWeightFakeQuant).items():
            weight = model.get_submodule(name).weight.detach()
            codes = integer.get_submodule(name).codes
            largest = 2 ** (bits - 1) - 1
            assert codes.abs().max() <= largest
            stored = model.get_submodule(name).parametrizations.weight.original
            if name in masks(model):
                stored = masks(model)[name](stored)
            step = quantizer.scale(stored)
            unsigned = (codes.float() * step).abs()  # a batch norm may have turned the sign
            assert torch.allclose(unsigned, weight.abs(), rtol=1e-6, atol=0)
            if name in masks(model):
                assert (codes == 0).float().mean() >= 0.5
        for name, quantizer in activation_fake_quants(model).items():
            assert torch.equal(integer.get_submodule(name).scale, quantizer.scale)


def test_onnx_runtime_agrees(tmp_path):
    import onnxruntime

    model = TestExport().network(Residual, 4, "before")
    write_onnx(model, tmp_path / "model.onnx", (3, 8, 8), {})
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    x = images(64, seed=9)
    (found,) = session.run(None, {"input": x.numpy()})
    with torch.no_grad():
        assert np.array_equal(found.argmax(1), model(x).argmax(1).numpy())


@pytest.mark.parametrize("order", ["q", "pq", "qp"])
def test_round_trip(tmp_path, order):
    torch.manual_seed(0)
    blueprint = Blueprint(BackboneConfig("resnet8", "resnet8", {}), 10, 3, 16)
    model = blueprint.build()
    for letter in order:
        if letter == "p":
            attach(model, Masks(["conv1", "fc"]))
            set_masks(model, 0.5, "global")
        else:
            attach(model, LearnedSteps(7))
            calibrate(model, [images(4, 16)])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("step"):
                parameter.mul_(1.1)
    save_network(model, blueprint, tmp_path)
    again = load_network(tmp_path)
    x = images(4, 16, seed=3)
    assert torch.equal(again.eval()(x), model.eval()(x))
    assert [c.name for c in constraints(again)] == [c.name for c in constraints(model)]
    state = again.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    without_integers(again)
    assert not any(name.endswith("step") for name in again.state_dict())
