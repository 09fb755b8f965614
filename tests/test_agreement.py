"""Networks of many kinds: quantizers where they belong, the same classes in both runtimes."""

import copy
from collections import Counter

import onnx
import pytest
import torch
from torch import fx, nn

import odd_nets
from pqd.constraints import attach as constrain
from pqd.constraints.fake_quant import ActivationFakeQuant, activation_fake_quants
from pqd.constraints.integers import round_biases
from pqd.constraints.placement import remove_fake_quants
from pqd.constraints.quantization import FakeQuantization
from pqd.errors import UserError
from pqd.export.deploy import deployed
from pqd.export.onnx_file import write_onnx
from pqd.graph.view import Graph
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


@pytest.fixture(scope="module", params=EXPECTED, ids=lambda kind: kind.__name__)
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


class TestPlacement:
    def test_no_quantizer_stands_between_float_operations(self):
        model = fx.symbolic_trace(odd_nets.LogSumExp())
        constrain(model, FakeQuantization(127))
        (positive,) = (node for node in model.graph.nodes if node.name == "add_2")
        assert {user.name for user in positive.users} == {"activation_quantizers_add_2", "log_1"}

    def test_a_joined_value_that_others_read_has_one_quantizer(self):
        model = fx.symbolic_trace(odd_nets.Mixed())
        constrain(model, FakeQuantization(127))
        (signed,) = (node for node in model.graph.nodes if node.name == "signed")
        (quantizer,) = signed.users
        assert sorted(user.name for user in quantizer.users) == ["cat", "other"]
        joined = [node for node in model.graph.nodes if node.target == quantizer.target]
        assert [node.args[0].name for node in joined] == ["signed", "relu6"]

    def test_joins_that_share_a_part_share_a_quantizer(self):
        class Chain(odd_nets.Odd):
            def middle(self, x):
                a, b, c = (torch.relu(x * factor) for factor in (1, 2, 3))
                return torch.cat([torch.cat([a, b], 1)[:, :8], torch.cat([b, c], 1)[:, :8]], 1)

        model = fx.symbolic_trace(Chain())
        constrain(model, FakeQuantization(127))
        targets = {
            node.args[0].name: node.target.rpartition(".")[2]
            for node in model.graph.nodes
            if "activation_quantizers" in str(node.target)
        }
        assert [targets[name] for name in ("relu", "relu_1", "relu_2")] == ["relu"] * 3

    def test_what_a_float_operation_reads_alone_is_not_quantized_by_a_pool_or_join(self):
        class Floats(odd_nets.Odd):
            def middle(self, x):
                x = x.exp()
                return torch.cat([self.pool(x).log() + x, x.clamp(min=1)], 1).sqrt()[:, :16]

        model = fx.symbolic_trace(Floats())
        constrain(model, FakeQuantization(127))
        placed = [name.rpartition(".")[2] for name in activation_fake_quants(model)]
        assert placed == ["x", "stem_2", "sqrt", "last_2", "pool_1"]

    def test_a_layer_that_reads_a_constant_stays_float(self):
        class Position(odd_nets.Odd):
            def __init__(self):
                super().__init__()
                self.register_buffer("places", torch.randn(1, 4, 8, 8))
                self.embedding = nn.Conv2d(4, 16, 1)

            def middle(self, x):
                return x + self.embedding(self.places)

        model = odd_nets.trained(Position)
        constrain(model, FakeQuantization(127))
        calibrate(model, [odd_nets.data(64, 1)[0]])
        round_biases(model)
        network = deployed(model)
        assert type(network.embedding) is nn.Conv2d
        images = odd_nets.data(500, 3)[0]
        with torch.no_grad():
            same = model(images).argmax(1) == network(images).argmax(1)
        assert same.float().mean() >= 0.995

    def test_taking_quantizers_off_gives_the_network_back(self, kind):
        model = odd_nets.trained(kind).eval()
        again = copy.deepcopy(model)
        constrain(again, FakeQuantization(127))
        remove_fake_quants(again)
        images = odd_nets.data(8, 1)[0]
        assert torch.equal(again(images), model(images))
        assert again.state_dict().keys() == model.state_dict().keys()


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


class TestRefusals:
    @pytest.mark.parametrize("parameter", ["weight", "bias"])
    def test_a_parameter_that_others_read(self, parameter):
        class Tied(odd_nets.Odd):
            def middle(self, x):
                return x * getattr(self.fc, parameter).sum()

        model = fx.symbolic_trace(Tied())
        deployed(model)  # the layer stays as it is
        constrain(model, FakeQuantization(127))
        with pytest.raises(UserError, match=rf"layer fc cannot be .* its {parameter} .*\(sum_1\)"):
            deployed(model)


class TestGraph:
    @pytest.fixture(scope="class")
    def nodes(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("buffer", torch.zeros(1, 4, 1, 1))

            def forward(self, x):
                high, low = x.chunk(2, 1)
                twice = low + low
                joined = torch.cat([high, twice.view(twice.shape[0], -1, 4, 4).mT], 1)
                constant = torch.cat([joined, self.buffer.expand_as(joined)], 1)
                several = x.split(2, 1)[1:]
                other = torch.stack(several).permute(1, 0, 2, 3, 4)[:, 0]
                return other + constant.sum() + self.buffer

        graph = Graph(fx.symbolic_trace(Net()))
        return graph, {node.name: node for node in graph.model.graph.nodes}

    def test_sources(self, nodes):
        graph, by_name = nodes
        assert [n.name for n in graph.sources(by_name["cat"])] == ["x", "add"]
        assert graph.sources(by_name["cat_1"]) == [by_name["cat_1"]]  # a constant comes in
        assert [n.name for n in graph.sources(by_name["getitem_4"])] == ["x"]

    def test_activations_constants_and_shapes(self, nodes):
        graph, by_name = nodes
        others = [name for name, node in by_name.items() if not graph.is_activation(node)]
        assert others == ["getattr_1", "getitem_2", "buffer", "expand_as", "buffer_1"]
        assert graph.readers(by_name["add"]) == [by_name["view"]]

    def test_sums(self, nodes):
        graph, by_name = nodes
        sums = [name for name, node in by_name.items() if graph.is_sum(node)]
        assert sums == ["add", "add_1"]
        assert [n.name for n in graph.activations(by_name["add"])] == ["getitem_1", "getitem_1"]

    def test_tuples(self, nodes):
        graph, by_name = nodes
        tuples = [name for name, node in by_name.items() if graph.is_tuple(node)]
        assert tuples == ["chunk", "split", "getitem_3"]
