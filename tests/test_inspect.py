"""What `pqd inspect` finds in layers of pqd's own files and of another tool's."""

import importlib.util

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from zstandard import ZstdCompressor

from pqd.inspect import graph, quantization, shares
from pqd.inspect.look import look
from pqd.inspect.words import worst
from pqd.package import pack, unpack_bytes, weight_bytes
from pqd.runtimes import Step, get
from tiny_onnx import float_network, foreign_networks, int8_network, write

RUNTIMES = ["onnxruntime"] + ["openvino"] * bool(importlib.util.find_spec("openvino"))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """The float network, and the files that ONNX Runtime's quantizer makes of it."""
    return foreign_networks(tmp_path_factory.mktemp("foreign"))


class TestLayers:
    def test_of_a_quantized_network(self, tmp_path):
        path = int8_network(tmp_path / "model.onnx")
        (row, *rest) = look(path, seconds=0).layers
        assert (row.name, row.kind, row.weight_shape, row.output_shape) == (
            "codes",
            "Gemm",
            [2, 16],
            [2],
        )
        assert (row.macs, row.zeros, row.bits) == (32, 0.0, 8)  # codes are -64 and 64
        codes = np.repeat(np.array([-64, 64], np.int8), 16).tobytes()
        assert row.package_bytes == len(ZstdCompressor(9).compress(codes))  # too small to be coded
        assert row.time["onnxruntime"] + sum(r.time["onnxruntime"] for r in rest) == pytest.approx(
            1
        )
        assert (row.weight_error, row.output_error) == (None, None)

    def test_of_a_float_network(self, tmp_path):
        path = float_network(tmp_path / "model.onnx")
        found = [layer for layer in look(path, seconds=0).layers if layer.name]
        assert [layer.name for layer in found] == ["w1", "w2", "w3"]
        assert [layer.macs for layer in found] == [16 * 8 * 9, 16 * 8 * 8 * 9, 2 * 128]
        assert [layer.output_shape for layer in found] == [[8, 4, 4], [8, 4, 4], [2]]
        assert {layer.bits for layer in found} == {32}
        assert all(layer.time["onnxruntime"] > 0 for layer in found)

    def test_weights_that_are_listed_among_the_inputs(self, tmp_path):
        network = onnx.load(float_network(tmp_path / "model.onnx"))
        weights = [
            helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            for tensor in network.graph.initializer
        ]
        for batch in ("batch", 4):
            size = [batch, 1, 4, 4]
            images = helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, size)
            del network.graph.input[:]
            network.graph.input.extend([*weights, images])
            assert [layer.macs for layer in graph.layers(network)] == [1152, 9216, 256]

    @pytest.mark.parametrize(
        ("codes", "bits", "zeros"),
        [([-128, 0], 8, 0.5), ([-63, 63], 7, 0), ([7, -7], 4, 0), ([1, -1], 2, 0), ([0, 0], 1, 1)],
    )
    def test_bits_are_those_that_hold_every_code(self, tmp_path, codes, bits, zeros):
        stored = np.array([codes], np.int8)
        layer = graph.Node("x", None, "x", stored, None, np.zeros(1), None, [])
        assert (layer.bits, layer.zeros) == (bits, zeros)

    def test_a_shifted_code_is_zero(self):
        stored = np.array([[128, 255, 0]], np.uint8)
        layer = graph.Node("x", None, "x", stored, np.ones(1) / 4, np.full(1, 128.0), None, [])
        assert layer.bits == 8
        assert layer.zeros == pytest.approx(1 / 3)
        assert layer.weights.tolist() == [[0, 127 / 4, -32]]

    @pytest.mark.parametrize(
        ("weight", "node", "name"),
        [
            ("layer1.0.conv1.codes", "node_conv2d", "layer1.0.conv1"),
            ("fc.weight_quantized", "/fc/Gemm", "fc"),
            ("onnx::Conv_38_quantized", "/features/features.0/Conv", "features/features.0"),
            ("w1", "/features/features.0/Conv_quant", "features/features.0"),
            ("w1", "", "w1"),
        ],
    )
    def test_names_are_those_of_the_network_exported(self, weight, node, name):
        made = helper.make_node("Conv", ["x", weight], ["out"], name=node)
        assert graph._name(weight, made) == name

    def test_weights_that_are_used_twice_are_two_layers(self, tmp_path):
        nodes = [
            helper.make_node("Conv", ["input", "w"], ["a"]),
            helper.make_node("Conv", ["a", "w"], ["b"]),
            helper.make_node("Flatten", ["b"], ["c"]),
            helper.make_node("MatMul", ["c", "m"], ["logits"]),
        ]
        weights = {"w": np.ones((1, 1, 1, 1), np.float32), "m": np.eye(16, 2, dtype=np.float32)}
        path = write(tmp_path / "model.onnx", nodes, weights)
        found = graph.layers(onnx.load(path))
        assert [layer.name for layer in found] == ["w", "w (b)", "m"]

    @pytest.mark.parametrize("runtime", RUNTIMES)
    @pytest.mark.parametrize("name", ["float", "QDQ", "QOperator"])
    def test_a_runtimes_time_is_shared_among_all(self, foreign, name, runtime):
        found = look(foreign / f"{name}.onnx", runtimes=[runtime], seconds=0)
        if (name, runtime) == ("QOperator", "openvino"):  # that knows no QGemm
            assert "openvino: RuntimeError: Exception" in found.left_out[0]
            return
        assert found.left_out == []
        assert sum(layer.time[runtime] for layer in found.layers if runtime in layer.time) == (
            pytest.approx(1)
        )
        assert all(layer.time[runtime] > 0 for layer in found.layers if layer.name)


