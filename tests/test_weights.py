"""Checkpoints of whatever form are loaded exactly, or refused in a line that says why."""

import argparse
import copy

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from nets import images
from pqd.backbones.resnet import resnet8
from pqd.config import BackboneConfig
from pqd.errors import UserError
from pqd.networks import Blueprint, save_network
from pqd.weights import load_checkpoint, load_weights


def saved(folder, content, name="w.pth"):
    path = folder / name
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


def loaded(path, backbone="resnet8", classes=10, new_head=False, builder=None):
    """A backbone, and the same with the weights of a file."""
    blueprint = Blueprint(BackboneConfig(builder or backbone, backbone, {}), classes, 3, 32)
    torch.manual_seed(9)
    model = blueprint.build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_checkpoint(model, path, new_head=new_head)
    return before, model


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(1)
    network = resnet8(10, 3, 32)
    network(images(8, 32))  # running statistics that are not the initial ones
    return network.eval()


def same(model, net):
    x = images(4, 32, seed=3)
    return torch.equal(model.eval()(x), net.eval()(x))


FORMS = {
    "plain.pth": lambda s: s,
    "plain.safetensors": lambda s: s,
    "lightning.ckpt": lambda s: {
        "state_dict": {f"model.{k}": v for k, v in s.items()} | {"loss.weight": torch.ones(10)},
        "epoch": 3,
        "hyper_parameters": {"lr": 0.1},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}}],
    },
    "torchvision.pth": lambda s: {
        "model": s,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "args": argparse.Namespace(lr=0.1, model="resnet"),
    },
    "ema.pth": lambda s: {
        "model_ema": {f"module.{k}": v for k, v in s.items()} | {"n_averaged": torch.tensor(7)}
    },
    "timm.pth.tar": lambda s: {"epoch": 1, "arch": "resnet", "state_dict": s},
    "parallel.pt": lambda s: {"model_state_dict": {f"module.{k}": v for k, v in s.items()}},
    "compiled.pt": lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
    "wrapped.pt": lambda s: {f"net.model.{k}": v for k, v in s.items()},
    "other_key.pth": lambda s: {"weights": s, "acc": 93.2},
    "figures.pth.tar": lambda s: {"epoch": 3, "state_dict": s, "best_acc1": torch.tensor(93.1)},
    "figures_beside_another_key.pth": lambda s: {"net": s, "acc": torch.tensor([93.2])},
    "nested.pth": lambda s: {"model": {"state_dict": s, "step": torch.tensor(7)}, "lr": 0.1},
    "nested_in_another_key.pth": lambda s: {"checkpoint": {"model": s, "step": torch.tensor(7)}},
    "parts.pth": lambda s: s | {"extra": {"seen": torch.tensor(7)}},
    "without_counters.pth": lambda s: {
        k: v for k, v in s.items() if not k.endswith("num_batches_tracked")
    },
    "parameters.pth": lambda s: {k: nn.Parameter(v, v.is_floating_point()) for k, v in s.items()},
}


class TestForms:
    @pytest.mark.parametrize("form", FORMS)
    def test_is_found_and_loaded_exactly(self, tmp_path, net, form):
        path = saved(tmp_path, FORMS[form](net.state_dict()), form)
        assert same(loaded(path)[1], net)

    def test_older_files_of_torch(self, tmp_path, net):
        path = tmp_path / "old.pth"
        torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)
        assert same(loaded(path)[1], net)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    @pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
    def test_other_precisions(self, tmp_path, net, dtype, name):
        rounded = copy.deepcopy(net).to(dtype)
        model = loaded(saved(tmp_path, rounded.state_dict(), name))[1]
        assert model.fc.weight.dtype == torch.float32
        assert same(model, rounded.float())

    def test_the_folder_of_a_network_that_pqd_saved(self, tmp_path, net):
        blueprint = Blueprint(BackboneConfig("resnet8", "resnet8", {}), 10, 3, 32)
        model = blueprint.build()
        save_network(model, blueprint, tmp_path)
        assert same(loaded(tmp_path)[1], model)

    def test_a_whole_pickled_network_is_refused(self, tmp_path, net):
        path = saved(tmp_path, {"model": net})
        with pytest.raises(
            UserError, match=r"\(pqd.*\).*torch.save\(model.state_dict\(\), path\)$"
        ):
            loaded(path)

    def test_torchscript_is_refused(self, tmp_path):
        torch.jit.script(nn.Linear(1, 1)).save(tmp_path / "s.pt")
        with pytest.raises(UserError, match="is a TorchScript program; save the weights alone"):
            loaded(tmp_path / "s.pt")

    def test_what_is_no_checkpoint_is_named(self, tmp_path):
        with pytest.raises(UserError, match=r"none.safetensors does not exist or cannot be read"):
            loaded(tmp_path / "none.safetensors")
        with pytest.raises(UserError, match=r"none.pth does not exist or cannot be read"):
            loaded(tmp_path / "none.pth")
        (tmp_path / "text.safetensors").write_text("hello")
        with pytest.raises(UserError, match="is not a safetensors file"):
            loaded(tmp_path / "text.safetensors")
        for content in (b"", b"hello", b"PK\x03\x04 and no more"):
            (tmp_path / "text.pth").write_bytes(content)
            with pytest.raises(UserError, match=r"is no file of torch.save, or is damaged"):
                loaded(tmp_path / "text.pth")
        with pytest.raises(UserError, match=r"holds a list, no state dict"):
            loaded(saved(tmp_path, [1, 2]))
        with pytest.raises(UserError, match=r"holds no state dict .*; its keys: epoch, lr$"):
            loaded(saved(tmp_path, {"epoch": 1, "lr": 0.1}))
        with pytest.raises(UserError, match=r"holds no state dict .*; its keys: none$"):
            loaded(saved(tmp_path, {}))


