"""Targets that open other files than ONNX: written beside, shipped, measured, or one line."""

from dataclasses import asdict

import pytest

import configs
from pqd import pipeline
from pqd.config import (
    CacheConfig,
    DatasetConfig,
    RuntimeConfig,
    TargetConfig,
    TrainConfig,
)
from pqd.errors import UserError
from pqd.runtimes import REFERENCE, RUNTIMES
from pqd.scheme import Scheme
from pqd.sweep.waves import wanted


class Other(type(RUNTIMES[REFERENCE])):
    """The reference, with files of its own."""

    name, title, runs, scheme = "other", "Other Runtime", "pte", Scheme()
    refuses = False

    def write(self, network, model, shape, metadata):
        if self.refuses:
            raise ValueError("no such operator")
        model.with_suffix(".pte").write_bytes(model.read_bytes())
        return f"{model.name}: {shape}, {metadata['order']}"


@pytest.fixture
def other(monkeypatch):
    runtime = Other()
    monkeypatch.setitem(RUNTIMES, "other", runtime)
    return runtime


def config(tmp_path, targets):
    runtime = RuntimeConfig([REFERENCE, "other"], [1], min_calls=2, min_seconds=0.0, blocks=2)
    return configs.config(
        "pq",
        dataset=DatasetConfig("digits", "", train_limit=128),
        train=TrainConfig(batch_size=32),
        target=TargetConfig(targets),
        runtime=runtime,
        budget=1e-6,  # an epoch each
        cache=CacheConfig(True, str(tmp_path / "cache")),
    )


def run(tmp_path, targets):
    return asdict(pipeline.run(config(tmp_path, targets), tmp_path / "-".join(targets)))


def test_they_are_written_shipped_and_measured(other, tmp_path, caplog):
    record = run(tmp_path, ["other"])
    models = {"dense", "pruned", "model"}
    assert {f"{model}.pte" for model in models} <= set(record["files"])
    assert {f"{model}.onnx" for model in models} <= set(record["files"])
    final = record["final"]
    rows = [row["model"] for row in final["latency"] if row["runtime"] == "other"]
    assert rows == ["dense", "int8", "pruned"]
    assert final["accuracy_by_runtime"].keys() == {REFERENCE, "other"}
    assert final["agreement_by_runtime"]["other"] == final["agreement"]
    assert "dense.onnx: (1, 8, 8), none" in caplog.messages
    assert "model.onnx: (1, 8, 8), pq" in caplog.messages


def test_without_the_target_the_runtime_is_left_out(other, tmp_path, caplog):
    record = run(tmp_path, [REFERENCE])
    assert not [name for name in record["files"] if name.endswith(".pte")]
    assert {row["runtime"] for row in record["final"]["latency"]} == {REFERENCE}
    assert record["final"]["accuracy_by_runtime"].keys() == {REFERENCE}
    assert "runtime other needs .pte files, not ONNX files; left out" in caplog.messages
    assert "model.pte" in run(tmp_path, [REFERENCE, "other"])["files"]  # from the same stages


def test_what_it_refuses_the_others_still_get(other, tmp_path, caplog):
    other.refuses = True
    record = run(tmp_path, ["other"])
    assert record["status"] == "completed"
    assert record["warnings"] == ["no file for Other Runtime: its exporter refused the network"]
    line = "model is not written for Other Runtime: ValueError: no such operator"
    assert line in caplog.messages


def test_where_it_is_not_installed_a_line_says_so(other, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(other, "unavailable", lambda: "runtime other is not installed")
    record = run(tmp_path, ["other"])
    assert record["status"] == "completed"
    assert caplog.messages.count("runtime other is not installed; left out") == 1
    assert "model.pte" not in record["files"]


def test_a_sweep_makes_both_artifacts(other, tmp_path):
    usual, both = (wanted(config(tmp_path, t)) for t in ([REFERENCE], [REFERENCE, "other"]))
    assert usual[:3] == both[:3]  # baseline and stages
    assert not set(usual[3:]) & set(both[3:])  # exported baseline, artifact, figures


def test_a_budget_in_time_needs_onnx_files(other):
    from pqd.pruning.latency import Target

    with pytest.raises(UserError, match="needs a runtime of INT8 files first, onnxruntime or open"):
        Target(RuntimeConfig(names=["other"]))
