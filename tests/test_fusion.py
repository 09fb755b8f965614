"""A network in the form in which it trains: the same values and gradients, fewer passes."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pqd.trainer
from configs import GRAY, config, settings
from nets import PreActivation, ReluBeforeSum, Residual, images, traced
from pqd.constraints import attach
from pqd.constraints.fake_quant import ActivationFakeQuant, activation_fake_quants
from pqd.constraints.fusion import fused
from pqd.constraints.lsq import LearnedSteps
from pqd.constraints.quantization import FakeQuantization
from pqd.graph.view import Graph
from pqd.stages import STAGES
from pqd.stages.quantize import calibrate
from pqd.trainer import Trainer


def quantized(kind, constraint=FakeQuantization):
    model = traced(kind)
    attach(model, constraint(127))
    calibrate(model, [images()])
    return model.train()


def relus(model):
    graph = Graph(model)
    return sum(map(graph.is_relu, model.graph.nodes))


def step(model, source, bf16=False):
    """Returns the output, the gradients and the buffers after one training step."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = model(images(seed=3))
        loss = F.cross_entropy(out, torch.arange(64) % 4)
    loss.backward()
    found = {name: p.grad for name, p in source.named_parameters() if p.grad is not None}
    return found | dict(source.named_buffers()) | {"out": out}


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("constraint", [FakeQuantization, LearnedSteps])
@pytest.mark.parametrize(("kind", "left"), [(Residual, 0), (PreActivation, 1), (ReluBeforeSum, 0)])
def test_values_and_gradients_stay_bit_by_bit(kind, left, constraint, bf16):
    model = quantized(kind, constraint)
    again = copy.deepcopy(model)
    faster = fused(again)
    assert relus(faster) == left  # another reads what comes before the first of PreActivation
    expected, found = step(model, model, bf16), step(faster, again, bf16)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_the_network_itself_stays_as_it_is():
    model = quantized(Residual)
    before = [(n.name, n.args, n.kwargs) for n in model.graph.nodes]
    faster = fused(model)
    assert [(n.name, n.args, n.kwargs) for n in model.graph.nodes] == before
    assert {id(p) for p in faster.parameters()} == {id(p) for p in model.parameters()}


def test_ranges_are_observed_behind_the_relu():
    model = quantized(Residual)
    expected = {n: q.scale.clone() for n, q in activation_fake_quants(model).items()}
    faster = fused(model)
    calibrate(faster, [images()])
    assert {n: q.scale for n, q in activation_fake_quants(faster).items()} == expected


def test_other_relus_stay():
    class Others(Residual):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU6()

        def forward(self, x):
            x = self.relu(self.bn1(self.conv1(x)))
            read_in_float_too = torch.relu(x.sin())
            y = self.bn2(self.conv2(read_in_float_too)) + read_in_float_too.exp()
            return self.fc(self.average(y).flatten(1))

    assert relus(fused(quantized(Others))) == 2


def test_gradients_lie_in_memory_as_values_do():
    quantizer, grads = ActivationFakeQuant(), []
    x = images().contiguous(memory_format=torch.channels_last).requires_grad_()
    x.register_hook(grads.append)
    quantizer(x).mean((2, 3)).sum().backward()  # a pool's gradient is expanded
    assert grads[0].is_contiguous(memory_format=torch.channels_last)


def test_stages_train_in_this_form_and_end_alike(tmp_path, monkeypatch):
    ends, used = [], []

    def watched(model):
        used.append(fused(model))
        return used[-1]

    for form in (watched, lambda model: model):
        monkeypatch.setattr(pqd.trainer, "fused", form)
        run = Trainer(
            config(
                "q",
                **GRAY,
                quantize=settings("quantize", epochs=1),
            )
        )
        folder = tmp_path / str(len(ends))
        folder.mkdir()
        given = {"baseline": None, "checkpoint": folder / "c", "on_epoch": lambda metrics: None}
        run.train(STAGES["quantize"], None, folder, **given)
        ends.append((folder / "model.safetensors").read_bytes())
    assert ends[0] == ends[1]
    assert [relus(model) for model in used] == [0]
