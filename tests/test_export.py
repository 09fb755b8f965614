"""The deployed network and its ONNX file: exact folding, integers, zeros, fusion."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import nn

from nets import PreActivation, ReluBeforeSum, Residual, images, traced
from pqd.constraints import attach as constrain
from pqd.constraints.fake_quant import activation_fake_quants
from pqd.constraints.integers import round_biases
from pqd.constraints.integers.layers import IntegerLayer
from pqd.constraints.mask import attach_masks, masks, set_masks
from pqd.constraints.quantization import FakeQuantization
from pqd.export.deploy import deployed
from pqd.export.onnx_file import write_onnx
from pqd.runtimes import get
from pqd.stages.quantize import calibrate

FLOAT = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "Add"}


def compressed(kind, code_max=127, sparsity=0.7):
    """A network with both constraints, calibrated, in eval mode."""
    model = traced(kind)
    attach_masks(m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    set_masks(model, sparsity, "global")
    constrain(model, FakeQuantization(code_max))
    calibrate(model, [images()])
    return model


def session(path, optimized=None):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if optimized:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class TestDeployed:
    @pytest.mark.parametrize("kind", [Residual, PreActivation])
    def test_folding_agrees_with_the_fake_quantized_network(self, kind):
        model = compressed(kind)
        x = images(200, seed=9)
        with torch.no_grad():
            own, folded = model(x), deployed(model)(x)
        # Rounding the bias to INT32 can move a value across one code of an activation.
        assert (own - folded).abs().max() < 0.02 * own.abs().max()
        assert (own.argmax(1) == folded.argmax(1)).float().mean() >= 0.995

    @pytest.mark.parametrize("kind", [Residual, PreActivation, ReluBeforeSum])
    def test_rounded_biases_are_deployed_as_they_are(self, kind):
        model = compressed(kind)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "bias" in name:
                    parameter.add_(torch.randn_like(parameter))
        before = [m for m in deployed(model).modules() if isinstance(m, IntegerLayer)]
        round_biases(model)
        network = deployed(model)
        after = [m for m in network.modules() if isinstance(m, IntegerLayer)]
        x = images(200, seed=9)
        with torch.no_grad():
            own, folded = model(x), network(x)
        for old, new in zip(before, after, strict=True):
            assert torch.equal(old.bias_codes, new.bias_codes)
            assert torch.equal(old.codes, new.codes)
        # What is left is the order of float32 sums.
        assert ((own - folded).abs() < 1e-4 * own.abs().max()).float().mean() > 0.95

    def test_the_mean_of_a_batch_norm_without_bias_is_rounded(self):
        model = compressed(ReluBeforeSum)
        round_biases(model)
        bn, layer = model.bn2, deployed(model).conv2
        steps = -bn.running_mean * torch.rsqrt(bn.running_var + bn.eps) / layer.bias_scale
        assert (steps - layer.bias_codes).abs().max() < 1 / 32  # float32 has steps of 1 / 64 there

    def test_a_float_network_is_only_folded(self):
        model = traced(Residual).eval()
        x = images()
        folded = deployed(model)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
        with torch.no_grad():
            assert torch.allclose(model(x), folded(x), atol=1e-5)

    @pytest.mark.parametrize("functional", [False, True])
    @pytest.mark.parametrize("size", [1, (1, 1), [1, 1]])
    def test_a_global_average_pool_however_it_is_written(self, functional, size):
        class Net(Residual):
            def __init__(self):
                super().__init__()
                self.average = nn.AdaptiveAvgPool2d(size)

        class Functional(Net):
            def forward(self, x):
                x = self.pool(self.relu(self.bn1(self.conv1(x))))
                return self.fc(F.adaptive_avg_pool2d(x, size).flatten(1))

        folded = deployed(traced(Functional if functional else Net).eval())
        targets = [node.target for node in folded.graph.nodes]
        assert torch.ops.pqd.global_average_pool.default in targets

    def test_the_given_network_is_left_alone(self):
        model = compressed(Residual)
        before = model(images())
        deployed(model)
        assert torch.equal(model(images()), before)

    def test_a_sparse_float_network(self):
        model = traced(Residual).eval()
        attach_masks(m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
        set_masks(model, 0.6, "global")
        before = model(images())
        folded = deployed(model)
        assert torch.equal(model(images()), before)  # baking must not reach the original
        assert torch.equal(folded.fc.weight == 0, ~masks(model)["fc"].mask)
        assert torch.allclose(folded(images()), before, atol=1e-5)

    def test_a_batch_norm_that_ignores_its_channel(self):
        model = compressed(Residual)
        with torch.no_grad():
            model.bn1.weight[:3] = torch.tensor([0.0, 1e-30, 1e-12])
        calibrate(model, [images()])
        x = images(seed=4)
        with torch.no_grad():
            own, folded = model(x), deployed(model)(x)
        assert torch.isfinite(folded).all()
        assert (own - folded).abs().max() < 0.02 * own.abs().max()
        layer = deployed(model).conv1
        assert isinstance(layer, IntegerLayer)
        assert layer.bias_codes.abs().max() <= 2**30
        assert (layer.scale > 0).all()


class TestOnnx:
    @pytest.fixture(scope="class", params=[Residual, PreActivation])
    def case(self, request, tmp_path_factory):
        folder = tmp_path_factory.mktemp("onnx")
        # 7-bit weights: on a CPU without VNNI the runtime's sums of 8-bit products saturate.
        model = compressed(request.param, code_max=63)
        write_onnx(model, folder / "model.onnx", (3, 8, 8), {"classes": ["a", "b", "c", "d"]})
        session(folder / "model.onnx", folder / "optimized.onnx")
        return model, folder

    def test_weights_are_integers_and_zero_where_masked(self, case):
        model, folder = case
        graph = onnx.load(folder / "model.onnx").graph
        tensors = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        for name, mask in masks(model).items():
            codes = tensors[f"{name}.codes"]
            assert codes.dtype == np.int8
            assert codes.shape == tuple(mask.mask.shape)
            assert not codes[~mask.mask.numpy()].any()
            assert np.abs(codes).max() <= 63
        assert tensors["conv1.bias_codes"].dtype == np.int32

    def test_codes_are_those_of_the_fake_quantizer(self, case):
        model, folder = case
        graph = onnx.load(folder / "model.onnx").graph
        tensors = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        attached = model.fc.parametrizations.weight
        expected = attached[1].codes(attached[0](attached.original))
        assert np.array_equal(tensors["fc.codes"], expected.numpy())

    def test_nothing_but_a_mean_without_a_pool_runs_in_float(self, case):
        model, folder = case
        kinds = Counter(n.op_type for n in onnx.load(folder / "optimized.onnx").graph.node)
        assert not FLOAT & set(kinds)
        floats = get("onnxruntime").float_compute_nodes(folder / "model.onnx")
        assert floats == kinds["ReduceMean"]
        convolutions = sum(isinstance(m, nn.Conv2d) for m in model.modules())
        behind_a_sum = hasattr(model, "bn")  # PreActivation's batch norm
        assert kinds["QLinearConv"] == convolutions + behind_a_sum
        assert kinds["QGemm"] == 1
        assert kinds["QLinearAdd"] == sum("add" in n.name for n in model.graph.nodes) - sum(
            "quantizers_add" in n.name for n in model.graph.nodes
        )

    def test_onnxruntime_agrees_with_the_network(self, case):
        model, folder = case
        x = images(400, seed=8)
        logits = session(folder / "model.onnx").run(None, {"input": x.numpy()})[0]
        with torch.no_grad():
            own = model(x).numpy()
        assert logits.shape == (400, 4)
        assert (logits.argmax(1) == own.argmax(1)).mean() >= 0.995

    def test_metadata_and_names(self, case):
        _, folder = case
        proto = onnx.load(folder / "model.onnx")
        assert {p.key: p.value for p in proto.metadata_props} == {
            "pqd.classes": '["a", "b", "c", "d"]'
        }
        assert [i.name for i in proto.graph.input] == ["input"]
        assert [o.name for o in proto.graph.output] == ["logits"]
        assert not any(n.metadata_props or n.doc_string for n in proto.graph.node)

    def test_same_network_same_bytes(self, case, tmp_path):
        model, folder = case
        write_onnx(model, tmp_path / "b.onnx", (3, 8, 8), {"classes": ["a", "b", "c", "d"]})
        assert (tmp_path / "b.onnx").read_bytes() == (folder / "model.onnx").read_bytes()


def test_a_float_network_as_onnx(tmp_path):
    model = traced(Residual).eval()
    write_onnx(model, tmp_path / "dense.onnx", (3, 8, 8), {})
    x = images(5)
    logits = session(tmp_path / "dense.onnx").run(None, {"input": x.numpy()})[0]
    with torch.no_grad():
        assert np.allclose(logits, model(x).numpy(), atol=1e-4)


# How many there are; which are called twice; which follow another one in ONNX Runtime's graph, as a
# ReLU between two becomes part of the second.
QUANTIZERS = {PreActivation: (9, ["conv2", "conv3"], ["relu"]), ReluBeforeSum: (7, [], [])}


class TestAnotherRuntime:
    """ONNX Runtime and OpenVINO compute the same codes from one file."""

    @pytest.fixture(scope="class", params=QUANTIZERS)
    def kind(self, request):
        return request.param

    @pytest.fixture(scope="class")
    def path(self, kind, tmp_path_factory):
        model = compressed(kind)
        for quantizer in activation_fake_quants(model).values():
            if quantizer.zero_point > 0:  # equal ones, which the exporter would share
                quantizer.zero_point.fill_(128)
        round_biases(model)
        path = tmp_path_factory.mktemp("onnx") / "model.onnx"
        write_onnx(model, path, (3, 8, 8), {})
        return path

    def test_openvino_rounds_before_it_adds(self, path):
        pytest.importorskip("openvino")
        x = images(500, seed=9).numpy()
        ours, theirs = (get(r).open(path, 1)(x) for r in ("onnxruntime", "openvino"))
        # PreActivation without the second quantizer 24 %, with a shared zero point 33 %.
        assert (np.abs(ours - theirs).max(axis=1) < 1e-5).mean() >= 0.995

    def test_every_quantizer_has_a_zero_point_of_its_own(self, path, kind):
        nodes = [n for n in onnx.load(path).graph.node if len(n.input) == 3]
        pairs = {tuple(n.input[1:]) for n in nodes if n.op_type == "QuantizeLinear"}
        count, _, _ = QUANTIZERS[kind]
        assert len(pairs) == len({zero_point for _, zero_point in pairs}) == count

    def test_onnxruntime_removes_the_second_quantizer(self, path, kind, tmp_path):
        session(path, tmp_path / "optimized.onnx")
        _, twice, left = QUANTIZERS[kind]
        assert self._quantized_again(path) == twice
        assert self._quantized_again(tmp_path / "optimized.onnx") == left

    def _quantized_again(self, path):
        nodes = onnx.load(path).graph.node
        made = {n.output[0] for n in nodes if n.op_type == "DequantizeLinear"}
        again = [n for n in nodes if n.op_type == "QuantizeLinear" and n.input[0] in made]
        return [n.input[1].split(".")[1] for n in again]
