"""W&B: what a run and a sweep leave behind, read back with wandb's own reader."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb
from hydra.core.hydra_config import HydraConfig

from pqd import result, tracking
from pqd.config import LoggerConfig
from pqd.report.load import load
from pqd.report.view import view
from wandb_reader import read
from wandb_runs import FakeRun, completed, config, epochs, log


def test_run_holds_config_curves_figures_and_files(wandb_config, tmp_path, capfd):
    sweep = tmp_path / "2026-11-22_08-00-00"
    folder = sweep / "0_resnet20_digits_pqd_seed3"
    folder.mkdir(parents=True)
    (sweep / "multirun.yaml").touch()
    for name in ("model.onnx", "model.pqd", "result.json"):
        (folder / name).write_text(name)

    with tracking.start(wandb_config, folder, "a name") as tracker:
        for metrics in epochs([1, 2], eta_s=9.0):
            tracker.epoch("prune", metrics, 200)
        tracker.finish(completed(), sorted(folder.glob("*.*")))

    found = read(folder)
    assert found.run["display_name"] == "a name"
    assert found.run["project"] == "pqd"
    assert found.run["run_group"] == sweep.name
    assert found.run["job_type"] == "compress"
    assert found.run["tags"] == ["pqd", "resnet20", "digits", "seed3"]
    assert found.config["order"] == {"name": "pqd"}
    assert found.config["prune"]["sparsity"] == 0.8
    assert found.metrics == {
        f"{stage}/*": f"{stage}/epoch" for stage in ("baseline", "prune", "quantize", "distill")
    }
    # What was logged while it was trained comes first, and no epoch is missing or there twice.
    assert found.history[0] == {
        "epoch": 201,
        "prune/epoch": 1,
        "prune/loss": 1,
        "prune/validation_accuracy": 91,
    }
    logged = [(k, v) for row in found.history for k, v in row.items() if k.endswith("/epoch")]
    assert sorted(logged) == [
        (f"{stage}/epoch", epoch)
        for stage in ("baseline", "distill", "prune", "quantize")
        for epoch in (1, 2)
    ]
    assert found.summary["final/accuracy"] == 98
    assert found.summary["final/package_bytes"] == 100
    assert found.summary["final/latency_ms_p50"] == 1
    assert found.summary["status"] == "completed"
    assert found.summary["distill/validation_accuracy"] == 92
    (artifact,) = found.artifacts
    assert (artifact["name"], artifact["type"]) == ("resnet20-digits", "model")
    assert set(artifact["aliases"]) == {"pqd", "pqd-seed3", "latest"}
    contents = artifact["manifest"]["contents"]
    assert {c["path"]: Path(c["local_path"]).parent for c in contents} == {
        name: folder.resolve() for name in ("model.onnx", "model.pqd", "result.json")
    }
    assert found.exit == 0
    assert capfd.readouterr() == ("", "")


def test_warnings_are_in_the_summary_and_tagged(wandb_config, tmp_path):
    found = completed()
    found.warnings = ["no VNNI"]
    log(wandb_config, tmp_path, found)
    records = read(tmp_path)
    assert records.summary["warnings"] == ["no VNNI"]
    assert records.run["tags"] == ["pqd", "resnet20", "digits", "seed3", "warnings"]


def test_the_configuration_holds_experiment_and_overrides(wandb_config, tmp_path, monkeypatch):
    overrides = SimpleNamespace(task=["experiment=demo", "seed=3"])
    hydra = SimpleNamespace(
        runtime=SimpleNamespace(choices={"experiment": "demo"}), overrides=overrides
    )
    given = {}
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra)
    monkeypatch.setattr(wandb, "init", lambda **job: given.update(job) or FakeRun())
    with tracking.start(wandb_config, tmp_path, "x"):
        pass
    assert given["config"]["experiment"] == "demo"
    assert given["config"]["overrides"] == ["experiment=demo", "seed=3"]


@pytest.mark.parametrize(
    ("options", "environment", "project", "entity", "tags"),
    [
        ({}, {}, "pqd", None, []),
        (
            {},
            {"WANDB_PROJECT": "theirs", "WANDB_ENTITY": "team", "WANDB_TAGS": "a, b,pqd"},
            "theirs",
            "team",
            ["a", "b"],
        ),
        (
            {"project": "pqd", "entity": "me", "tags": ["mine"]},
            {"WANDB_PROJECT": "theirs", "WANDB_ENTITY": "team", "WANDB_TAGS": "a"},
            "pqd",
            "me",
            ["mine"],
        ),
    ],
)
def test_wandbs_variables_count_where_no_option_says_else(
    wandb_config, tmp_path, monkeypatch, options, environment, project, entity, tags
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    wandb.teardown()  # it reads them when it starts
    wandb_config.logger = LoggerConfig("wandb", **options)
    log(wandb_config, tmp_path)
    run = read(tmp_path).run
    assert (run["project"], run.get("entity")) == (project, entity)
    assert run["tags"] == ["pqd", "resnet20", "digits", "seed3", *tags]


def test_run_that_fails_is_marked_and_its_next_attempt_goes_on_under_its_id(wandb_config, tmp_path):
    failed = completed()
    failed.status, failed.reason, failed.final = "failed", "disk full", None
    del failed.stages[1:]
    log(wandb_config, tmp_path, failed)
    first = read(tmp_path)
    assert (first.exit, first.summary["status"], first.summary["reason"]) == (
        1,
        "failed",
        "disk full",
    )
    assert "run_group" not in first.run
    assert first.artifacts == []

    with pytest.raises(KeyboardInterrupt), tracking.start(wandb_config, tmp_path, "x"):
        raise KeyboardInterrupt
    second = read(tmp_path)  # the only one there
    assert (second.run["run_id"], second.exit) == (first.run["run_id"], 1)

    log(wandb_config, tmp_path)
    third = read(tmp_path)
    assert (third.run["run_id"], third.exit) == (first.run["run_id"], 0)
    assert len(third.history) == 8


JOB = """
import pickle, sys
from pathlib import Path
from pqd import tracking
folder = Path(sys.argv[1])
config, result = pickle.loads((folder / "job").read_bytes())
with tracking.start(config, folder, "x") as tracker:
    tracker.finish(result, [])
