import json
import os

import numpy as np
import onnx
import pytest
import torch
from hydra import compose, initialize_config_dir
from onnx import helper
from torch import nn

from pqd import measure, runtimes, schema
from pqd.config import RuntimeConfig
from pqd.errors import UserError
from pqd.measure import files, graph, peak, protocol, quiet
from pqd.runtimes import base, onnx_runtime, torch_compiled
from tiny_onnx import float_network, int8_network, write

# The graph


def test_float_nodes_are_counted_in_the_graph_that_onnxruntime_runs(tmp_path):
    dense, int8 = float_network(tmp_path / "a.onnx"), int8_network(tmp_path / "b.onnx")
    runtime = runtimes.get("onnxruntime")
    assert runtime.float_compute_nodes(dense) == 4
    assert runtime.float_compute_nodes(int8) == 0
    assert "QGemm" in onnx_runtime.operations(int8)
    assert runtimes.get("torch").float_compute_nodes(nn.Identity()) is None


def test_float_nodes_are_counted_in_the_graph_that_openvino_runs(tmp_path):
    pytest.importorskip("openvino")
    dense, int8 = float_network(tmp_path / "a.onnx"), int8_network(tmp_path / "b.onnx")
    runtime = runtimes.get("openvino")
    assert runtime.float_compute_nodes(dense) >= 3  # an addition may be fused
    assert runtime.float_compute_nodes(int8) == 0


def test_macs_are_counted_from_shapes(tmp_path):
    dense, int8 = float_network(tmp_path / "a.onnx"), int8_network(tmp_path / "b.onnx")
    assert measure.macs(dense) == 16 * 8 * 9 + 16 * 8 * 8 * 9 + 2 * 128
    assert measure.macs(int8) == 2 * 16


def test_operators_of_a_runtime_need_no_import(tmp_path):
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["logits"]),
    ]
    weight = np.ones((2, 1, 3, 3), np.float32)
    model = write(tmp_path / "model.onnx", nodes, {"w": weight})
    network = onnx.load(model)
    network.graph.node[1].op_type, network.graph.node[1].domain = "QuickGelu", "com.microsoft"
    onnx.save(network, model)
    assert measure.macs(model) == 16 * 2 * 9
    settings = RuntimeConfig(["onnxruntime"], [1], min_calls=1, min_seconds=0, blocks=1)
    (row,) = measure.latency({"model": model}, settings, (1, 4, 4))
    assert row["macs"] == 16 * 2 * 9


def test_a_batch_size_of_minus_one_is_any(tmp_path):
    model = float_network(tmp_path / "model.onnx")
    network = onnx.load(model)
    network.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    onnx.save(network, model)
    assert graph.batch_size(model) is None
    assert measure.macs(model) == 16 * 8 * 9 + 16 * 8 * 8 * 9 + 2 * 128


def test_what_an_onnx_file_is(tmp_path):
    dense, int8 = float_network(tmp_path / "a.onnx"), int8_network(tmp_path / "b.onnx")
    assert (measure.is_quantized(dense), measure.is_quantized(int8)) == (False, True)
    assert graph.input_of(dense) == graph.Input((1, 4, 4))
    node = helper.make_node("GlobalMaxPool", ["input"], ["logits"])
    sizeless = write(tmp_path / "c.onnx", [node], {}, size="any")
    with pytest.raises(UserError, match="does not take images"):
        graph.input_of(sizeless)


# Runtimes


def test_runtimes_agree_on_predictions(tmp_path):
    model = int8_network(tmp_path / "model.onnx")
    random = np.random.default_rng(0)
    expected = random.integers(2, size=10)
    light = np.where(expected, 0.5, -0.5).reshape(10, 1, 1, 1)
    images = (light + 0.3 * random.random((10, 1, 4, 4))).astype(np.float32)
    for runtime in measure.available(["onnxruntime", "openvino"]):
        batches = (torch.from_numpy(batch) for batch in (images[:7], images[7:]))
        predicted = measure.predictions(model, batches, runtime, threads=1)
        assert predicted.dtype == np.int64
        assert predicted.tolist() == expected.tolist()
    assert measure.top1(predicted, torch.from_numpy(expected)) == 100.0
    assert measure.top1([0, 1, 1, 1], [0, 0, 0, 1]) == 50.0


def test_class_balanced_accuracy_is_scikit_learns():
    from sklearn.metrics import balanced_accuracy_score

    assert measure.balanced([0, 1, 1, 1], [0, 0, 0, 1]) == pytest.approx(100 * (1 / 3 + 1) / 2)
    random = np.random.RandomState(0)
    labels = torch.from_numpy(random.choice([0, 1, 5], 400, p=[0.8, 0.15, 0.05]))
    predicted = np.where(random.rand(400) < 0.5, labels, 5)
    expected = 100 * balanced_accuracy_score(labels, predicted)
    assert measure.balanced(predicted, labels) == pytest.approx(expected)


