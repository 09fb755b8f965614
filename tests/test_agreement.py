"""Networks of many kinds: the same classes in both runtimes, and integers where they belong."""

from collections import Counter

import onnx
import pytest
import torch
from torch import fx, nn

import odd_nets
from pqd.constraints import attach as constrain
from pqd.constraints.fake_quant import ActivationFakeQuant
from pqd.constraints.integers import round_biases
from pqd.constraints.quantization import FakeQuantization
from pqd.export.deploy import deployed
from pqd.export.onnx_file import write_onnx
from pqd.runtimes import get, usable
from pqd.runtimes.onnx_runtime import MOVES, operations
from pqd.scheme import Scheme
from pqd.stages.quantize import calibrate

# The values that have quantizers (joined ones have one, called after the first), how often each
# is called, and what ONNX Runtime computes in float.
EXPECTED = {
    odd_nets.Shuffle: (
        {"x": 1, "stem_2": 3, "last_2": 1, "pool": 1},
        {},
    ),
    odd_nets.Ghost: (
        {"x": 1, "stem_2": 1, "primary_2": 2, "add": 1, "last_2": 1, "pool": 1},
        {},
    ),
    odd_nets.Mixed: (
        {"x": 1, "stem_2": 1, "signed": 2, "other": 1, "relu": 1, "last_2": 1, "pool": 1},
        {"Clip": 1},
    ),
    odd_nets.Dense: (
        {"x": 1, "stem_2": 3, "first_1": 1, "second_1": 1, "relu": 1, "last_2": 1, "pool": 1},
        {"Relu": 1},  # of a value that is joined with some below zero
    ),
    odd_nets.PreActivation: (
        {
            "x": 1,
            "stem_2": 1,
            "branches_0_1": 1,
            "branches_0_4": 1,
            "branches_0_5": 1,
            "add": 1,
            "branches_1_1": 1,
            "branches_1_4": 1,
            "branches_1_5": 1,
            "add_1": 1,
            "relu": 1,
            "last_2": 1,
            "pool": 1,
        },
        {},
    ),
    odd_nets.Split: (
        {"x": 1, "stem_2": 3, "add": 1, "last_2": 1, "pool": 1},
        {},
    ),
    odd_nets.Constants: (
        {"add": 1, "stem_2": 1, "add_3": 1, "last_2": 1, "pool": 1, "fc": 1},
        {"Add": 4, "Mul": 2, "Expand": 1},
    ),
    odd_nets.GeM: (
        {"x": 1, "stem_2": 1, "last_2": 1, "pow_2": 1},
        {"Clip": 1, "Pow": 2, "AveragePool": 1},
    ),
    odd_nets.LogSumExp: (
        {
            "x": 1,
            "stem_2": 1,
            "add_2": 1,
            "log_1": 1,
            "side": 1,
            "add_3": 1,
            "last_2": 1,
            "pool": 1,
        },
        {"Sub": 2, "Neg": 1, "Exp": 2, "Add": 3, "Log": 2, "Softplus": 1, "Greater": 1, "Where": 1},
    ),
    odd_nets.Pads: (
        {"x": 1, "stem_2": 1, "relu": 1, "last_2": 1, "pool": 1},
        {},
    ),
    odd_nets.ConstantParts: (
        {"x": 1, "stem_2": 1, "cat": 1, "relu": 1, "last_2": 1, "pool": 1},
        {"Expand": 1, "Conv": 1},
    ),
    odd_nets.ConstantPads: (
        {"x": 1, "pad": 1, "pad_1": 1, "relu": 1, "last_2": 1, "pool": 1},
        {"FusedConv": 1, "Conv": 1},
    ),
    odd_nets.Keywords: (
        {"x": 1, "relu": 1, "last_2": 1, "adaptive_avg_pool2d": 1},
        {},
    ),
}


@pytest.fixture(scope="module", params=odd_nets.KINDS, ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind):
    model = odd_nets.trained(kind)
    constrain(model, FakeQuantization(127))
    calibrate(model, [odd_nets.data(256, 1)[0]])
    odd_nets.train(model, 10)
    calibrate(model, [odd_nets.data(256, seed)[0] for seed in (1, 2)])
    round_biases(model)
    return model


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    write_onnx(model, path, (3, 8, 8), {})
    return path


