"""Which channels matter least."""

import copy

import pytest
import torch

from nets import Residual, batch, traced
from pqd.graph.channels import channels
from pqd.pruning.importance import magnitude, taylor


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
        given = batch()
        cross_entropy = torch.nn.functional.cross_entropy
        gates = torch.ones(8, requires_grad=True)

        def gate(_module, inputs):
            x = inputs[0]
            return x * gates.view(-1, *[1] * (x.ndim - 2))

        gated = copy.deepcopy(model)
        for name in ("conv2", "fc"):
            gated.get_submodule(name).register_forward_pre_hook(gate)
        (expected,) = torch.autograd.grad(cross_entropy(gated(given.images), given.labels), [gates])
        (found,) = taylor(model, [group], [given], lambda y, b: cross_entropy(y, b.labels))
        assert torch.allclose(found, expected**2 / expected.square().mean(), rtol=1e-3)
        assert all(parameter.grad is None for parameter in model.parameters())
