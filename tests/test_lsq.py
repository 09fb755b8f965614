"""Learned steps: the paper's gradients, and what is trained is what is deployed, exactly."""

import copy
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import nn

import odd_nets
from configs import config, settings, stage
from nets import PreActivation, Residual, images, traced
from pqd import training
from pqd.artifact.make import _parameters
from pqd.config import AugmentConfig, BackboneConfig, DatasetConfig, TrainConfig
from pqd.constraints import attach, constraints, fake_quant, without_integers
from pqd.constraints.fake_quant import activation_fake_quants
from pqd.constraints.integers import round_biases
from pqd.constraints.lsq import LearnedActivationFakeQuant, LearnedSteps, LearnedWeightFakeQuant
from pqd.constraints.mask import Masks, masks, set_masks
from pqd.constraints.parametrization import find, value_before
from pqd.data import Batch, eval_batches
from pqd.export.deploy import deployed
from pqd.export.onnx_file import write_onnx
from pqd.networks import Blueprint, load_network, save_network
from pqd.scheme import Scheme
from pqd.stages import STAGES
from pqd.stages.quantize import calibrate, reestimate_batch_norm
from pqd.trainer import Trainer


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
        model = calibrated()
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


def calibrated(kind=Residual, bits=4):
    model = traced(kind)
    attach(model, LearnedSteps(2 ** (bits - 1) - 1))
    calibrate(model, [images(16, seed=s) for s in range(2)])
    return model


class Batches:
    """Three batches of random images, the same in every epoch."""

    def __len__(self):
        return 3

    def epoch(self, seed):
        for i in range(3):
            yield Batch(images(16, seed=i), torch.arange(16) % 4, torch.arange(16))


def fitted(model, found, epochs=2, **given):
    settings_of_all = TrainConfig(device="cpu", precision="fp32", compile="false")
    training.fit(
        model,
        Batches(),
        found.loss,
        settings=settings_of_all,
        epochs=epochs,
        lr=0.05,
        seed=0,
        validate=None,
        before_step=lambda step: found.before_step(model, step),
        **given,
    )
    return model


def of_stage(epochs=2, **options):
    return stage("quantize", Batches(), epochs=epochs, quantizer="lsq", **options)


