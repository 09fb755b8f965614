"""The network in ExecuTorch's operators, its file, and what XNNPACK runs of it."""

import json
from collections import Counter

import pytest
import torch
from torch import nn

import odd_nets
from nets import PreActivation, ReluBeforeSum, Residual, images, traced
from pqd.constraints import attach as constrain
from pqd.constraints.integers import round_biases
from pqd.constraints.quantization import FakeQuantization
from pqd.errors import UserError
from pqd.export.deploy import deployed
from pqd.export.executorch_file import for_xnnpack, write_executorch
from pqd.runtimes import get, usable
from pqd.stages.quantize import calibrate

installed = pytest.mark.skipif(
    get("executorch").unavailable() is not None, reason="executorch is not installed"
)
integer = torch.ops.quantized_decomposed
QUANTIZE = integer.quantize_per_tensor.default
DEQUANTIZE = integer.dequantize_per_tensor.default


def quantized(kind):
    """A calibrated network, and images to compare on."""
    if issubclass(kind, odd_nets.Odd):
        model, batch, others = odd_nets.trained(kind), odd_nets.data(64, 1), odd_nets.data(500, 3)
        batch, others = batch[0], others[0]
    else:
        model, batch, others = traced(kind), images(), images(500, seed=9)
    constrain(model, FakeQuantization(127))
    calibrate(model, [batch])
    round_biases(model)
    return model.eval(), others


ODD = [kind for kind in vars(odd_nets).values() if isinstance(kind, type)]
ODD = [kind for kind in ODD if issubclass(kind, odd_nets.Odd) and kind is not odd_nets.Odd]


class TestOperators:
    @pytest.mark.parametrize("kind", [Residual, PreActivation, ReluBeforeSum, *ODD])
    def test_they_compute_what_the_deployed_network_does(self, kind):
        model, others = quantized(kind)
        with torch.no_grad():
            expected, found = deployed(model)(others), for_xnnpack(deployed(model))(others)
        # Sums of float32 in another order: a value on the edge of two codes may fall to either.
        assert ((expected - found).abs() < 1e-4 * expected.abs().max()).float().mean() > 0.99

    def test_every_reader_has_a_dequantize_of_its_own(self):
        network = for_xnnpack(deployed(quantized(Residual)[0]))
        dequantizes = [node for node in network.graph.nodes if node.target is DEQUANTIZE]
        assert dequantizes
        assert all(len(node.users) == 1 for node in dequantizes)

    def test_codes_are_int8(self):
        model, _ = quantized(Residual)
        network = for_xnnpack(deployed(model))
        quantizers = model.activation_quantizers
        expected = {
            (q.scale.item(), int(q.zero_point) - 128, -128, 127, torch.int8)
            for q in quantizers.children()
        }
        found = {node.args[1:] for node in network.graph.nodes if node.target is QUANTIZE}
        assert found == expected

    @pytest.mark.parametrize(
        ("kind", "count"),
        # image, conv1, conv2, sum, pool; and what moves their values: max-pool, flatten
        [(Residual, 7), (ReluBeforeSum, 7)],  # image, conv1, conv2, sum, conv3, sum, mean
    )
    def test_no_quantizer_is_called_twice_in_a_row(self, kind, count):
        network = for_xnnpack(deployed(quantized(kind)[0]))
        assert sum(node.target is QUANTIZE for node in network.graph.nodes) == count
        for node in network.graph.nodes:
            if node.target is QUANTIZE:
                made = node.args[0]
                assert made.target is not DEQUANTIZE

    def test_a_float_network_stays_as_it_is(self):
        model = traced(Residual).eval()
        with torch.no_grad():
            x = images()
            assert torch.equal(for_xnnpack(deployed(model))(x), deployed(model)(x))


def test_without_the_package_one_line_says_so(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^runtime executorch is not installed \(pip install"):
        usable("executorch")


@installed
class TestFile:
    """One file for all tests: it takes seconds to make."""

    @pytest.fixture(scope="class")
    def made(self, tmp_path_factory):
        model, others = quantized(Residual)
        path = tmp_path_factory.mktemp("executorch") / "model.pte"
        write_executorch(model, path, (3, 8, 8), {"order": "q"})
        return model, others, path

    def test_it_names_the_same_classes(self, made):
        model, others, path = made
        with torch.no_grad():
            expected = model(others)
        found = torch.from_numpy(usable("executorch").open(path, 1)(others.numpy()))
        assert (expected.argmax(1) == found.argmax(1)).float().mean() >= 0.995
        assert ((expected - found).abs() < 1e-4 * expected.abs().max()).float().mean() > 0.95

    def test_all_of_it_runs_in_xnnpack_and_in_integers_but_the_last_layer(self, made):
        from pqd.runtimes.executorch import MOVES, nodes, undelegated

        *_, path = made
        assert undelegated(path) == []
        assert Counter(node for node in nodes(path) if node[0] not in MOVES) == {
            ("XNNConv2d", "xnn_datatype_qint8"): 2,
            ("XNNAdd", "xnn_datatype_qint8"): 1,
            ("XNNGlobalAvgPooling2d", "xnn_datatype_qint8"): 1,
            ("XNNFullyConnected", "xnn_datatype_fp32"): 1,
        }
        assert usable("executorch").float_compute_nodes(path) == 1

    def test_batches_run_image_by_image(self, made):
        _, others, path = made
        session = usable("executorch").open(path, 1)
        call = session.bind(others[:3].numpy())
        logits = call()
        assert [tuple(one.shape) for one in logits] == [(1, 4)] * 3
        assert torch.equal(torch.cat(logits), torch.from_numpy(session(others[:3].numpy())))

    def test_threads_are_the_number_asked_for(self, made):
        _, others, path = made
        runtime = usable("executorch")
        first = runtime.open(path, 1)
        expected = first(others[:8].numpy())
        with runtime.threads(2):
            assert (runtime.open(path, 2)(others[:8].numpy()) == expected).all()
            with pytest.raises(AssertionError, match="its threads have ended"):
                first.bind(others[:1].numpy())

    def test_it_tells_what_it_is(self, made):
        from executorch.runtime import Runtime

        *_, path = made
        (text,) = Runtime.get().load_program(path).load_method("metadata").execute([])
        assert json.loads(text) == {"order": "q"}


@installed
def test_what_runs_outside_xnnpack_is_named(tmp_path):
    class Modulo(odd_nets.Odd):
        def middle(self, x):
            return torch.remainder(x, 2)

    from pqd.runtimes.executorch import undelegated

    model, others = quantized(Modulo)
    write_executorch(model, tmp_path / "model.pte", (3, 8, 8), {})
    assert undelegated(tmp_path / "model.pte") == ["aten::remainder"]
    float_nodes = usable("executorch").float_compute_nodes(tmp_path / "model.pte")
    assert float_nodes == 2  # and the last layer
    with torch.no_grad():
        expected = model(others).argmax(1)
    found = usable("executorch").open(tmp_path / "model.pte", 1)(others.numpy()).argmax(1)
    assert (expected.numpy() == found).mean() >= 0.995


def test_a_layer_before_a_float_operation_is_rounded_only_where_a_quantizer_follows():
    from pqd.export.executorch_file import FloatWeights, IntegerWeights

    network = for_xnnpack(deployed(quantized(Residual)[0]))
    kinds = {name: type(m) for name, m in network.named_modules() if isinstance(m, IntegerWeights)}
    assert kinds == {"conv1": IntegerWeights, "conv2": IntegerWeights, "fc": FloatWeights}
    assert isinstance(network.fc.values, nn.Parameter)