def test_missing_runtimes_are_named_and_left_out(monkeypatch, caplog, tmp_path):
    find = base.util.find_spec
    monkeypatch.setattr(
        base.util, "find_spec", lambda name: None if name == "openvino" else find(name)
    )
    names = ["onnxruntime", "openvino"]
    assert measure.available(names) == ["onnxruntime"]
    assert caplog.messages == ["runtime openvino is not installed (pip install openvino); left out"]
    models = {"dense": float_network(tmp_path / "a.onnx")}
    settings = RuntimeConfig(names=names, threads=[1], min_calls=2, min_seconds=0, blocks=1)
    rows = measure.latency(models, settings, (1, 4, 4))
    assert [row["runtime"] for row in rows] == ["onnxruntime"]
    with pytest.raises(UserError, match="pip install openvino"):
        measure.predictions(models["dense"], [], "openvino")
    with pytest.raises(UserError, match=r"choose from: .*onnxruntime, openvino"):
        measure.predictions(models["dense"], [], "onnxrt")


def test_compiled_torch_needs_a_compiler(monkeypatch):
    monkeypatch.setattr(torch_compiled.shutil, "which", lambda name: None)
    assert runtimes.get("torch_compiled").unavailable() == (
        "runtime torch_compiled needs a C++ compiler (g++), and none is installed"
    )
    assert runtimes.get("torch").unavailable() is None


def test_torch_runs_without_masks_and_restores_its_threads():
    class Half(nn.Module):
        def forward(self, weight):
            return weight / 2

    network = nn.Sequential(nn.Conv2d(1, 2, 4, bias=False), nn.Flatten())
    nn.utils.parametrize.register_parametrization(network[0], "weight", Half())
    images = np.ones((3, 1, 4, 4), np.float32)
    expected = network(torch.from_numpy(images)).detach()
    session = runtimes.get("torch").open(network, 1)
    torch.testing.assert_close(torch.from_numpy(session(images)), expected)
    torch.testing.assert_close(network(torch.from_numpy(images)), expected)  # as it was
    assert nn.utils.parametrize.is_parametrized(network[0])
    assert not nn.utils.parametrize.is_parametrized(session._network[0])
    before = torch.get_num_threads()
    with runtimes.get("torch").threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "torch", "all"])
def test_configurations_are_accepted(name):
    schema.register()
    folder = os.path.join(os.path.dirname(__file__), "..", "conf")
    with initialize_config_dir(os.path.abspath(folder), version_base="1.3"):
        config = compose("config", [f"runtime={name}"])
    runtime = schema.parse(config).runtime
    assert (runtime.threads, runtime.min_calls, runtime.min_seconds) == ([1, 0], 200, 3.0)
    assert set(runtime.names) <= set(runtimes.RUNTIMES)
    assert name in (*runtime.names, "all")


# Sizes and provenance


def test_sizes_are_those_of_the_files(tmp_path):
    from pqd.package import pack

    model, dense = int8_network(tmp_path / "m.onnx"), float_network(tmp_path / "d.onnx")
    package, checkpoint = tmp_path / "m.pqd", tmp_path / "w.safetensors"
    pack(model, package)
    checkpoint.write_bytes(bytes(1234))
    sizes = measure.sizes(model, package, dense, checkpoint)
    zstd = sizes.pop("int8_onnx_zstd")
    assert 0 < zstd < model.stat().st_size
    assert sizes == {
        "fp32_checkpoint": 1234,
        "fp32_onnx": dense.stat().st_size,
        "int8_onnx": model.stat().st_size,
        "package": package.stat().st_size,
        "floor": 4,  # 32 codes of two equally frequent values
    }
    pack(dense, package)
    assert list(files.sizes(dense, package, dense, checkpoint)) == [
        "fp32_checkpoint",
        "fp32_onnx",
        "package",
    ]


def test_provenance_names_the_conditions_and_measures_nothing(monkeypatch):
    monkeypatch.setattr(protocol, "interleave", None)
    monkeypatch.setattr(quiet, "one_at_a_time", None)
    found = measure.provenance()
    assert set(found) == {
        "cpu",
        "isa",
        "cores",
        "os",
        "python",
        "versions",
        "commit",
    }
    assert measure.machine().items() <= found.items()
    assert found["versions"]["onnxruntime"] == runtimes.get("onnxruntime").version()
    assert found["cores"] >= 1
    json.dumps(found)


def test_the_peak_is_that_of_a_correct_product():
    import onnxruntime

    weight = np.random.default_rng(0).integers(-64, 65, (8, 8), dtype=np.int8)
    left = np.random.default_rng(1).integers(256, size=(8, 8), dtype=np.uint8)
    session = onnxruntime.InferenceSession(peak.matrix_product(weight))
    (found,) = session.run(None, {"x": left})
    exact = (left.astype(np.int64) - 128) @ weight.astype(np.int64)
    np.testing.assert_array_equal(found, np.clip(np.rint(exact * 1e-4) + 128, 0, 255))
    assert found.dtype == np.uint8


def test_importing_measure_is_light():
    import subprocess
    import sys

    heavy = ("torch", "onnx", "onnxruntime", "openvino", "cpuinfo")
    code = f"import sys, pqd.measure, pqd.runtimes; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
