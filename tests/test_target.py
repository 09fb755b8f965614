"""Targets: quantizers where each wants them, the same classes everywhere, one line for a mix."""

import json
from dataclasses import asdict

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import configs
import odd_nets
from nets import PreActivation, ReluBeforeSum, Residual, images, traced
from pqd.config import BackboneConfig, TargetConfig
from pqd.constraints import attach, fake_quant
from pqd.constraints.fake_quant import ActivationFakeQuant, activation_fake_quants
from pqd.constraints.integers import round_biases
from pqd.constraints.integers.layers import QuantizeDequantize
from pqd.constraints.lsq import LearnedActivationFakeQuant, LearnedSteps
from pqd.constraints.quantization import FakeQuantization
from pqd.errors import UserError
from pqd.export.onnx_file import write_onnx
from pqd.graph.view import Graph
from pqd.identity import stage_keys
from pqd.networks import Blueprint, load_network, save_network
from pqd.package import pack, unpack
from pqd.runtimes import get
from pqd.scheme import Scheme
from pqd.stages.quantize import calibrate

SKIP, CLIP, SYMMETRIC = Scheme(sums="skip"), Scheme(sums="clip"), Scheme(symmetric=True)


class Shortcut(nn.Module):
    """A block whose skip branch has a convolution, too, and is computed last."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1)
        self.side = nn.Conv2d(8, 8, 1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.fc = nn.Linear(512, 10)

    def forward(self, x):
        x = torch.relu(self.conv1(x))
        main = self.conv3(torch.relu(self.bn2(self.conv2(x))))
        x = torch.relu(self.bn(self.side(x)) + main)
        return self.fc(x.flatten(1))


def quantized(kind, scheme, constraint=FakeQuantization):
    model = traced(kind)
    attach(model, constraint(127, scheme))
    calibrate(model, [images(64)])
    round_biases(model)
    return model.eval()


def inputs_of_sums(model):
    """Of each sum, in order, which inputs come from a quantizer."""
    graph = Graph(model)
    return [
        ["quantizers" in str(graph.sources(v)[0].target) for v in graph.activations(node)]
        for node in model.graph.nodes
        if graph.is_sum(node)
    ]


class TestPlacement:
    @pytest.mark.parametrize(
        ("kind", "skip"),
        [
            (Residual, [[False, True]]),
            (Shortcut, [[True, False]]),
            (PreActivation, [[True, False], [False, True]]),
            (ReluBeforeSum, [[True, True], [True, True]]),  # no runtime adds behind a ReLU
        ],
    )
    def test_of_a_sum_that_a_convolution_computes_the_skip_branch_is_quantized(self, kind, skip):
        assert inputs_of_sums(quantized(kind, SKIP)) == skip
        assert inputs_of_sums(quantized(kind, Scheme())) == [[True, True]] * len(skip)

    @pytest.mark.parametrize("kind", [Residual, Shortcut, PreActivation])
    def test_only_the_quantizers_behind_these_convolutions_go(self, kind):
        models = [quantized(kind, scheme) for scheme in (Scheme(), SKIP)]
        both, skip = (set(activation_fake_quants(model)) for model in models)
        assert skip < both
        assert len(both - skip) == len(inputs_of_sums(models[0]))

    @pytest.mark.parametrize("kind", [Shortcut, PreActivation, ReluBeforeSum])
    def test_clipped_are_those_that_would_go(self, kind):
        both, clip, skip = (
            activation_fake_quants(quantized(kind, scheme)) for scheme in (Scheme(), CLIP, SKIP)
        )
        assert set(clip) == set(both)
        assert {name for name in clip if not clip[name].rounds} == set(both) - set(skip)
        assert all(quantizer.rounds for quantizer in both.values())

    def test_a_convolution_that_reads_what_it_adds_rounds(self):
        quantizers = activation_fake_quants(quantized(Residual, CLIP)).values()
        assert all(quantizer.rounds for quantizer in quantizers)

    def test_a_sum_of_a_value_with_itself_is_quantized(self):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 4)

            def forward(self, x):
                x = self.conv(x)
                return self.fc((x + x).mean((2, 3)))

        assert inputs_of_sums(quantized(Twice, SKIP)) == [[True, True]]
        quantizers = activation_fake_quants(quantized(Twice, CLIP)).values()
        assert all(quantizer.rounds for quantizer in quantizers)


class TestRecipe:
    blueprint = Blueprint(BackboneConfig("resnet8", "resnet8"), 4, 3, 16)

    @pytest.mark.parametrize("scheme", [Scheme(), SKIP, CLIP, SYMMETRIC, Scheme("skip", True)])
    @pytest.mark.parametrize("constraint", [FakeQuantization, LearnedSteps])
    def test_a_network_comes_back_as_it_was(self, scheme, constraint, tmp_path):
        model = self.blueprint.build()
        attach(model, constraint(127, scheme))
        calibrate(model, [images(8, 16)])
        save_network(model, self.blueprint, tmp_path)
        again = load_network(tmp_path)
        assert inputs_of_sums(again) == inputs_of_sums(model)
        x = images(4, 16)
        assert torch.equal(again.eval()(x), model.eval()(x))

    def test_an_older_recipe_names_no_scheme(self, tmp_path):
        model = self.blueprint.build()
        attach(model, FakeQuantization(127))
        save_network(model, self.blueprint, tmp_path)
        path = tmp_path / "recipe.json"
        recipe = json.loads(path.read_text())
        assert recipe["constraints"][0].pop("scheme") == asdict(Scheme())
        path.write_text(json.dumps(recipe))
        x = images(4, 16)
        assert torch.equal(load_network(tmp_path).eval()(x), model.eval()(x))


class TestTargets:
    def test_those_that_share_a_scheme_go_together(self, monkeypatch):
        monkeypatch.setattr(get("torch"), "scheme", Scheme(), raising=False)
        assert TargetConfig(["onnxruntime", "torch"]).scheme() == Scheme()
        assert TargetConfig(["openvino"], symmetric=True).scheme() == Scheme("clip", True, "norm")
        assert TargetConfig(["openvino"], sums="skip").scheme() == Scheme("skip", False, "norm")

    @pytest.mark.parametrize(
        ("names", "line"),
        [
            (
                ["onnxruntime", "openvino"],
                r"target.names=\[onnxruntime,openvino\]: openvino wants quantizers in other places "
                "than onnxruntime; a network is trained for one of these",
            ),
            ([], r"target.names=\[\] is empty; give one of executorch, onnxruntime, openvino"),
        ],
    )
    def test_others_are_refused(self, names, line):
        config = configs.config("pqd", target=TargetConfig(names))
        with pytest.raises(UserError, match=line):
            configs.STAGES["quantize"].check(config)

    def test_the_scheme_counts_from_the_quantized_stage_on(self):
        def keys(**target):
            return stage_keys(configs.config("pqd", target=TargetConfig(**target)), {"images": "0"})

        usual = keys()
        for changed in (keys(names=["openvino"]), keys(symmetric=True), keys(sums="skip")):
            assert [name for name in usual if usual[name] == changed[name]] == ["baseline", "prune"]


@pytest.mark.parametrize("scheme", [SKIP, CLIP, SYMMETRIC, Scheme("skip", True)], ids=str)
@pytest.mark.parametrize(
    ("kind", "constraint"),
    [(Shortcut, FakeQuantization), (Shortcut, LearnedSteps), (odd_nets.Split, FakeQuantization)],
)
class TestAnswers:
    @pytest.fixture
    def model(self, kind, scheme, constraint):
        model = odd_nets.trained(kind)
        attach(model, constraint(127, scheme))
        calibrate(model, [odd_nets.data(256, seed)[0] for seed in (1, 2)])
        odd_nets.train(model, 10)
        round_biases(model)
        return model.eval()

    def test_every_runtime_agrees(self, model, scheme, tmp_path):
        path = tmp_path / "model.onnx"
        write_onnx(model, path, (3, 8, 8), {})
        pack(path, tmp_path / "model.pqd")
        unpack(tmp_path / "model.pqd", tmp_path / "again.onnx")
        assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()
        pictures, classes = odd_nets.data(2000, 3)
        with torch.no_grad():
            own = model(pictures).argmax(1)
        assert (own == classes).float().mean() > 0.5
        for runtime in ("onnxruntime", "openvino"):
            if get(runtime).unavailable() or (scheme.sums, runtime) == ("clip", "onnxruntime"):
                continue
            theirs = torch.from_numpy(get(runtime).open(path, 1)(pictures.numpy())).argmax(1)
            assert (own == theirs).float().mean() >= 0.995, runtime
            if runtime == "openvino":
                assert get(runtime).float_compute_nodes(path) == 0

    def test_the_codes_are_those_of_the_scheme(self, model, scheme, tmp_path):
        write_onnx(model, tmp_path / "model.onnx", (3, 8, 8), {})
        graph = onnx.load(tmp_path / "model.onnx").graph
        constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        points = [constants[n.input[2]] for n in graph.node if n.op_type == "QuantizeLinear"]
        kind = np.int8 if scheme.symmetric else np.uint8
        assert {point.dtype for point in points} == {np.dtype(kind)}
        assert not scheme.symmetric or not any(points)


@pytest.mark.parametrize("kind", [PreActivation, Shortcut])
def test_openvino_clips_what_it_adds_and_onnxruntime_rounds_it(kind, tmp_path):
    if get("openvino").unavailable():
        pytest.skip("OpenVINO is not installed")
    model, path, pictures = quantized(kind, CLIP), tmp_path / "model.onnx", images(64)
    write_onnx(model, path, (3, 8, 8), {})
    outputs = {
        name: get(name).open(path, 1)(pictures.numpy()) for name in ("onnxruntime", "openvino")
    }

    def error(runtime):
        with torch.no_grad():
            return (model(pictures) - torch.from_numpy(outputs[runtime])).square().mean().item()

    clips, rounds = error("openvino"), error("onnxruntime")
    for quantizer in activation_fake_quants(model).values():
        quantizer.rounds = True
    assert clips < rounds / 10
    assert error("onnxruntime") < error("openvino") / 10


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("kind", [ActivationFakeQuant, LearnedActivationFakeQuant])
def test_clipping_changes_nothing_inside_the_range(kind, eager, monkeypatch):
    monkeypatch.setattr(fake_quant, "eager", lambda x: eager)
    quantizer = kind(rounds=False)
    quantizer.set_scale(torch.tensor(0.5))
    quantizer.zero_point.fill_(100)
    x = torch.tensor([-60.0, -49.9, 0.26, 77.4, 77.6, 90.0], requires_grad=True)
    out = quantizer(x)
    assert out.tolist() == pytest.approx([-50, -49.9, 0.26, 77.4, 77.5, 77.5])
    out.backward(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    assert x.grad.tolist() == [0, 2, 3, 4, 0, 0]
    if kind is LearnedActivationFakeQuant:  # eq. 3 without rounding: the codes of what is clipped
        slope = (1 * -100 + (5 + 6) * 155) / (1 * 255) ** 0.5
        assert quantizer.step.grad.item() == pytest.approx(slope)


@pytest.mark.parametrize("kind", [ActivationFakeQuant, LearnedActivationFakeQuant])
def test_a_symmetric_grid_has_zero_in_its_middle(kind):
    quantizer = kind(symmetric=True)
    quantizer.observing = True
    quantizer(torch.tensor([-1.0, 2.54]))
    quantizer.end_observation()
    x = torch.tensor([-9.0, -2.56, -0.011, 0.0, 0.009, 2.54, 9.0])
    codes = torch.tensor([-128.0, -128, -1, 0, 0, 127, 127])
    assert torch.allclose(quantizer(x), codes * 0.02)
    deployed = QuantizeDequantize(quantizer)
    assert (deployed.zero_point.dtype, deployed.zero_point.item()) == (torch.int8, 0)
    assert torch.equal(deployed(x), quantizer(x))
    assert deployed.largest() == pytest.approx(2.54)