class TestFit:
    def test_shape(self, tmp_path, net):
        state = net.state_dict() | {"conv1.weight": torch.ones(16, 3, 5, 5)}
        message = r"the backbone: conv1.weight is \(16, 3, 5, 5\), expected \(16, 3, 3, 3\)$"
        with pytest.raises(UserError, match=message):
            loaded(saved(tmp_path, state))

    def test_missing_and_unknown_with_the_nearest_names(self, tmp_path, net):
        state = net.state_dict()
        state["bn_1.bias"] = state.pop("bn1.bias")
        message = (
            r"bn1.bias is missing \(nearest: bn_1.bias\); bn_1.bias is unknown "
            r"\(nearest: bn1.bias\)$"
        )
        with pytest.raises(UserError, match=message):
            loaded(saved(tmp_path, state))
        few = {"bn1.bias": state["bn_1.bias"]}
        with pytest.raises(UserError, match=r"conv1.weight is missing, .* \(and \d+ more\)$"):
            loaded(saved(tmp_path, few))

    def test_another_networks_file(self, tmp_path):
        path = saved(tmp_path, nn.Sequential(nn.Linear(3, 2)).state_dict())
        with pytest.raises(UserError, match=r"0.weight is unknown .*, 0.bias is unknown"):
            loaded(path)

    def test_other_classes_name_the_way_out(self, tmp_path, net):
        path = saved(tmp_path, net.state_dict())
        message = (
            r"has another classifier: fc.weight is \(10, 64\), expected \(7, 64\), fc.bias is "
            r"\(10,\), expected \(7,\); baseline.new_head=true trains fc anew$"
        )
        with pytest.raises(UserError, match=message):
            loaded(path, classes=7)

    @pytest.mark.parametrize("classes", [7, 10])
    def test_a_new_head(self, tmp_path, net, classes):
        before, model = loaded(saved(tmp_path, net.state_dict()), classes=classes, new_head=True)
        after = model.state_dict()
        for name, tensor in net.state_dict().items():
            assert torch.equal(after[name], before[name] if name.startswith("fc.") else tensor)
        assert after["fc.weight"].shape == (classes, 64)


class TestValues:
    @pytest.mark.parametrize("change", [torch.nan, torch.inf, -torch.inf])
    def test_not_finite(self, tmp_path, net, change):
        state = copy.deepcopy(net.state_dict())
        state["layer1.0.conv1.weight"][0, 0, 0, 0] = change
        with pytest.raises(UserError) as raised:
            loaded(saved(tmp_path, state))
        assert str(raised.value).endswith(
            "layer1.0.conv1.weight holds 1 values (of 2304) that are not finite"
        )
        assert "lower" not in str(raised.value)

    def test_a_negative_variance(self, tmp_path, net):
        state = copy.deepcopy(net.state_dict())
        state["bn1.running_var"][3] = -0.5
        with pytest.raises(UserError, match=r"bn1.running_var holds a negative variance \(-0.5\)$"):
            loaded(saved(tmp_path, state))

    @pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.uint8])
    def test_integer_weights(self, tmp_path, net, dtype):
        state = net.state_dict() | {"fc.weight": torch.ones(10, 64).to(dtype)}
        kind = str(dtype).removeprefix("torch.")
        message = f"fc.weight holds {kind} numbers, where float32 is expected$"
        with pytest.raises(UserError, match=message):
            loaded(saved(tmp_path, state))

    def test_variances_near_zero_are_pointed_out(self, tmp_path, net, caplog):
        state = copy.deepcopy(net.state_dict())
        state["bn1.running_var"].fill_(1e-12)
        loaded(saved(tmp_path, state))
        assert "bn1.running_var: all variances are 0" in caplog.text

    def test_a_refused_file_changes_nothing(self, tmp_path, net):
        state = copy.deepcopy(net.state_dict())
        state["fc.bias"][0] = torch.nan  # the last one
        model = Blueprint(BackboneConfig("resnet8", "resnet8", {}), 10, 3, 32).build()
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(UserError, match=r"fc.bias holds 1 values"):
            load_weights(model, saved(tmp_path, state))
        assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


class TestNamesOfOthers:
    def test_resnet18_of_torchvision(self, tmp_path):
        theirs = torchvision.models.resnet18(num_classes=10)
        theirs(images(4, 64))
        model = loaded(saved(tmp_path, theirs.state_dict()), "resnet18_imagenet_stem")[1]
        assert same(model, theirs)

    def test_vgg16_bn_of_torchvision_with_a_new_head(self, tmp_path):
        features = torchvision.models.vgg16_bn().features
        state = {f"features.{name}": tensor for name, tensor in features.state_dict().items()}
        state |= {f"classifier.{n}.weight": torch.ones(2, 2) for n in (0, 3, 6)}
        path = saved(tmp_path, state)
        _, model = loaded(path, "vgg16_bn", new_head=True)
        after = model.state_dict()
        for name, tensor in features.state_dict().items():
            assert torch.equal(after[f"features.{name}"], tensor)
        with pytest.raises(UserError, match=r"baseline.new_head=true trains fc anew$"):
            loaded(path, "vgg16_bn")

    @pytest.mark.parametrize("name", ["resnet26d", "mobilenetv3_small_050", "convnext_atto"])
    def test_timm(self, tmp_path, name):
        theirs = timm.create_model(name, num_classes=10)
        theirs(images(4, 64))
        model = loaded(saved(tmp_path, theirs.state_dict()), name, builder="timm")[1]
        x = images(4, 32, seed=3)
        assert torch.allclose(model.eval()(x), theirs.eval()(x), atol=1e-5)
