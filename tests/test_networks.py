"""Networks on disk: what is saved is what is loaded, and what is no network is named."""

import itertools
import json

import pytest
import torch
from torch import nn

from nets import images
from pqd.config import BackboneConfig
from pqd.constraints import attach, describe
from pqd.constraints.fake_quant import activation_fake_quants
from pqd.constraints.mask import Masks, set_masks, sparsity
from pqd.constraints.quantization import FakeQuantization
from pqd.errors import UserError
from pqd.networks import Blueprint, load_network, load_weights, save_network
from pqd.stages.quantize import calibrate

PRUNED = ["conv1", "layer2.0.conv1", "fc"]


class TestDisk:
    blueprint = Blueprint(BackboneConfig("resnet20", "resnet20", {}), 10, 3, 16)

    @pytest.mark.parametrize(
        "constraints", ["", "p", "q", "pq", "qp"], ids=["none", "p", "q", "pq", "qp"]
    )
    def test_round_trip(self, tmp_path, constraints):
        torch.manual_seed(0)
        model = self.blueprint.build()
        for constraint in constraints:
            if constraint == "p":
                attach(model, Masks(PRUNED))
                set_masks(model, 0.8, "global")
            else:
                attach(model, FakeQuantization(63))
                calibrate(model, [images(4, 16)])
        save_network(model, self.blueprint, tmp_path)
        again = load_network(tmp_path)
        x = images(4, 16, seed=3)
        assert torch.equal(again.eval()(x), model.eval()(x))
        for (name, a), (other, b) in itertools.zip_longest(
            sorted(model.state_dict().items()), sorted(again.state_dict().items())
        ):
            assert name == other
            assert torch.equal(a, b)
        floating = load_network(tmp_path, quantized=False)
        assert not activation_fake_quants(floating)
        assert sparsity(floating) == sparsity(model)

    def test_the_recipe_lists_the_constraints_in_their_order(self, tmp_path):
        model = self.blueprint.build()
        attach(model, FakeQuantization(63))
        attach(model, Masks(["fc"]))
        save_network(model, self.blueprint, tmp_path)
        recipe = json.loads((tmp_path / "recipe.json").read_text())
        expected = [
            {"constraint": "fake_quant", "code_max": 63},
            {"constraint": "mask", "layers": ["fc"]},
        ]
        assert recipe["constraints"] == expected
        assert describe(load_network(tmp_path)) == expected

    def test_a_recipe_of_the_first_version(self, tmp_path):
        model = self.blueprint.build()
        attach(model, Masks(["fc"]))
        attach(model, FakeQuantization(127))
        save_network(model, self.blueprint, tmp_path)
        path = tmp_path / "recipe.json"
        recipe = json.loads(path.read_text())
        del recipe["constraints"]
        path.write_text(json.dumps(recipe | {"format": 1, "masks": ["fc"], "code_max": 127}))
        x = images(4, 16)
        assert torch.equal(load_network(tmp_path).eval()(x), model.eval()(x))

    def test_missing_and_foreign_files_are_named(self, tmp_path):
        with pytest.raises(UserError, match=r"recipe.json cannot be read: No such file"):
            load_network(tmp_path)
        (tmp_path / "recipe.json").write_text("[]")
        with pytest.raises(UserError, match="is not a recipe written by pqd"):
            load_network(tmp_path)
        with pytest.raises(UserError, match=r"none.safetensors does not exist"):
            load_weights(nn.Linear(1, 1), tmp_path / "none.safetensors")
        (tmp_path / "text.safetensors").write_text("hello")
        with pytest.raises(UserError, match="is not a safetensors file"):
            load_weights(nn.Linear(1, 1), tmp_path / "text.safetensors")

    def test_a_checkpoint_that_does_not_fit(self, tmp_path):
        from safetensors.torch import save_file

        path = tmp_path / "w.safetensors"
        save_file(nn.Linear(3, 2).state_dict(), path)
        with pytest.raises(UserError, match=r"weight is \(2, 3\), expected \(2, 4\)$"):
            load_weights(nn.Linear(4, 2), path)
        with pytest.raises(UserError, match=r"0.weight is missing \(and 3 more\)"):
            load_weights(nn.Sequential(nn.Linear(3, 2)), path)
