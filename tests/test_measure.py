import json
import os
import platform

import numpy as np
import onnx
import pytest
import torch
from hydra import compose, initialize_config_dir
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

from pqd import measure
from pqd.config import RuntimeConfig, parse, register
from pqd.errors import UserError
from pqd.measure import bench, conditions, cpu, files, graph, peak, predict, runtimes, timings

QUICK = RuntimeConfig(threads=[1], min_calls=4, min_seconds=0.0, blocks=2)
METADATA = {
    "classes": ["dark", "light"],
    "mean": [0.5],
    "std": [0.5],
    "image_size": 4,
    "channels": 1,
    "backbone": "tiny",
    "order": "q",
}


def write(path, nodes, constants, channels=1, size=4, outputs=2, metadata=None):
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            "tiny",
            [
                helper.make_tensor_value_info(
                    "input", TensorProto.FLOAT, ["batch", channels, size, size]
                )
            ],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", outputs])],
            [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    for key, value in (metadata or {}).items():
        proto.metadata_props.add(key=f"pqd.{key}", value=json.dumps(value))
    onnx.checker.check_model(proto)
    onnx.save(proto, path)
    return path


def float_network(path):
    """Two convolutions, an addition and a Gemm on [B, 1, 4, 4]."""
    random = np.random.default_rng(0)
    weights = {
        "w1": random.standard_normal((8, 1, 3, 3), dtype=np.float32),
        "w2": random.standard_normal((8, 8, 3, 3), dtype=np.float32),
        "w3": random.standard_normal((2, 128), dtype=np.float32),
        "b3": np.zeros(2, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], pads=[1] * 4),
        helper.make_node("Sigmoid", ["c"], ["d"]),
        helper.make_node("Add", ["b", "d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["logits"], transB=1),
    ]
    return write(path, nodes, weights)


def int8_network(path, metadata=METADATA):
    """One quantized Gemm on [B, 1, 4, 4] that tells light from dark images."""
    codes = np.stack([np.full(16, -64), np.full(16, 64)]).astype(np.int8)
    constants = {
        "scale": np.float32(0.01),
        "zero": np.uint8(128),
        "codes": codes,
        "w_scale": np.full(2, 0.01, np.float32),
        "w_zero": np.zeros(2, np.int8),
        "bias": np.zeros(2, np.int32),
        "b_scale": np.full(2, 1e-4, np.float32),
        "out_scale": np.float32(0.1),
    }
    nodes = [
        helper.make_node("Flatten", ["input"], ["x"]),
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["codes", "w_scale", "w_zero"], ["w"], axis=0),
        helper.make_node("DequantizeLinear", ["bias", "b_scale"], ["b"], axis=0),
        helper.make_node("Gemm", ["xd", "w", "b"], ["y"], transB=1),
        helper.make_node("QuantizeLinear", ["y", "out_scale", "zero"], ["yq"]),
        helper.make_node("DequantizeLinear", ["yq", "out_scale", "zero"], ["logits"]),
    ]
    return write(path, nodes, constants, metadata=metadata)


@pytest.fixture(autouse=True)
def peak_is_not_measured(monkeypatch):
    for module in (timings, conditions):
        monkeypatch.setattr(module, "int8_peak_gops", lambda threads: 100.0)


# The graph


def test_float_nodes_are_counted_in_the_graph_that_onnxruntime_runs(tmp_path):
    dense, int8 = float_network(tmp_path / "a.onnx"), int8_network(tmp_path / "b.onnx")
    assert measure.float_compute_nodes(dense, "onnxruntime") == 4
    assert measure.float_compute_nodes(int8, "onnxruntime") == 0
    assert "QGemm" in graph.onnxruntime_graph(int8)
    assert measure.float_compute_nodes(dense, "torch") is None


def test_float_nodes_are_counted_in_the_graph_that_openvino_runs(tmp_path):
    pytest.importorskip("openvino")
    dense, int8 = float_network(tmp_path / "a.onnx"), int8_network(tmp_path / "b.onnx")
    assert measure.float_compute_nodes(dense, "openvino") >= 3  # an addition may be fused
    assert measure.float_compute_nodes(int8, "openvino") == 0


def test_macs_are_counted_from_shapes(tmp_path):
    dense, int8 = float_network(tmp_path / "a.onnx"), int8_network(tmp_path / "b.onnx")
    assert measure.macs(dense) == 16 * 8 * 9 + 16 * 8 * 8 * 9 + 2 * 128
    assert measure.macs(int8) == 2 * 16


def test_what_an_onnx_file_is(tmp_path):
    dense, int8 = float_network(tmp_path / "a.onnx"), int8_network(tmp_path / "b.onnx")
    assert (measure.is_quantized(dense), measure.is_quantized(int8)) == (False, True)
    assert graph.input_shape(dense) == (1, 4, 4)
    node = helper.make_node("GlobalMaxPool", ["input"], ["logits"])
    sizeless = write(tmp_path / "c.onnx", [node], {}, size="any")
    with pytest.raises(UserError, match="does not take images"):
        graph.input_shape(sizeless)


# The CPU


def fake_cpu(monkeypatch, architecture, info):
    monkeypatch.setattr(platform, "machine", lambda: architecture)
    monkeypatch.setattr(cpu, "cpuinfo", lambda: info)
    monkeypatch.setattr(cpu, "slow_cpuinfo", lambda: {"brand_raw": "slow", "flags": ["avx2"]})


def test_isa_is_read_in_the_kernels_spelling(monkeypatch):
    flags = "fpu avx2 avx512f avx512_vnni avx_vnni amx_int8"
    fake_cpu(monkeypatch, "x86_64", {"model name": "Fast", "flags": flags})
    assert cpu.cpu_name() == "Fast"
    assert cpu.isa() == ["avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8"]
    assert measure.has_vnni()
    fake_cpu(monkeypatch, "x86_64", {"flags": "fpu avx2"})
    assert (cpu.isa(), measure.has_vnni()) == (["avx2"], False)
    fake_cpu(monkeypatch, "aarch64", {"features": "fp asimd asimddp i8mm"})
    assert (cpu.isa(), measure.has_vnni()) == (["neon", "asimddp", "i8mm"], True)
    fake_cpu(monkeypatch, "AMD64", {})  # Windows: py-cpuinfo tells
    assert (cpu.cpu_name(), cpu.isa(), measure.has_vnni()) == ("slow", ["avx2"], False)


def test_thread_counts_are_distinct_and_fit_the_machine(monkeypatch, caplog):
    monkeypatch.setattr(cpu, "cores", lambda: [0, 2, 4, 6])
    assert cpu.thread_counts([1, 0]) == [1, 4]
    assert cpu.thread_counts([4, 0, 2]) == [2, 4]
    assert not caplog.records
    assert cpu.thread_counts([16, 1]) == [1, 4]
    assert "16 threads asked for, 4 cores usable" in caplog.text
    monkeypatch.setattr(cpu, "cores", lambda: [0])
    assert cpu.thread_counts([1, 0]) == [1]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_pinning_is_undone():
    before = os.sched_getaffinity(0)
    with cpu.pinned(1):
        assert os.sched_getaffinity(0) == {cpu.cores()[0]}
    assert os.sched_getaffinity(0) == before


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


def test_missing_runtimes_are_named_and_left_out(monkeypatch, caplog, tmp_path):
    find = runtimes.util.find_spec
    monkeypatch.setattr(
        runtimes.util, "find_spec", lambda name: None if name == "openvino" else find(name)
    )
    names = ["onnxruntime", "openvino"]
    assert measure.available(names) == ["onnxruntime"]
    assert caplog.messages == ["runtime openvino is not installed (pip install openvino); left out"]
    models = {"dense": float_network(tmp_path / "a.onnx")}
    settings = RuntimeConfig(names=names, threads=[1], min_calls=2, min_seconds=0, blocks=1)
    rows = measure.latency(models, settings, (1, 4, 4))
    assert [row["runtime"] for row in rows] == ["onnxruntime"]
    with pytest.raises(UserError, match="pip install openvino"):
        runtimes.open_session("openvino", models["dense"], 1)
    with pytest.raises(UserError, match="choose from: onnxruntime, openvino"):
        runtimes.open_session("onnxrt", models["dense"], 1)


def test_compiled_torch_needs_a_compiler(monkeypatch):
    monkeypatch.setattr(runtimes.shutil, "which", lambda name: None)
    assert "needs a C++ compiler" in str(runtimes.unavailable("torch_compiled"))
    assert runtimes.unavailable("torch") is None


def test_torch_runs_without_masks_and_restores_its_threads():
    class Half(nn.Module):
        def forward(self, weight):
            return weight / 2

    network = nn.Sequential(nn.Conv2d(1, 2, 4, bias=False), nn.Flatten())
    nn.utils.parametrize.register_parametrization(network[0], "weight", Half())
    images = np.ones((3, 1, 4, 4), np.float32)
    expected = network(torch.from_numpy(images)).detach()
    session = runtimes.Torch(network, 1)
    torch.testing.assert_close(torch.from_numpy(session(images)), expected)
    assert nn.utils.parametrize.is_parametrized(network[0])  # the caller's is as it was
    assert not nn.utils.parametrize.is_parametrized(session._model[0])
    before = torch.get_num_threads()
    with runtimes.torch_threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


# Latency


def test_latency_has_a_row_for_every_model_and_setting(tmp_path):
    dense, int8 = float_network(tmp_path / "a.onnx"), int8_network(tmp_path / "b.onnx")
    network = nn.Sequential(nn.Conv2d(1, 2, 4), nn.Flatten())
    settings = RuntimeConfig(
        names=["onnxruntime", "torch"],
        threads=[1, 1],
        batch_sizes=[1, 3],
        min_calls=4,
        min_seconds=0.0,
        blocks=2,
    )
    rows = measure.latency(
        {"dense": dense, "int8": int8}, settings, (1, 4, 4), {"dense": network, "int8": network}
    )
    seen = [(r["runtime"], r["model"], r["threads"], r["batch_size"]) for r in rows]
    assert seen == [
        ("onnxruntime", "dense", 1, 1),
        ("onnxruntime", "int8", 1, 1),
        ("onnxruntime", "dense", 1, 3),
        ("onnxruntime", "int8", 1, 3),
        ("torch", "dense", 1, 1),
        ("torch", "dense", 1, 3),
    ]
    assert [row["float_compute_nodes"] for row in rows] == [4, 0, 4, 0, None, None]
    assert [row["calls"] for row in rows] == [4] * 6
    assert [row["speedup"] for row in rows if row["model"] == "dense"] == [1.0] * 4
    for row in rows:
        low, high = row["p50_interval_ms"]
        assert low <= row["p50_ms"] <= high
        if row["model"] == "int8":
            gops = 2 * row["batch_size"] * 32 / (row["p50_ms"] * 1e6)
            assert row["int8_peak_share"] == pytest.approx(gops / 100.0)
        else:
            assert row["int8_peak_share"] is None
    json.dumps(rows)


def test_torch_without_networks_is_left_out(tmp_path, caplog):
    models = {"dense": float_network(tmp_path / "a.onnx")}
    settings = RuntimeConfig(names=["torch"], threads=[1])
    assert measure.latency(models, settings, (1, 4, 4)) == []
    assert "runtime torch needs the networks themselves" in caplog.text


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "torch", "all"])
def test_configurations_are_accepted(name):
    register()
    folder = os.path.join(os.path.dirname(__file__), "..", "conf")
    with initialize_config_dir(os.path.abspath(folder), version_base="1.3"):
        config = compose("config", [f"runtime={name}", "output_dir=x"])
    runtime = parse(config).runtime
    assert (runtime.threads, runtime.min_calls, runtime.min_seconds) == ([1, 0], 200, 3.0)
    assert set(runtime.names) <= set(runtimes.RUNTIMES)
    assert name in (*runtime.names, "all")