"""


@pytest.mark.usefixtures("own_wandb")
def test_parallel_jobs_keep_their_config_and_summary(tmp_path):
    cloudpickle = pytest.importorskip("cloudpickle")
    jobs = {}
    for order in ("qdp", "dpq"):
        folder = tmp_path / order
        folder.mkdir()
        (folder / "job").write_bytes(cloudpickle.dumps((config(order), completed(order))))
        jobs[order] = subprocess.Popen([sys.executable, "-c", JOB, folder])
    assert [job.wait(60) for job in jobs.values()] == [0, 0]
    for order in jobs:
        found = read(tmp_path / order)
        assert found.config["order"]["name"] == order
        assert found.config["config_hash"] == f"{order}3"
        assert found.summary["final/accuracy"] == 98
        assert found.exit == 0


def test_sweep_leaves_one_summary_run_with_the_frontier(wandb_config, tmp_path):
    for order, accuracy in (("pqd", 98.0), ("qpd", 97.0)):
        (tmp_path / order).mkdir()
        result.write(tmp_path / order, completed(order, accuracy=accuracy))
    (tmp_path / "report.md").write_text("report")
    report = view(load([tmp_path]))
    told = tracking.log_sweep(wandb_config.logger, tmp_path, report)

    found = read(tmp_path)
    assert (found.run["job_type"], found.run["run_group"]) == ("sweep-summary", tmp_path.name)
    assert found.summary["verdict"] == report.verdict
    assert found.summary["jobs"] == 2
    (files,) = tmp_path.glob("wandb/*run-*/files")
    assert told.endswith(f"; upload with: wandb sync {files.parent}")
    table = json.loads((files / found.summary["frontier.path"]).read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    sizes = {row["order"]: row for row in rows if row["unit"] == "bytes"}
    assert (sizes["pqd"]["cost"], sizes["pqd"]["accuracy"]) == (100, 98)
    assert (sizes["pqd"]["dominated"], sizes["qpd"]["dominated"]) == (False, True)
    assert {row["measured_in"].split(",")[0] for row in rows} == {"", "ONNX Runtime"}
    plots = {key.removesuffix(".path") for key in found.summary if "accuracy_" in key}
    plots = {key for key in plots if found.summary.get(f"{key}._type") == "plotly-file"}
    assert plots == {"accuracy_size/1", "accuracy_latency/2", "accuracy_latency/3"}
    reports = [a for a in found.artifacts if a["type"] == "report"]
    assert [c["path"] for a in reports for c in a["manifest"]["contents"]] == ["report.md"]
