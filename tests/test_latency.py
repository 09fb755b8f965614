"""Latencies: a row for every model, runtime and setting, and what is told of those that fail."""

import json

import numpy as np
import pytest
from torch import nn

from pqd import measure, runtimes
from pqd.config import RuntimeConfig
from pqd.measure import cpu, quiet, timings
from tiny_onnx import float_network, int8_network


def test_latency_has_a_row_for_every_model_and_setting(tmp_path, monkeypatch):
    monkeypatch.setattr(timings, "int8_peak_gops", lambda threads: 100.0)
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
    assert rows.int8_peak_gops == 100.0
    json.dumps(rows)


class Toy(runtimes.Runtime):
    """A runtime of a test's own: multiplies images by a number and is timed like any other."""

    name, title, package = "toy", "Toy Runtime", "numpy"
    error = None

    def __init__(self):
        self.opened = []

    def open(self, model, threads):
        if self.error:
            raise self.error
        self.opened.append((model.name, threads))
        return self

    def bind(self, images):
        return lambda: self(images)

    def __call__(self, images):
        return images.reshape(len(images), -1)[:, :2] * 3

    def float_compute_nodes(self, model):
        return 7


def test_a_runtime_is_registered_from_outside(tmp_path, monkeypatch):
    monkeypatch.setattr(runtimes.base, "RUNTIMES", registry := dict(runtimes.RUNTIMES))
    runtimes.register(toy := Toy())
    assert registry["toy"] is runtimes.get("toy") is toy
    models = {"dense": float_network(tmp_path / "a.onnx"), "fp32": tmp_path / "a.onnx"}
    settings = RuntimeConfig(["toy"], [1], min_calls=6, min_seconds=0, blocks=3)
    rows = measure.latency(models, settings, (1, 4, 4))
    assert [(r["runtime"], r["model"]) for r in rows] == [("toy", "dense"), ("toy", "fp32")]
    assert {(r["version"], r["float_compute_nodes"]) for r in rows} == {(np.__version__, 7)}
    assert toy.opened == [("a.onnx", 1)] * 6  # anew in every block
    assert rows.int8_peak_gops is None
    images = np.array([[2, 1], [0, 1]], np.float32).reshape(2, 1, 1, 2)
    assert measure.predictions(models["dense"], [images], "toy").tolist() == [0, 1]


def test_a_network_without_an_onnx_file_is_measured(tmp_path):
    settings = RuntimeConfig(["torch"], [1], min_calls=2, min_seconds=0.0, blocks=2)
    networks = {"dense": nn.Sequential(nn.Conv2d(1, 2, 4), nn.Flatten())}
    rows = measure.latency(
        {"int8": int8_network(tmp_path / "a.onnx")}, settings, (1, 4, 4), networks
    )
    assert [(row["model"], row["macs"]) for row in rows] == [("dense", None)]
    assert rows.failed == {}


def test_torch_without_networks_is_left_out(tmp_path, caplog):
    models = {"dense": float_network(tmp_path / "a.onnx")}
    settings = RuntimeConfig(names=["torch"], threads=[1])
    rows = measure.latency(models, settings, (1, 4, 4))
    reason = "runtime torch needs the networks themselves, not ONNX files"
    assert (rows, rows.failed, rows.left_out) == ([], {}, {"torch": reason})
    assert caplog.messages == [f"{reason}; left out"]


def test_rows_measured_before_a_failure_are_kept(tmp_path, monkeypatch):
    class Small(Toy):
        def bind(self, images):
            if len(images) > 2:
                raise MemoryError("3 images are too many")
            return super().bind(images)

    monkeypatch.setitem(runtimes.RUNTIMES, "toy", Small())
    settings = RuntimeConfig(["toy"], [1], [2, 3], min_calls=2, min_seconds=0, blocks=1)
    rows = measure.latency({"dense": float_network(tmp_path / "a.onnx")}, settings, (1, 4, 4))
    assert [row["batch_size"] for row in rows] == [2]
    assert rows.failed == {"toy": "MemoryError: 3 images are too many"}


@pytest.mark.parametrize(
    ("seed", "folder", "reason"),
    [
        (-1, ".", "ValueError: expected non-negative integer"),
        (0, "a.onnx/x", "a.onnx/x cannot be locked: Not a directory"),
    ],
)
def test_what_fails_for_the_moment_is_told(tmp_path, monkeypatch, seed, folder, reason):
    monkeypatch.setattr(quiet.tempfile, "gettempdir", lambda: str(tmp_path / folder))
    settings = RuntimeConfig(["toy"], [1], min_calls=2, min_seconds=0, blocks=1, seed=seed)
    monkeypatch.setitem(runtimes.RUNTIMES, "toy", Toy())
    rows = measure.latency({"dense": float_network(tmp_path / "a.onnx")}, settings, (1, 4, 4))
    assert rows == []
    assert reason in rows.failed["toy"]


def test_a_runtime_that_fails_says_why(tmp_path, monkeypatch, caplog):
    toy = Toy()
    toy.error = RuntimeError("no such instruction")
    monkeypatch.setitem(runtimes.RUNTIMES, "toy", toy)
    models = {"dense": float_network(tmp_path / "a.onnx")}
    settings = RuntimeConfig(["toy", "onnxruntime"], [1], min_calls=2, min_seconds=0, blocks=1)
    rows = measure.latency(models, settings, (1, 4, 4))
    assert [row["runtime"] for row in rows] == ["onnxruntime"]
    reason = "RuntimeError: no such instruction"
    assert rows.failed == {"toy": reason}
    assert rows.left_out == {}
    assert caplog.messages == [f"runtime toy failed: {reason}"]


@pytest.mark.parametrize(("share", "noisy"), [(0.04, False), (0.06, True), (None, False)])
def test_rows_say_what_others_took(tmp_path, monkeypatch, share, noisy):
    monkeypatch.setattr(timings, "measure", lambda *_: ({"dense": [np.full(5, 2.0)] * 6}, share))
    models = {"dense": float_network(tmp_path / "a.onnx")}
    (row,) = measure.latency(models, RuntimeConfig(["onnxruntime"], [1]), (1, 4, 4))
    assert (row["others_share"], row["noisy"]) == (share, noisy)
    assert row["macs"] == measure.macs(models["dense"])
    assert row["cpus"] == cpu.cores()[:1]