class TestSteps:
    def test_what_is_fused_belongs_to_its_layer(self, tmp_path):
        network = onnx.load(float_network(tmp_path / "model.onnx"))
        owners = shares._owners(network, graph.layers(network))
        assert owners == {"a": "w1", "b": "w1", "c": "w2", "d": "w2", "e": "w2", "logits": "w3"}
        steps = [
            Step(("b",), "Conv", 3.0),  # named after its ReLU
            Step(("c", "d", "e"), "Convolution", 4.0),
            Step(("e",), "Add", 2.0),  # on its own
            Step(("?",), "Reorder", 1.0),
        ]
        found, others = shares._by_layer(steps, owners)
        assert found == pytest.approx({"w1": 0.3, "w2": 0.4})
        assert others == pytest.approx({"Add": 0.2, "Reorder": 0.1})

    def test_a_runtime_that_does_not_tell(self, tmp_path, monkeypatch):
        monkeypatch.setattr(type(get("onnxruntime")), "profile", lambda *_: [])
        found = look(float_network(tmp_path / "model.onnx"), seconds=0).layers
        assert [layer.time for layer in found] == [{}, {}, {}]
        assert worst(found, 10**6).startswith("What hurts most: w2 takes 0.")

    def test_a_runtime_that_fails_loses_nothing_else(self, tmp_path, monkeypatch):
        def fail(*_):
            raise RuntimeError("no profile")

        monkeypatch.setattr(type(get("onnxruntime")), "profile", fail)
        found = look(float_network(tmp_path / "model.onnx"))
        assert found.left_out == ["onnxruntime: RuntimeError: no profile"]
        assert len(found.layers) == 3

    def test_images_of_any_size_have_no_time(self, tmp_path):
        path = float_network(tmp_path / "model.onnx")
        network = onnx.load(path)
        *_, height, width = network.graph.input[0].type.tensor_type.shape.dim
        height.dim_value, width.dim_value = -1, 0
        onnx.save(network, path)
        found = look(path)
        assert found.left_out == [
            "time: the file takes images of any size; one of a fixed size shows it"
        ]
        assert [layer.time for layer in found.layers] == [{}, {}, {}]


