"""What other readers of an ONNX file ask of it."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

import odd_nets
from nets import PreActivation, Residual, images, traced
from pqd.constraints import attach as constrain
from pqd.constraints.quantization import FakeQuantization
from pqd.export.onnx_file import write_onnx
from pqd.runtimes import usable
from pqd.stages.quantize import calibrate


def quantized(kind):
    if issubclass(kind, odd_nets.Odd):
        model = odd_nets.trained(kind)
        batch = odd_nets.data(64, 1)[0]
    else:
        model, batch = traced(kind), images()
    constrain(model, FakeQuantization(127))
    calibrate(model, [batch])
    return model


KINDS = [Residual, PreActivation, odd_nets.Shuffle, odd_nets.Pads]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def path(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    write_onnx(quantized(request.param), path, (3, 8, 8), {"order": "q"})
    return path


class TestQuantized:
    def test_it_passes_the_full_check_and_strict_shape_inference(self, path):
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        shaped = {value.name for value in inferred.graph.value_info}
        assert {name for node in model.graph.node for name in node.output} <= shaped | {"logits"}

    def test_it_has_the_lowest_versions(self, path):
        model = onnx.load(path)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
        assert model.ir_version == 8  # ONNX Runtime 1.17 refuses 10

    def test_every_convolution_says_its_kernel(self, path):
        model = onnx.load(path)
        shapes = {
            value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in onnx.shape_inference.infer_shapes(model).graph.value_info
        }
        convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
        assert convolutions
        for node in convolutions:
            (kernel,) = (list(a.ints) for a in node.attribute if a.name == "kernel_shape")
            assert kernel == shapes[node.input[1]][2:]

    def test_every_quantizer_has_a_zero_point(self, path):
        graph = onnx.load(path).graph
        tensors = {tensor.name: tensor for tensor in graph.initializer}
        weights = []
        for node in graph.node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                _, scale, zero_point = node.input
                assert list(tensors[scale].dims) == list(tensors[zero_point].dims)
            if node.op_type == "DequantizeLinear" and node.input[0] in tensors:
                codes = tensors[node.input[0]]
                assert tensors[zero_point].data_type == codes.data_type
                assert not numpy_helper.to_array(tensors[zero_point]).any()
                if codes.data_type == TensorProto.INT8:
                    weights.append(zero_point)
        # ONNX Runtime's precise mode refuses zero points that weights share.
        assert len(weights) == len(set(weights))

    def test_the_batch_is_dynamic(self, path):
        model = onnx.load(path)
        dims = [
            value.type.tensor_type.shape.dim[0]
            for value in (*model.graph.input, *model.graph.output)
        ]
        assert [dim.dim_param for dim in dims] == ["batch", "batch"]
        session = usable("onnxruntime").open(path, 1)
        x = images(5).numpy()
        assert np.array_equal(session(x)[2:3], session(x[2:3]))


def test_onnxruntimes_precise_mode_opens_it(path):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    x = images(64).numpy()
    precise = session.run(None, {"input": x})[0]
    usual = usable("onnxruntime").open(path, 1)(x)
    assert (precise.argmax(1) == usual.argmax(1)).mean() >= 0.95


def test_onnxruntimes_converter_to_ort(path, tmp_path):
    model = tmp_path / "model.onnx"
    model.write_bytes(path.read_bytes())
    command = [sys.executable, "-m", "onnxruntime.tools.convert_onnx_models_to_ort", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    x = images(64).numpy()
    expected = usable("onnxruntime").open(model, 1)(x)
    for name in ("model.ort", "model.with_runtime_opt.ort"):
        found = usable("onnxruntime").open(tmp_path / name, 1)(x)
        assert np.array_equal(found.argmax(1), expected.argmax(1))


def test_a_float_network_has_the_lowest_versions_too(tmp_path):
    write_onnx(traced(Residual).eval(), tmp_path / "dense.onnx", (3, 8, 8), {})
    model = onnx.load(tmp_path / "dense.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 8
