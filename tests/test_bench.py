"""`pqd bench`: what is measured where, and what is kept of it."""

import errno
import json
import platform
from dataclasses import asdict

import numpy as np
import pytest
from onnx import helper

from pqd import cli
from pqd.config import BackboneConfig, DatasetConfig, RuntimeConfig
from pqd.constraints import attach
from pqd.constraints.mask import Masks, masks
from pqd.data import load_dataset
from pqd.errors import UserError
from pqd.measure import bench, images, timings
from pqd.networks import Blueprint, save_network
from pqd.package import pack
from tiny_onnx import QUICK, float_network, int8_network, write


def test_bench_writes_a_record_beside_what_it_measures(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(timings, "int8_peak_gops", lambda threads: 100.0)
    monkeypatch.setattr(platform, "node", lambda: "edge box/1")
    run = tmp_path / "run"
    run.mkdir()
    int8_network(run / "model.onnx")
    float_network(run / "dense.onnx")
    pack(run / "model.onnx", tmp_path / "single.pqd")
    written = list(bench.bench([run, tmp_path / "single.pqd"], QUICK))
    assert written == [
        run / "bench-edge_box_1.json",
        tmp_path / "single.pqd.bench-edge_box_1.json",
    ]
    folder, single = (json.loads(path.read_text()) for path in written)
    assert set(folder) == {
        "schema",
        "provenance",
        "latency",
        "failed",
        "accuracy_by_runtime",
    }
    assert folder["failed"] == {}
    assert [row["model"] for row in folder["latency"]] == ["dense", "int8"]
    assert [row["model"] for row in single["latency"]] == ["int8"]
    assert single["latency"][0]["speedup"] is None
    assert folder["accuracy_by_runtime"] == {}
    assert folder["provenance"]["int8_peak_gops"] == 100.0  # the report reads it there
    assert folder["provenance"]["started"][:2] == "20"  # the later one counts in a report
    assert "accuracy is not measured" in caplog.text


def test_bench_measures_accuracy_where_the_data_set_is(tmp_path, caplog):
    config = asdict(DatasetConfig(name="digits", root=""))
    int8_network(tmp_path / "model.onnx")
    assert bench._accuracies(tmp_path, QUICK.names) == {}
    fingerprint = load_dataset(DatasetConfig(name="digits", root="")).fingerprint
    write(
        tmp_path / "model.onnx",
        [
            helper.make_node("Flatten", ["input"], ["x"]),
            helper.make_node("Gemm", ["x", "w"], ["logits"]),
        ],
        {"w": np.random.default_rng(0).standard_normal((64, 10)).astype(np.float32)},
        size=8,
        outputs=10,
    )
    record = {"config": {"dataset": config}, "final": {"dataset": fingerprint}}
    (tmp_path / "result.json").write_text(json.dumps(record))
    found = bench._accuracies(tmp_path, QUICK.names)
    assert list(found) == ["onnxruntime"]
    assert 0.0 < found["onnxruntime"] < 40.0  # random weights
    record["final"]["dataset"] = "0" * 16
    (tmp_path / "result.json").write_text(json.dumps(record))
    assert bench._accuracies(tmp_path, QUICK.names) == {}
    assert "the images found are not those of the run" in caplog.text


def test_bench_looks_for_images_where_this_machine_has_them(tmp_path, monkeypatch):
    given = asdict(DatasetConfig(name="cifar10", root="/data/of/another/machine"))
    monkeypatch.delenv("PQD_DATA", raising=False)
    with pytest.raises(UserError, match="there is no folder /data/of/another/machine"):
        images._config(given)  # and nothing is downloaded
    monkeypatch.setenv("PQD_DATA", str(tmp_path))
    assert images._config(given).root == str(tmp_path)


@pytest.mark.parametrize(("files", "name"), [(["pruned", "int8"], "pruned"), (["fp32"], "fp32")])
def test_torch_measures_the_dense_and_the_compressed_network(tmp_path, files, name):
    subject = bench.Subject(tmp_path, {file: tmp_path / file for file in ["dense", *files]})
    blueprint = Blueprint(BackboneConfig("resnet8", "resnet8"), 10, 1, 8)
    model = blueprint.build()
    save_network(model, blueprint, tmp_path)
    runtime = RuntimeConfig(names=["torch"])
    assert list(bench._modules(subject, runtime)) == ["dense"]
    attach(model, Masks(["conv1"]))
    masks(model)["conv1"].mask.zero_()
    save_network(model, blueprint, tmp_path)
    found = bench._modules(subject, runtime)
    assert list(found) == ["dense", name]
    assert not found[name].conv1.weight.any()
    assert found["dense"].conv1.weight.all()
    assert bench._modules(subject, QUICK) == {}


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        (
            RuntimeConfig(["onnxrt"]),
            "choose from: executorch, onnxruntime, openvino, torch, torch_compiled",
        ),
        (RuntimeConfig(threads=[-1]), "at least 0"),
        (RuntimeConfig(batch_sizes=[0]), "at least 1"),
    ],
)
def test_bench_checks_what_to_measure_in(tmp_path, runtime, message):
    with pytest.raises(UserError, match=message):
        list(bench.bench([int8_network(tmp_path / "a.onnx")], runtime))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--runtime", "onnxrt"], "--runtime onnxrt is unknown (did you mean onnxruntime?)"),
        (["--threads", "-1"], "--threads -1 is too small; at least 0 is accepted"),
        (["--batch", "0"], "--batch 0 is too small; at least 1 is accepted"),
    ],
)
def test_the_command_names_its_flags(tmp_path, monkeypatch, capsys, flags, message):
    model = str(int8_network(tmp_path / "a.onnx"))
    monkeypatch.setattr("sys.argv", ["pqd", "bench", model, *flags])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith(f"pqd: {message}")


def test_bench_shows_what_it_cannot_write(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bench, "write_json", full)
    monkeypatch.setattr(platform, "node", lambda: "here")
    shown = {}
    with pytest.raises(UserError) as error:
        list(bench.bench([float_network(tmp_path / "a.onnx")], QUICK, shown.__setitem__))
    record = tmp_path / "a.onnx.bench-here.json"
    assert str(error.value) == f"cannot write {record}: No space left on device"
    assert [row["runtime"] for row in shown[tmp_path / "a.onnx"]] == ["onnxruntime"]
