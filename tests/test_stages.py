"""The schedule of each stage, and what it leaves behind."""

import pytest
import torch
from torch import nn

from configs import settings, stage
from nets import Batches, Residual, batch, images, traced
from pqd.config import TrainConfig
from pqd.constraints.fake_quant import activation_fake_quants
from pqd.constraints.mask import masks, sparsity
from pqd.stages.losses import LOSSES
from pqd.stages.prune import prunable_layers, sparsity_schedule
from pqd.stages.quantize import calibrate, reestimate_batch_norm


class TestSchedule:
    def test_cubic(self):
        given = settings("prune", sparsity=0.8, ramp=0.5, updates=4)
        schedule = sparsity_schedule(given, 81)
        assert list(schedule) == [10, 20, 30, 40]
        expected = [0.8 * (1 - x**3) for x in (0.75, 0.5, 0.25, 0.0)]
        assert list(schedule.values()) == pytest.approx(expected)
        assert schedule[40] == 0.8

    def test_one_shot(self):
        given = settings("prune", sparsity=0.7, schedule="oneshot")
        assert sparsity_schedule(given, 100) == {0: 0.7}

    @pytest.mark.parametrize("steps", [1, 2, 3, 5])
    @pytest.mark.parametrize("ramp", [0.0, 0.5, 1.0])
    def test_a_short_stage_still_reaches_the_target(self, steps, ramp):
        schedule = sparsity_schedule(settings("prune", sparsity=0.9, ramp=ramp), steps)
        assert max(schedule) < steps
        assert schedule[max(schedule)] == 0.9


class TestPrune:
    def test_masks_follow_the_schedule_and_then_stay(self):
        model = traced(Residual)
        prune = stage("prune", range(9), sparsity=0.5, ramp=0.5, updates=2)
        prune.attach(model)
        reached = []
        for step in range(9):
            prune.before_step(model, step)
            reached.append(sparsity(model))
        total = sum(m.mask.numel() for m in masks(model).values())
        half_way = round(0.4375 * total) / total
        assert reached == [0, 0, half_way, half_way, 0.5, 0.5, 0.5, 0.5, 0.5]

    @pytest.mark.parametrize(
        ("first", "last", "expected"),
        [
            (False, False, ["conv1", "conv2", "fc"]),
            (True, False, ["conv2", "fc"]),
            (False, True, ["conv1", "conv2"]),
            (True, True, ["conv2"]),
        ],
    )
    def test_first_and_last_can_be_left_out(self, first, last, expected):
        model = traced(Residual)
        layers = prunable_layers(model, settings("prune", skip_first=first, skip_last=last))
        assert layers == expected


class TestQuantize:
    def test_calibrates_then_freezes(self):
        model = traced(Residual)
        given = {"calibration_batches": 2, "freeze_observers": 0.5, "freeze_batch_norm": 0.75}
        quantize = stage("quantize", Batches(), epochs=4, **given)
        quantize.attach(model)
        scales, frozen = [], []
        for step in range(12):
            if step % 3 == 0:
                model.train()
            quantize.before_step(model, step)
            quantizers = activation_fake_quants(model).values()
            assert not any(q.observing for q in quantizers)
            scales.append([q.scale.item() for q in quantizers])
            frozen.append(not model.bn1.training)
            assert model.training
            with torch.no_grad():
                model.conv1.parametrizations.weight.original.mul_(1.1)
        assert scales[0] == scales[1] == scales[2] != scales[3] == scales[5]
        assert scales[3] == scales[-1]
        assert frozen == [False] * 9 + [True] * 3

    def test_calibration_leaves_batch_norm_alone(self):
        model = traced(Residual)
        before = model.bn1.running_mean.clone()
        quantize = stage("quantize", Batches())
        quantize.attach(model)
        model.train()
        quantize.before_step(model, 0)
        assert torch.equal(model.bn1.running_mean, before)

    @pytest.mark.parametrize(("bits", "largest"), [(8, 127), (7, 63), (6, 31), (2, 1)])
    def test_codes_of_fewer_bits(self, bits, largest):
        model = traced(Residual)
        stage("quantize", Batches(), weight_bits=bits).attach(model)
        for layer in (model.conv1, model.fc):
            codes = layer.parametrizations.weight[-1].codes(layer.parametrizations.weight.original)
            assert codes.abs().amax() == largest


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

    def test_those_of_vectors_are_too(self):
        model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3 * 64))
        batches = [images(16, seed=s) for s in range(2)]
        reestimate_batch_norm(model, batches)
        mean = torch.stack([batch.flatten(1).mean(0) for batch in batches]).mean(0)
        assert torch.allclose(model[1].running_mean, mean, atol=1e-6)

    @pytest.mark.parametrize("wanted", [False, True])
    def test_the_stage_does_so_where_asked(self, wanted):
        model = traced(Residual)
        found = stage("quantize", Batches(), weight_bits=4, reestimate_batch_norm=wanted)
        found.attach(model)
        calibrate(model, [images(8)])
        before = model.bn2.running_mean.clone()
        assert found.finish(model) == {}
        assert torch.equal(before, model.bn2.running_mean) == (not wanted)


def distill(teacher, **options):
    """The stage of distillation, towards a teacher or its known logits [N, K]."""
    found = stage("distill", **options)
    if isinstance(teacher, torch.Tensor):
        found.known = teacher
    else:
        found.teacher = teacher
    return found


class TestDistill:
    def test_formula(self):
        logits, targets = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[0.0, 3.0, 3.0]])
        loss = LOSSES["hinton"](settings("distill", temperature=2.0))
        labels = torch.tensor([2])
        p, q = (targets / 2).softmax(1), (logits / 2).softmax(1)
        expected = 4 * (p * (p / q).log()).sum()
        assert loss(logits, targets, labels).item() == pytest.approx(expected.item())
        assert loss(targets, targets, labels).item() == 0.0

    def test_parts_add_up(self):
        model, teacher = traced(Residual), traced(Residual, seed=5).eval()
        train = TrainConfig(label_smoothing=0.1)
        parts = distill(teacher, train=train, temperature=3.0, alpha=0.75).loss(
            model.eval(), batch()
        )
        logits = model(batch().images)
        task = nn.functional.cross_entropy(logits, batch().labels, label_smoothing=0.1)
        assert torch.equal(parts["task_loss"], task)
        assert torch.equal(parts["loss"], 0.25 * task + 0.75 * parts["kd_loss"])

    def test_no_gradient_reaches_the_teacher(self):
        model, teacher = traced(Residual), traced(Residual, seed=5).eval()
        distill(teacher).loss(model, batch())["loss"].backward()
        assert all(p.grad is None for p in teacher.parameters())
        assert all(p.grad is not None for p in model.parameters())

    def test_known_logits_are_those_of_the_drawn_rows(self):
        model, teacher = traced(Residual).eval(), traced(Residual, seed=5).eval()
        logits = torch.cat([torch.zeros(8, 4), teacher(batch().images).detach()])
        drawn = batch()._replace(rows=torch.arange(8, 16))
        known = distill(logits).loss(model, drawn)
        asked = distill(teacher).loss(model, drawn)
        assert all(torch.equal(known[name], asked[name]) for name in asked)


def test_the_baseline_is_plain_cross_entropy():
    model = traced(Residual).eval()
    parts = stage("baseline").loss(model, batch())
    assert parts.keys() == {"loss", "logits"}
    loss = nn.functional.cross_entropy(model(batch().images), batch().labels)
    assert torch.equal(parts["loss"], loss)