class TestTraining:
    def test_steps_are_trained_and_not_decayed(self):
        model = calibrated()
        optimizer = training.make_optimizer(model, TrainConfig())
        decayed, others = (group["params"] for group in optimizer.param_groups)
        steps = [p for n, p in model.named_parameters() if n.endswith("step")]
        assert len(steps) == 3 + len(activation_fake_quants(model))
        assert {id(p) for p in steps} <= {id(p) for p in others}
        assert len(decayed) == 3

    def test_the_stage_calibrates_once(self):
        model, found = traced(Residual), of_stage(epochs=4)
        found.attach(model)
        fitted(model, found, epochs=4)
        first = traced(Residual)
        of_stage().attach(first)
        calibrate(first, (batch.images for batch in Batches().epoch(0)))
        learned, started = (
            {n: p.detach() for n, p in m.named_parameters() if n.endswith("step")}
            for m in (model, first)
        )
        moved = [not torch.equal(learned[name], started[name]) for name in started]
        assert sum(moved) == len(moved) - 1  # all but that of the images
        assert torch.equal(*(m["activation_quantizers.x.step"] for m in (learned, started)))
        ranges = [activation_fake_quants(m).values() for m in (model, first)]
        for one, other in zip(*ranges, strict=True):
            assert torch.equal(one.calibrated, other.calibrated)  # in the first epoch alone

    def test_a_resumed_stage_ends_alike(self, tmp_path):
        def run(epochs_until_stopped):
            model, found = traced(Residual), of_stage()
            found.attach(model)

            class Stopped(Exception):
                pass

            def stop(metrics):
                if metrics["epoch"] == epochs_until_stopped:
                    raise Stopped

            try:
                fitted(model, found, checkpoint=tmp_path / "checkpoint", on_epoch=stop)
            except Stopped:
                return None
            return model.state_dict()

        whole = run(None)
        (tmp_path / "checkpoint").unlink()
        assert run(1) is None
        resumed = run(None)
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)

    def test_compiles_to_the_same_step(self):
        model = calibrated().train()
        again = copy.deepcopy(model)
        compiled = torch.compile(again, backend="aot_eager")
        x = images(8)
        for network in (model, compiled):
            network(x).square().sum().backward()
        for (name, p), q in zip(model.named_parameters(), again.parameters(), strict=True):
            if name == "activation_quantizers.x.step":
                assert p.grad is q.grad is None
                continue
            assert torch.allclose(p.grad, q.grad, rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize("kind", [Residual, PreActivation])
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("pruned", ["", "before", "after"])
class TestExport:
    def network(self, kind, bits, pruned):
        """A network that was trained a little."""
        model, found = traced(kind), of_stage(weight_bits=bits)
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


class TestBatchNorm:
    def test_statistics_are_the_mean_over_batches(self):
        model = traced(Residual)
        batches = [images(16, seed=s) for s in range(3)]
        reestimate_batch_norm(model, batches)
        outs = [model.conv1(x) for x in batches]
        mean = torch.stack([out.mean((0, 2, 3)) for out in outs]).mean(0)
        variance = torch.stack([out.var((0, 2, 3)) for out in outs]).mean(0)
        assert torch.allclose(model.bn1.running_mean, mean, atol=1e-5)
        assert torch.allclose(model.bn1.running_var, variance, rtol=1e-4)
        assert model.bn1.momentum == nn.BatchNorm2d(1).momentum
        assert not any(module.training for module in model.modules())

    @pytest.mark.parametrize("wanted", [False, True])
    def test_the_stage_does_so_where_asked(self, wanted):
        model = traced(Residual)
        found = stage("quantize", Batches(), weight_bits=4, reestimate_batch_norm=wanted)
        found.attach(model)
        calibrate(model, [images(8)])
        before = model.bn2.running_mean.clone()
        assert found.finish(model) == {}
        assert torch.equal(before, model.bn2.running_mean) == (not wanted)


def test_an_order_on_digits(tmp_path):
    """Dense, quantized, taught: later stages go on learning the steps, and what is saved agrees."""
    run = Trainer(
        config(
            "qd",
            backbone=BackboneConfig("resnet8", "resnet8"),
            dataset=DatasetConfig("digits", "", augment=AugmentConfig(0, False)),
            train=TrainConfig(device="cpu", precision="fp32"),
            baseline=settings("baseline", epochs=3),
            quantize=settings("quantize", epochs=2, weight_bits=4, quantizer="lsq"),
            distill=settings("distill", epochs=1, loss="dkd"),
        )
    )
    folders, figures = {None: None}, {}
    previous = None
    for name in ("baseline", "quantize", "distill"):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        figures[name] = run.train(
            STAGES[name],
            folders[previous],
            folders[name],
            baseline=folders.get("baseline"),
            left=1,
            checkpoint=tmp_path / "checkpoint",
            on_epoch=lambda metrics: None,
        )
        (tmp_path / "checkpoint").unlink(missing_ok=True)
        previous = name
    assert figures["distill"]["teacher_accuracy"] == figures["baseline"]["validation_accuracy"]
    quantized, taught = (load_network(folders[name]) for name in ("quantize", "distill"))
    assert not torch.equal(
        *(find(m, LearnedWeightFakeQuant)["fc"].step for m in (quantized, taught))
    )
    split = run.dataset.validation
    batches = list(eval_batches(split, run.dataset, len(split), torch.device("cpu")))
    agreed = training.predict(taught, batches) == training.predict(deployed(taught), batches)
    assert agreed.float().mean() > 0.99
    assert run.validation_accuracy(taught) == figures["distill"]["validation_accuracy"] > 80


def test_the_setting_names_the_quantizer():
    assert settings("quantize").quantizer == "abs_max"
    model = traced(Residual)
    of_stage(weight_bits=3).attach(model)
    (constraint,) = constraints(model)
    assert constraint.name == "lsq"
    assert constraint.describe(model) == {"code_max": 3, "scheme": asdict(Scheme())}