# Sizes and provenance


def test_sizes_are_those_of_the_files(tmp_path):
    from pqd.export.package import pack

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


def test_provenance_names_the_conditions():
    found = measure.provenance()
    assert set(found) == {
        "cpu",
        "isa",
        "cores",
        "os",
        "python",
        "versions",
        "commit",
        "int8_peak_gops",
    }
    assert measure.machine().items() <= found.items()
    assert found["versions"]["onnxruntime"] == runtimes.version("onnxruntime")
    assert found["cores"] >= 1
    assert found["int8_peak_gops"] == 100.0
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


# pqd bench and pqd predict


def test_bench_writes_a_record_beside_what_it_measures(tmp_path, monkeypatch, caplog):
    from pqd.export.package import pack

    monkeypatch.setattr(platform, "node", lambda: "edge box/1")
    run = tmp_path / "run"
    run.mkdir()
    int8_network(run / "model.onnx")
    float_network(run / "dense.onnx")
    pack(run / "model.onnx", tmp_path / "single.pqd")
    written = bench.bench([run, tmp_path / "single.pqd"], QUICK)
    assert written == [
        run / "bench-edge_box_1.json",
        tmp_path / "single.pqd.bench-edge_box_1.json",
    ]
    folder, single = (json.loads(path.read_text()) for path in written)
    assert set(folder) == {"schema", "provenance", "latency", "accuracy_by_runtime"}
    assert [row["model"] for row in folder["latency"]] == ["dense", "int8"]
    assert [row["model"] for row in single["latency"]] == ["int8"]
    assert single["latency"][0]["speedup"] is None
    assert folder["accuracy_by_runtime"] == {}
    assert "accuracy is not measured" in caplog.text