class TestErrors:
    def test_weights_of_another_tools_files(self, foreign):
        original = onnx.load(foreign / "float.onnx")
        weights = {w.name: numpy_helper.to_array(w) for w in original.graph.initializer}
        stored = onnx.load(foreign / "QDQ.onnx").graph.initializer
        stored = {w.name: numpy_helper.to_array(w) for w in stored}
        found = look(foreign / "QDQ.onnx", float_=foreign / "float.onnx", seconds=0).layers
        for layer, name in zip(found[:2], ("w1", "w2"), strict=True):
            scale = stored[f"{name}_scale"].reshape(-1, 1, 1, 1)
            dequantized = stored[f"{name}_quantized"] * scale
            error = np.linalg.norm(dequantized - weights[name]) / np.linalg.norm(weights[name])
            assert layer.weight_error == pytest.approx(error, rel=1e-5)
            assert 0.001 < layer.weight_error < 0.01

    def test_weights_of_operators(self, foreign):
        found = look(foreign / "QOperator.onnx", float_=foreign / "float.onnx", seconds=0).layers
        errors = {layer.kind: layer.weight_error for layer in found if layer.name}
        assert list(errors) == ["QLinearConv", "QGemm"]
        assert all(0.001 < error < 0.02 for error in errors.values())

    def test_outputs(self, foreign):
        images = [np.random.default_rng(3).standard_normal((1, 1, 4, 4), np.float32)] * 2
        found = look(
            foreign / "QDQ.onnx", float_=foreign / "float.onnx", images=images, seconds=0
        ).layers
        (last,) = [layer for layer in found if layer.kind == "Gemm"]
        network = onnx.load(foreign / "QDQ.onnx")
        network.graph.output[0].name = "logits_QuantizeLinear_Input"  # before they are rounded
        quantized, exact = (
            ort.InferenceSession(model.SerializeToString()).run(None, {"input": images[0]})[0]
            for model in (network, onnx.load(foreign / "float.onnx"))
        )
        error = np.linalg.norm(quantized - exact) / np.linalg.norm(exact)
        assert last.output_error == pytest.approx(error, rel=1e-3)
        assert 0 < found[0].output_error < last.output_error

    def test_a_network_against_itself(self, foreign):
        network = onnx.load(foreign / "float.onnx")
        images = [np.ones((1, 1, 4, 4), np.float32)]
        errors = quantization.output_errors(network, network, images)
        assert errors == {"w1": 0, "w2": 0, "w3": 0}

    def test_a_layer_of_another_shape_is_left_out(self, foreign, tmp_path):
        other = write(
            tmp_path / "other.onnx",
            [
                helper.make_node("Conv", ["input", "w1"], ["a"], pads=[1] * 4),
                helper.make_node("Flatten", ["a"], ["f"]),
                helper.make_node("MatMul", ["f", "w3"], ["logits"]),
            ],
            {"w1": np.ones((4, 1, 3, 3), np.float32), "w3": np.ones((64, 2), np.float32)},
        )
        found = look(foreign / "QDQ.onnx", float_=other, seconds=0).layers
        assert {layer.weight_error for layer in found} == {None}


def test_bytes_of_weights_are_those_that_the_package_holds(tmp_path):
    random = np.random.default_rng(0)
    weights = [(30 * random.standard_normal((64, 16, 3, 3))).astype(np.int8) for _ in range(3)]
    weights[1] *= random.random(weights[1].shape) < 0.1
    scale, zero = np.float32(0.01), np.int8(0)
    nodes = [helper.make_node("GlobalAveragePool", ["input"], ["x"])]
    nodes += [
        helper.make_node("DequantizeLinear", [f"l{i}.codes", "scale", "zero"], [f"w{i}"])
        for i in range(3)
    ]
    nodes += [helper.make_node("Conv", ["input", f"w{i}"], [f"c{i}"]) for i in range(3)]
    nodes += [helper.make_node("Sum", ["c0", "c1", "c2"], ["s"])]
    nodes += [helper.make_node("Flatten", ["s"], ["logits"])]
    codes = {f"l{i}.codes": weight for i, weight in enumerate(weights)}
    path = write(tmp_path / "m.onnx", nodes, codes | {"scale": scale, "zero": zero}, 16, 4, 256)
    found = weight_bytes(path.read_bytes())
    size = pack(path, tmp_path / "m.pqd")
    header = (tmp_path / "m.pqd").read_bytes()
    coded = int.from_bytes(header[24:32], "little")  # bytes of the codes, see `pqd.package.format`
    assert list(found) == list(codes)
    assert 0 <= coded - sum(found.values()) <= 8  # what ends the stream
    assert found["l1.codes"] < found["l0.codes"] / 3
    rows = look(tmp_path / "m.onnx", runtimes=[], seconds=0)
    assert [row.package_bytes for row in rows.layers] == list(found.values())
    assert rows.bytes == size
    assert unpack_bytes(tmp_path / "m.pqd") == path.read_bytes()
