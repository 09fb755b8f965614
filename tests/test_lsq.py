"""Learned steps: where they start, what they give, and the paper's gradients."""

import math

import numpy as np
import pytest
import torch

import odd_nets
from nets import Residual, images, quantized, traced
from pqd.artifact.make import _parameters
from pqd.constraints import attach, constraints, fake_quant
from pqd.constraints.fake_quant import activation_fake_quants
from pqd.constraints.lsq import LearnedActivationFakeQuant, LearnedSteps, LearnedWeightFakeQuant
from pqd.constraints.parametrization import find, value_before
from pqd.stages.quantize import calibrate


def test_steps_are_no_parameters_of_the_network():
    model = traced(Residual)
    count = sum(p.numel() for p in model.parameters())
    attach(model, LearnedSteps(127))
    calibrate(model, [images()])
    assert _parameters(model) == count < sum(p.numel() for p in model.parameters())


class TestWeight:
    def test_gradients_at_4_bits_equal_the_hand_computation(self):
        weight = torch.tensor([[0.2, -0.9, 1.26, 0.5], [0.1, 0.1, -0.3, 6.0]])
        quantizer = LearnedWeightFakeQuant(7, weight)
        with torch.no_grad():
            quantizer.step.copy_(torch.tensor([[0.1], [0.5]]))
        given = weight.clone().requires_grad_()
        out = quantizer(given)
        # Row 0: w / s = 2, -9, 12.6, 5; row 1: 0.2, 0.2, -0.6, 12. Q = 7.
        expected = torch.tensor([[0.2, -0.7, 0.7, 0.5], [0.0, 0.0, -0.5, 3.5]])
        assert torch.allclose(out, expected)
        grad = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]])
        out.backward(grad)
        assert given.grad.tolist() == [[1.0, 0.0, 0.0, 4.0], [1.0, 2.0, 3.0, 0.0]]
        row0 = 1 * (2 - 2) + 2 * -7 + 3 * 7 + 4 * (5 - 5)
        row1 = 1 * (0 - 0.2) + 2 * (0 - 0.2) + 3 * (-1 + 0.6) + 4 * 7
        gain = 1 / math.sqrt(4 * 7)
        assert quantizer.step.grad.flatten().tolist() == pytest.approx(
            [row0 * gain, row1 * gain], rel=1e-5
        )

    def test_gradients_equal_the_formula_on_a_convolution(self):
        torch.manual_seed(0)
        weight = torch.randn(5, 3, 3, 3)
        quantizer = LearnedWeightFakeQuant(7, weight)
        with torch.no_grad():
            quantizer.step.copy_(weight.abs().amax((1, 2, 3), keepdim=True) / 10)
        given, grad = weight.clone().requires_grad_(), torch.randn(5, 3, 3, 3)
        quantizer(given).backward(grad)
        s = quantizer.step.detach().double().numpy()
        ratio, g = weight.double().numpy() / s, grad.double().numpy()
        inside = np.abs(ratio) < 7
        slope = np.where(inside, np.round(ratio) - ratio, 7 * np.sign(ratio))
        expected = (g * slope).sum((1, 2, 3)) / math.sqrt(27 * 7)
        assert quantizer.step.grad.flatten().tolist() == pytest.approx(expected.tolist(), rel=1e-4)
        assert np.array_equal(given.grad.numpy(), np.where(inside, grad.numpy(), 0))

    def test_starts_as_the_paper_says(self):
        torch.manual_seed(0)
        weight = torch.randn(4, 3, 3, 3)
        for code_max in (1, 3, 127):
            step = LearnedWeightFakeQuant(code_max, weight).step.flatten()
            expected = 2 * weight.abs().mean((1, 2, 3)) / math.sqrt(code_max)
            assert torch.allclose(step, expected)
        sparse = weight * (weight.abs() > 1)
        of_sparse = LearnedWeightFakeQuant(3, sparse).step.flatten()
        expected = [2 * row[row != 0].abs().mean().item() / 3**0.5 for row in sparse.flatten(1)]
        assert of_sparse.tolist() == pytest.approx(expected)

    @pytest.mark.parametrize(("code_max", "least"), [(1, 0.25), (7, 0.46863), (127, 0.78977)])
    def test_a_step_stays_at_or_a_little_below_that_of_abs_max(self, code_max, least):
        weight = torch.linspace(-code_max, code_max, 29).view(1, -1)  # abs-max has step 1
        quantizer = LearnedWeightFakeQuant(code_max, weight)
        for given, used in ((-1.0, least), (0.0, least), (0.9, 0.9), (9.0, 1.0)):
            with torch.no_grad():
                quantizer.step.fill_(given)
            assert quantizer.scale(weight).item() == pytest.approx(used, rel=1e-4)

    def test_before_a_step_all_steps_are_back_in_their_intervals(self):
        model = quantized(LearnedSteps, 4)
        steps = {n: p for n, p in model.named_parameters() if n.endswith("step")}
        with torch.no_grad():
            for step in steps.values():
                step.fill_(1e9)
        (constraint,) = constraints(model)
        constraint.before_step(model, 0, 1, None)
        for name, learned in find(model, LearnedWeightFakeQuant).items():
            weight = value_before(model.get_submodule(name), LearnedWeightFakeQuant)
            largest = weight.abs().amax(tuple(range(1, weight.ndim)), keepdim=True)
            torch.testing.assert_close(learned.step.detach(), largest / learned.code_max)
        for quantizer in activation_fake_quants(model).values():
            assert torch.equal(quantizer.step, 4 * quantizer.calibrated)

    def test_a_quantizer_of_several_places_is_trained(self):
        model = odd_nets.trained(odd_nets.Split)
        attach(model, LearnedSteps(127))
        calibrate(model, [odd_nets.data(64, 1)[0]])
        shared = [q for q in activation_fake_quants(model).values() if q.calls > 1]
        before = [q.step.item() for q in shared]
        odd_nets.train(model, 2)
        assert shared
        assert all(q.step.item() != old for q, old in zip(shared, before, strict=True))

    def test_the_largest_weight_at_abs_max_is_not_clipped(self):
        torch.manual_seed(0)
        weight = torch.randn(64, 27).requires_grad_()
        quantizer = LearnedWeightFakeQuant(127, weight)
        quantizer(weight).sum().backward()
        assert torch.equal(weight.grad, torch.ones(64, 27))

    @pytest.mark.parametrize("step", [-1.0, 0.0, 1e-20])
    def test_a_step_that_collapsed_stays_finite(self, step):
        quantizer = LearnedWeightFakeQuant(7, torch.ones(2, 3))
        with torch.no_grad():
            quantizer.step.fill_(step)
        out = quantizer(torch.ones(2, 3, requires_grad=True))
        out.sum().backward()
        assert out.isfinite().all()
        assert quantizer.step.grad.isfinite().all()
        assert quantizer.codes(torch.ones(2, 3)).tolist() == [[7] * 3] * 2

    def test_a_channel_of_zeros(self):
        quantizer = LearnedWeightFakeQuant(7, torch.zeros(2, 3))
        assert quantizer(torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2


class TestActivation:
    def quantizer(self, low=-0.5, high=2.05):
        found = LearnedActivationFakeQuant()
        found.observing = True
        found(torch.tensor([low, high]))
        with torch.no_grad():
            found.end_observation()
        return found

    def test_starts_from_calibration(self):
        found = self.quantizer()
        assert found.step.item() == pytest.approx(0.01)
        assert found.zero_point.item() == 50
        assert torch.equal(found.scale, found.step)

    @pytest.mark.parametrize("eager", [True, False])
    def test_values_and_gradients(self, eager, monkeypatch):
        monkeypatch.setattr(fake_quant, "eager", lambda x: eager)
        found = self.quantizer()
        x = torch.tensor([[-0.7, 0.006, 1.0], [0.514, 3.0, -0.2]], requires_grad=True)
        out = found(x)
        # x / s = -70, 0.6, 100; 51.4, 300, -20, and codes lie in [-50, 205].
        expected = torch.tensor([[-0.5, 0.01, 1.0], [0.51, 2.05, -0.2]])
        assert torch.allclose(out, expected, atol=1e-6)
        out.backward(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
        assert x.grad.tolist() == [[0.0, 2.0, 3.0], [4.0, 0.0, 6.0]]
        slope = 1 * -50 + 2 * (1 - 0.6) + 3 * 0 + 4 * (51 - 51.4) + 5 * 205 + 6 * 0
        gain = 1 / math.sqrt(3 * 255)  # three values of an image share it
        assert found.step.grad.item() == pytest.approx(slope * gain, rel=1e-4)

    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    def test_gradients_equal_the_formula_in_any_layout(self, layout):
        found = self.quantizer()
        x = images(4).to(memory_format=layout).requires_grad_()
        grad = images(4, seed=7)
        found(x).backward(grad)
        s, z = found.step.item(), found.zero_point.item()
        ratio, g = x.detach().double().numpy() / s, grad.double().numpy()
        slope = np.where(ratio <= -z, -z, np.where(ratio >= 255 - z, 255 - z, 0.0))
        inside = (ratio > -z) & (ratio < 255 - z)
        slope = np.where(inside, np.round(ratio) - ratio, slope)
        expected = (g * slope).sum() / math.sqrt(3 * 64 * 255)
        assert found.step.grad.item() == pytest.approx(expected, rel=1e-3)