def test_bench_measures_accuracy_where_the_data_set_is(tmp_path):
    config = compose_dataset()
    int8_network(tmp_path / "model.onnx")
    assert bench._accuracies(tmp_path, QUICK) == {}
    digits = write(
        tmp_path / "model.onnx",
        [
            helper.make_node("Flatten", ["input"], ["x"]),
            helper.make_node("Gemm", ["x", "w"], ["logits"]),
        ],
        {"w": np.random.default_rng(0).standard_normal((64, 10)).astype(np.float32)},
        size=8,
        outputs=10,
    )
    (tmp_path / "result.json").write_text(json.dumps({"config": {"dataset": config}}))
    found = bench._accuracies(tmp_path, QUICK)
    assert digits.exists()
    assert list(found) == ["onnxruntime"]
    assert 0.0 < found["onnxruntime"] < 40.0  # random weights


def compose_dataset():
    from dataclasses import asdict

    from pqd.config import DatasetConfig

    return asdict(DatasetConfig(name="digits", root=""))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "not the folder of a completed run"),
        ("model.txt", "neither a run's folder nor an .onnx or .pqd file"),
        ("missing.onnx", "does not exist"),
    ],
)
def test_bench_refuses_before_it_measures(tmp_path, name, message):
    good = int8_network(tmp_path / "good.onnx")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        bench.bench([good, tmp_path / name], QUICK)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "good.onnx"]


