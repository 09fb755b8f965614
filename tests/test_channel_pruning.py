"""The stage that removes channels: budgets, schedule, bad input."""

import copy
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import configs
from configs import settings, stage
from nets import Batches, Residual, backbone, batch, images, traced
from pqd import options
from pqd.constraints import describe
from pqd.constraints.mask import masks, sparsity
from pqd.errors import UserError
from pqd.identity import run_name
from pqd.stages import STAGES


def prune(epochs=4, size=8, **given):
    """A stage that removes channels of small networks."""
    usual = {"what": "channels", "sparsity": 0.0, "round_to": 1, "min_channels": 1, "updates": 2}
    return stage("prune", Batches(size=size), epochs=epochs, **usual | given)


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
        parts = pruning.loss(model, batch())
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
