"""The stage that removes channels: budgets, schedule, importance, bad input."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import configs
from configs import settings, stage
from nets import Residual, images, traced
from pqd import options
from pqd.backbones import build
from pqd.backbones.build import BUILDERS
from pqd.config import BackboneConfig
from pqd.constraints import describe
from pqd.constraints.channels import KeptChannels
from pqd.constraints.mask import masks, sparsity
from pqd.data import Batch
from pqd.errors import UserError
from pqd.graph.channels import channels
from pqd.identity import run_name
from pqd.pruning.cost import Shapes, allocate, levels
from pqd.pruning.importance import magnitude, taylor
from pqd.stages import STAGES


class Batches:
    """Three batches of eight random images per epoch."""

    def __init__(self, size=8):
        self.size = size

    def __len__(self):
        return 3

    def epoch(self, seed):
        for i in range(3):
            yield Batch(images(8, self.size, 10 * seed + i), torch.arange(8) % 4, torch.arange(8))


def prune(epochs=4, size=8, **given):
    """A stage that removes channels of small networks."""
    usual = {"what": "channels", "sparsity": 0.0, "round_to": 1, "min_channels": 1, "updates": 2}
    return stage("prune", Batches(size), epochs=epochs, **usual | given)


def backbone(name, size=32):
    torch.manual_seed(0)
    return build(BackboneConfig(name, name), 10, 3, size)


def macs(model, size):
    """Multiply-accumulates of one image, counted while it runs."""
    counted = []

    def count(layer, _inputs, output):
        counted.append(output.numel() * layer.weight[0].numel())

    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    model.eval()(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    return sum(counted)


class TestCost:
    @pytest.mark.parametrize("name", ["resnet20", "vgg16_bn", "mobilenetv2_050", "densenet121"])
    def test_is_that_of_the_network(self, name):
        builder = name if name in BUILDERS else "timm"
        model = build(BackboneConfig(builder, name), 10, 3, 32)
        found = channels(model, (3, 32, 32))
        shapes = Shapes(model, found)
        assert shapes.macs(shapes.dense) == macs(model, 32)
        assert shapes.parameters(shapes.dense) == sum(p.numel() for p in model.parameters())
        half = (shapes.dense + 1) // 2
        kept = [torch.arange(g.units) < n for g, n in zip(found.groups, half, strict=True)]
        KeptChannels.of(model, found.groups, kept).attach(model)
        assert shapes.macs(half) == macs(model, 32)
        assert shapes.parameters(half) == sum(p.numel() for p in model.parameters())

    def test_levels(self):
        assert levels(64, 1, 16, 8) == [64, 48, 32, 16]
        assert levels(20, 1, 8, 8) == [20, 16, 8]
        assert levels(32, 4, 16, 1) == [32, 28, 24, 20, 16, 12, 8, 4]
        assert levels(64, 1, 8, 20) == [64, 56, 48, 40, 32, 24]
        assert levels(8, 1, 8, 8) == [8]

    def test_equal_channels_are_narrowed_alike(self):
        model = backbone("resnet20")
        shapes = Shapes(model, channels(model, (3, 32, 32)))
        allowed = [levels(int(n), 1, 1, 1) for n in shapes.dense]
        equal = [np.ones(n) for n in shapes.dense]
        units = allocate(equal, allowed, shapes.macs, 0.25 * shapes.macs(shapes.dense))
        shares = units / shapes.dense
        assert shapes.macs(units) <= 0.25 * shapes.macs(shapes.dense)
        assert shares.min() > 0.4
        assert shares.max() < 0.6

    def test_where_narrower_is_slower_the_cheapest_shape_on_the_way_is_taken(self):
        first = {16: 4.0, 8: 5.0}  # as kernels for few channels may be
        second = {32: 4.0, 24: 4.0, 16: 2.0, 8: 3.0}  # and no faster for 24 than for 32
        allowed, equal = [list(first), list(second)], [np.ones(16), np.ones(32)]

        def chosen(most):
            return allocate(equal, allowed, lambda u: first[u[0]] + second[u[1]], most).tolist()

        assert chosen(8.0) == [16, 32]
        assert chosen(7.0) == [16, 16]
        assert chosen(1.0) == [16, 16]  # out of reach, and the smallest costs 8

    def test_what_matters_less_goes_first(self):
        model = backbone("resnet8")
        shapes = Shapes(model, channels(model, (3, 32, 32)))
        allowed = [levels(int(n), 1, 1, 1) for n in shapes.dense]
        values = [np.ones(n) for n in shapes.dense]
        values[1][4:] = 1e-3
        units = allocate(values, allowed, shapes.macs, 0.8 * shapes.macs(shapes.dense))
        assert units[1] < 16
        assert [g for g, n in enumerate(units) if n < shapes.dense[g]] == [1]


class TestImportance:
    def test_magnitude_folds_the_batch_norm(self):
        model = traced(Residual)
        (group,) = channels(model, (3, 8, 8)).groups
        before = magnitude(model, [group])[0]
        with torch.no_grad():
            for norm in (model.bn1, model.bn2):
                norm.weight[3] = 0.0
            model.conv2.weight[:, 3] = 0.0
            model.fc.weight[:, 3] = 0.0
        after = magnitude(model, [group])[0]
        assert after[3] == 0.0
        assert before.min() > 0
        assert before.mean().item() == pytest.approx(1.0)

    def test_magnitude_does_not_depend_on_the_scale_of_a_layer(self):
        model = traced(Residual)
        (group,) = channels(model, (3, 8, 8)).groups
        before = magnitude(model, [group])[0]
        with torch.no_grad():
            model.conv1.weight *= 10
            model.fc.weight *= 0.1
        assert torch.allclose(magnitude(model, [group])[0], before, rtol=1e-4)

    def test_taylor_is_the_gradient_of_a_gate(self):
        model = traced(Residual).eval()
        (group,) = channels(model, (3, 8, 8)).groups
        batch = next(Batches().epoch(0))
        cross_entropy = torch.nn.functional.cross_entropy
        gates = torch.ones(8, requires_grad=True)

        def gate(_module, inputs):
            x = inputs[0]
            return x * gates.view(-1, *[1] * (x.ndim - 2))

        gated = copy.deepcopy(model)
        for name in ("conv2", "fc"):
            gated.get_submodule(name).register_forward_pre_hook(gate)
        (expected,) = torch.autograd.grad(cross_entropy(gated(batch.images), batch.labels), [gates])
        (found,) = taylor(model, [group], [batch], lambda y, b: cross_entropy(y, b.labels))
        assert torch.allclose(found, expected**2 / expected.square().mean(), rtol=1e-3)
        assert all(parameter.grad is None for parameter in model.parameters())


class TestStage:
    @pytest.mark.parametrize("importance", ["magnitude", "taylor"])
    @pytest.mark.parametrize("budget", ["macs", "parameters"])
    def test_the_budget_is_met_and_the_ramp_is_gradual(self, budget, importance):
        model = backbone("resnet8", 8)
        dense = sum(p.numel() for p in model.parameters())
        given = {budget: 0.4, "importance": importance, "round_to": 4, "min_channels": 4}
        pruning = prune(size=8, **given)
        pruning.attach(model)
        pruning.start(model)
        model.train()
        left, total = [], sum(pruning.channels.ramp.units)
        for step in range(pruning.context.steps):
            pruning.before_step(model, step)
            assert model.training
            left.append(int(pruning.channels.ramp.kept.sum()))
        final = int(pruning.channels.ramp.final.sum())
        assert left[:2] == [total] * 2
        assert total > left[2] == left[4] > final
        assert left[5:] == [final] * (len(left) - 5)
        x = images(4, 8)
        masked = copy.deepcopy(model).eval()(x)
        shape = pruning.finish(model)["shape"]
        assert torch.allclose(model.eval()(x), masked, rtol=1e-4, atol=1e-5)
        assert shape["asked"] == {budget: 0.4}
        assert 0.3 < shape[budget] <= 0.4
        assert shape["parameters"] == sum(p.numel() for p in model.parameters()) / dense
        sizes = {name: model.get_submodule(name).weight.shape[0] for name in shape["channels"]}
        assert sizes == {name: after for name, (_, after) in shape["channels"].items()}
        assert all(after % 4 == 0 for name, after in sizes.items() if name != "fc")

    def test_a_resumed_stage_keeps_its_shape(self):
        model = backbone("resnet8", 8)
        pruning = prune(size=8, macs=0.5)
        pruning.attach(model)
        for step in range(4):
            pruning.before_step(model, step)
        again = prune(size=8, macs=0.5)
        again.attach(model)
        state = pruning.modules.state_dict()
        with torch.no_grad():
            model.get_submodule("layer1.0.conv1").weight.mul_(
                torch.linspace(0, 9, 16).view(-1, 1, 1, 1)
            )
        again.modules.load_state_dict(state)
        again.before_step(model, 4)
        assert torch.equal(again.channels.ramp.final, pruning.channels.ramp.final)
        assert torch.equal(again.channels.ramp.kept, pruning.channels.ramp.kept)

    def test_channels_and_then_weights(self):
        model = backbone("resnet8", 8)
        pruning = prune(size=8, what="channels_and_weights", sparsity=0.75, macs=0.5, updates=3)
        assert max(pruning.channel_updates) <= min(pruning.updates)
        pruning.attach(model)
        for step in range(pruning.context.steps):
            pruning.before_step(model, step)
        pruning.finish(model)
        weights = sum(m.mask.numel() for m in masks(model).values())
        assert sparsity(model) == round(0.75 * weights) / weights
        assert [part["constraint"] for part in describe(model)] == ["mask", "channels"]

    def test_regularization_shrinks_what_has_to_go(self):
        model = traced(Residual)
        pruning = prune(macs=0.5, regularize=0.1)
        pruning.attach(model)
        pruning.before_step(model, 0)
        parts = pruning.loss(model, next(Batches().epoch(0)))
        assert parts["loss"].item() == pytest.approx(
            (parts["task_loss"] + 0.1 * parts["group_lasso"]).item()
        )
        leaving = pruning.channels.ramp.leaving
        (gradient,) = torch.autograd.grad(parts["group_lasso"], [model.conv1.weight])
        assert torch.equal(gradient.flatten(1).any(1), leaving)
        assert 0 < leaving.sum() < 8


class TestBadInput:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({}, "prune.what=channels needs a budget: one of prune.macs, prune.parameters"),
            ({"macs": 0.5, "parameters": 0.5}, "prune.macs=0.5 and prune.parameters=0.5: a net"),
            ({"macs": 0.5, "sparsity": 0.8}, "prune.sparsity=0.8 removes single weights"),
            ({"macs": 0.5, "what": "weights"}, "prune.macs=0.5 removes channels; give it to"),
        ],
    )
    def test_settings_that_do_not_go_together(self, given, message):
        given = {"what": "channels", "sparsity": 0.0} | given
        config = configs.config("p", prune=settings("prune", **given))
        with pytest.raises(UserError, match=message):
            STAGES["prune"].check(config)

    @pytest.mark.parametrize("name", ["channels", "channels_and_weights"])
    def test_a_named_configuration_lacks_only_its_budget(self, name):
        file = Path(__file__).parents[1] / "conf" / "prune" / f"{name}.yaml"
        given = OmegaConf.to_container(OmegaConf.load(file))
        with pytest.raises(UserError, match=f"prune.what={name} needs a budget"):
            STAGES["prune"].check(configs.config("p", prune=settings("prune", **given)))
        config = configs.config("p", prune=settings("prune", **given, speedup=2.0))
        STAGES["prune"].check(config)

    @pytest.mark.parametrize(
        "given",
        [
            {"macs": 0.0},
            {"speedup": 0.5},
            {"latency_ms": 0.0},
            {"parameters": 1.1},
            {"round_to": 0},
        ],
    )
    def test_values_out_of_range(self, given):
        with pytest.raises(UserError, match=next(iter(given))):
            options.check(settings("prune", **given), "prune.")

    def test_out_of_reach(self):
        with pytest.raises(UserError, match=r"prune.macs=0.01 is out of reach; the smallest.*0.1"):
            prune(size=32, macs=0.01, round_to=8, min_channels=8).attach(backbone("resnet20"))

    def test_the_smallest_named_is_within_reach(self):
        model = backbone("resnet20")
        with pytest.raises(UserError) as caught:
            prune(size=32, macs=0.01, round_to=8, min_channels=8).attach(model)
        smallest = float(str(caught.value).rsplit(" ", 1)[1])
        prune(size=32, macs=smallest, round_to=8, min_channels=8).attach(model)

    def test_round_to_larger_than_every_layer(self):
        with pytest.raises(UserError, match=r"prune.round_to=64 .* the widest layer has 8"):
            prune(macs=0.5, round_to=64).attach(traced(Residual))

    def test_nothing_to_remove(self):
        class Pinned(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.fc = torch.nn.Conv2d(3, 8, 1), torch.nn.Linear(8, 4)

            def forward(self, x):
                return self.fc(self.conv(x).softmax(1).mean((2, 3)))

        model = torch.fx.symbolic_trace(Pinned())
        with pytest.raises(
            UserError, match=r"no channel of this network can be removed.*: softmax"
        ):
            prune(macs=0.5).attach(model)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"what": "channels", "sparsity": 0.0, "macs": 0.5}, "tiny_digits_p_macs0.5_seed0"),
        ({"what": "channels", "sparsity": 0.0, "speedup": 2.0}, "tiny_digits_p_x2_seed0"),
        ({"what": "channels_and_weights", "speedup": 2.0}, "tiny_digits_p_s0.8_x2_seed0"),
        (
            {"what": "channels_and_weights", "sparsity": 0.0, "parameters": 0.3},
            "tiny_digits_p_params0.3_seed0",
        ),
    ],
)
def test_a_runs_name_holds_its_budget_and_no_sparsity_that_is_not_asked_for(given, name):
    assert run_name(configs.config("p", prune=settings("prune", **given))) == name