class TestKinds:
    def test_placement(self, kind, model):
        calls = Counter(
            str(node.target).rpartition(".")[2]
            for node in model.graph.nodes
            if "activation_quantizers" in str(node.target)
        )
        assert calls == EXPECTED[kind][0]

    @pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
    def test_runtimes_agree_with_the_fake_quantized_network(self, model, path, runtime):
        if runtime == "openvino":
            pytest.importorskip("openvino")
        images, classes = odd_nets.data(2000, 3)
        with torch.no_grad():
            own = model(images)
        assert torch.isfinite(own).all()
        assert (own.argmax(1) == classes).float().mean() > 0.5  # classes are worth comparing
        theirs = torch.from_numpy(usable(runtime).open(path, 1)(images.numpy()))
        assert (own.argmax(1) == theirs.argmax(1)).float().mean() >= 0.995

    def test_only_layers_are_followed_by_a_quantizer_twice(self, path):
        nodes = onnx.load(path).graph.node
        made = {output: node for node in nodes for output in node.output}
        again = [
            made[made[node.input[0]].input[0]].input[0]
            for node in nodes
            if node.op_type == "QuantizeLinear"
            and node.input[0] in made
            and made[node.input[0]].op_type == "DequantizeLinear"
        ]
        assert {made[name].op_type for name in again} <= {"Conv", "Gemm"}

    def test_what_onnxruntime_computes_in_float(self, kind, path):
        floats = [
            name for name in operations(path) if name not in MOVES and not name.startswith("Q")
        ]
        assert Counter(floats) == EXPECTED[kind][1]


class TestNorms:
    """Batch norms between quantizers, as each engine wants them."""

    IMAGES = odd_nets.data(2000, 3)[0]

    @pytest.fixture(scope="class")
    def networks(self):
        """By form, the fake-quantized network, rounded; both hold the same values."""
        found = {}
        for form in ("convolution", "norm"):
            model = odd_nets.trained(odd_nets.PreActivation)
            constrain(model, FakeQuantization(127, Scheme(norms=form)))
            calibrate(model, [odd_nets.data(256, 1)[0]])
            round_biases(model)
            found[form] = model
        return found

    def test_both_forms_are_the_trained_network(self, networks):
        with torch.no_grad():
            trained = networks["norm"](self.IMAGES)
            forms = {form: deployed(model)(self.IMAGES) for form, model in networks.items()}
        for logits in forms.values():
            assert (logits.argmax(1) == trained.argmax(1)).float().mean() >= 0.998
        assert (forms["norm"] - forms["convolution"]).abs().mean() < 1e-3 * trained.std()

    def test_each_engine_computes_its_own_form_in_integers(self, networks, tmp_path):
        pytest.importorskip("openvino")
        floats = {}
        for form, model in networks.items():
            write_onnx(model, tmp_path / f"{form}.onnx", (3, 8, 8), {})
            for name in ("onnxruntime", "openvino"):
                floats[form, name] = usable(name).float_compute_nodes(tmp_path / f"{form}.onnx")
        for name in ("onnxruntime", "openvino"):
            scheme = get(name).scheme
            assert floats[scheme.norms, name] == 0
            other = {"norm": "convolution", "convolution": "norm"}[scheme.norms]
            assert floats[other, name] >= 2

    def test_one_that_others_read_in_float_stays(self):
        class Returned(odd_nets.PreActivation):
            def middle(self, x):
                x = self.norm(x + self.branches[0](x))
                return torch.relu(x) + x.exp()

        model = odd_nets.trained(Returned)
        constrain(model, FakeQuantization(127))
        calibrate(model, [odd_nets.data(64, 1)[0]])
        assert type(deployed(model).norm) is nn.BatchNorm2d


class TestShared:
    def test_the_range_is_the_union_of_all_calls_averaged_over_batches(self):
        quantizer = ActivationFakeQuant(calls=2)
        quantizer.observing = True
        for batch in ([-1.0, 2.0], [0.0, 4.0], [-3.0, 1.0], [-2.0, 6.0]):
            quantizer(torch.tensor(batch))
        quantizer.end_observation()
        low, high = (-1.0 - 3.0) / 2, (4.0 + 6.0) / 2
        assert quantizer.scale.item() == pytest.approx((high - low) / 255)
        assert quantizer.zero_point.item() == round(-low / ((high - low) / 255))

    def test_a_checkpoint_holds_one_range(self, model, kind):
        again = fx.symbolic_trace(kind())
        constrain(again, FakeQuantization(127))
        again.load_state_dict(model.state_dict())
        images = odd_nets.data(64, 4)[0]
        with torch.no_grad():
            assert torch.equal(again.eval()(images), model.eval()(images))
        scales = [name for name in model.state_dict() if name.endswith(".scale")]
        assert len(scales) == len(EXPECTED[kind][0])