def test_predict_names_the_class_of_images(tmp_path):
    from pqd.export.package import pack

    model, package = int8_network(tmp_path / "model.onnx"), tmp_path / "model.pqd"
    pack(model, package)
    dark, light = tmp_path / "dark.png", tmp_path / "light.jpg"
    Image.new("RGB", (9, 5), (10, 10, 10)).save(dark)
    Image.new("L", (4, 4), 250).save(light)
    found = predict.predict(model, [dark, light])
    assert [(path, name) for path, name, _ in found] == [(dark, "dark"), (light, "light")]
    # (10 / 255 - 0.5) / 0.5 is 92 steps of 0.01 below 0; times 16 weights of 0.64.
    logit = np.clip(np.rint(0.92 * 16 * 0.64 / 0.1), -128, 127) * 0.1
    assert found[0][2] == pytest.approx(1 / (1 + np.exp(-2 * logit)), rel=1e-6)
    assert predict.predict(package, [dark, light]) == found


def test_predict_says_what_is_wrong(tmp_path):
    model = int8_network(tmp_path / "model.onnx")
    text = tmp_path / "text.png"
    text.write_text("no image")
    foreign = int8_network(tmp_path / "foreign.onnx", metadata=None)
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"garbage" * 10)
    for bad in (foreign, garbage):
        with pytest.raises(UserError, match=r"is no model\.onnx or model\.pqd written by pqd"):
            predict.predict(bad, [text])
    with pytest.raises(UserError, match=r"missing\.onnx cannot be read"):
        predict.predict(tmp_path / "missing.onnx", [text])
    for image in (text, tmp_path / "missing.png"):
        with pytest.raises(UserError, match=f"{image.name} cannot be read as an image"):
            predict.predict(model, [image])


def test_importing_measure_is_light():
    import subprocess
    import sys

    heavy = ("torch", "onnx", "onnxruntime", "openvino", "cpuinfo")
    code = f"import sys, pqd.measure; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
