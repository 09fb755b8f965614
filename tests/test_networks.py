"""Networks on disk: what is saved is what is loaded, and what is no network is named."""

import itertools
import json
from dataclasses import asdict
from functools import partial

import pytest
import torch
from torch import nn

import nets
from nets import images
from pqd.config import BackboneConfig
from pqd.constraints import attach, describe
from pqd.constraints.fake_quant import activation_fake_quants
from pqd.constraints.mask import Masks, set_masks, sparsity
from pqd.constraints.quantization import FakeQuantization
from pqd.errors import UserError
from pqd.networks import Blueprint, load_blueprint, load_network, save_network
from pqd.scheme import Scheme
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
            {"constraint": "fake_quant", "code_max": 63, "scheme": asdict(Scheme())},
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

    def test_another_network_of_ones_own_under_the_same_name_is_told_of(
        self, tmp_path, monkeypatch, caplog
    ):
        blueprint = Blueprint(BackboneConfig("nets.tiny", "mine"), 10, 3, 16).examined()
        save_network(blueprint.build(), blueprint, tmp_path)
        load_network(tmp_path)
        assert caplog.messages == []
        monkeypatch.setattr(nets, "tiny", partial(nets.tiny, activation=nn.ReLU6()))
        load_network(tmp_path)
        line = f"{tmp_path}: nets.tiny builds another network than the one saved"
        assert caplog.messages == [line]

    def test_missing_and_foreign_files_are_named(self, tmp_path):
        with pytest.raises(UserError, match=r"recipe.json cannot be read: No such file"):
            load_network(tmp_path)
        (tmp_path / "recipe.json").write_text("[]")
        with pytest.raises(UserError, match="is not a recipe written by pqd"):
            load_network(tmp_path)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"blueprint": None}, "no network that can be rebuilt: it lacks 'blueprint'"),
            ({"blueprint": 7}, "no network that can be rebuilt: TypeError: "),
            ({"blueprint": {"backbone": {"depth": 8}}}, "unexpected keyword argument 'depth'"),
            (
                {"blueprint": {"backbone": {"builder": "resnet8"}}},
                "rebuilt: TypeError: .*'classes'",
            ),
            ({"constraints": None}, "it lacks 'constraints'"),
            ({"constraints": ["mask"]}, "no network that can be rebuilt: TypeError: "),
            ({"constraints": [{}]}, "it lacks 'constraint'"),
            ({"constraints": [{"constraint": "mask"}]}, "it lacks 'layers'"),
            ({"constraints": [{"constraint": "masc"}]}, "constraint=masc is unknown .*mask"),
            ({"constraints": [{"constraint": "mask", "layers": ["fc9"]}]}, "rebuilt: .*fc9"),
            ({"format": 1}, "it lacks 'masks'"),
        ],
    )
    def test_incomplete_and_foreign_recipes_are_named(self, tmp_path, changes, message):
        save_network(self.blueprint.build(), self.blueprint, tmp_path)
        path = tmp_path / "recipe.json"
        recipe = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in recipe.items() if v is not None}))
        with pytest.raises(UserError, match=rf"^{path}.* {message}") as caught:
            load_network(tmp_path)
        assert "\n" not in str(caught.value)
        if "blueprint" in changes:
            with pytest.raises(UserError, match=rf"^{path}.* {message}"):
                load_blueprint(tmp_path)
