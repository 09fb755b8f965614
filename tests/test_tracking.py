"""W&B: what a run leaves behind, read back with wandb's own reader, and that it can do no harm."""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from configs import config as default_config
from pqd import result, tracking
from pqd.config import BackboneConfig, CacheConfig, DatasetConfig, LoggerConfig
from pqd.report.load import load
from pqd.report.view import view
from pqd.result import Final, Result
from pqd.tracking import run as tracking_run
from pqd.tracking.records import final_figures
from wandb_reader import read

cloudpickle = pytest.importorskip("cloudpickle")
wandb = pytest.importorskip("wandb")
CONF = Path(__file__).parents[1] / "conf"
pytestmark = pytest.mark.usefixtures("own_wandb")


@pytest.fixture(autouse=True)
def _reachable(monkeypatch):
    monkeypatch.setattr(tracking_run, "_unreachable", threading.Event())


def make_config(order="pqd"):
    return default_config(
        order,
        seed=3,
        backbone=BackboneConfig("resnet20", "resnet20"),
        dataset=DatasetConfig(name="digits", root="data"),
        logger=LoggerConfig(name="wandb"),
        cache=CacheConfig(dir="cache"),
    )


@pytest.fixture
def config():
    return make_config()


def latency(model, p50, threads=1):
    return {
        "runtime": "onnxruntime",
        "version": "1",
        "model": model,
        "threads": threads,
        "batch_size": 1,
        "p50_ms": p50,
        "p90_ms": p50 + 0.1,
        "p99_ms": p50 + 0.2,
        "p50_interval_ms": [p50, p50],
        "calls": 400,
        "speedup": 4.0 / p50,
        "speedup_interval": [1.0, 2.0],
        "noisy": False,
        "slower_than_dense": False,
    }


def epochs(count, **more):
    return [{"epoch": e, "loss": 1 / e, "validation_accuracy": 90.0 + e, **more} for e in count]


def completed(order="pqd", seed=3, accuracy=98.0):
    stages = {"p": "prune", "q": "quantize", "d": "distill"}
    trained = ["baseline", *(stages[letter] for letter in order)]
    content = {
        "schema": 2,
        "status": "completed",
        "reason": None,
        "name": f"resnet20_digits_{order}_s0.9_seed{seed}",
        "config_hash": f"{order}{seed}",
        "order": trained[1:],
        "config": {
            "seed": seed,
            "order": {"name": order},
            "backbone": {"name": "resnet20"},
            "dataset": {"name": "digits"},
            "prune": {"sparsity": 0.9},
        },
        "stages": [
            {
                "stage": stage,
                "key": f"{stage}{seed}",
                "cached": stage == "baseline",
                "epochs": 2,
                "seconds": 1.0,
                "loss": 0.5,
                "validation_accuracy": 92.0,
                "sparsity": 0.0,
                "history": epochs([1, 2]),
            }
            for stage in trained
        ],
        "final": {
            "accuracy": accuracy,
            "network_accuracy": accuracy,
            "agreement": 100.0,
            "dense_accuracy": 98.6,
            "sparsity": 0.9,
            "parameters": 272474,
            "macs": 40810000,
            "sizes": {"fp32_onnx": 900, "int8_onnx": 300, "package": 100, "floor": 80},
            "latency": [latency("dense", 4.0), latency("int8", 1.0), latency("int8", 0.7, 0)],
            "accuracy_by_runtime": {"onnxruntime": accuracy},
        },
        "provenance": {"cpu": "AMD EPYC", "cores": 2, "started": "2026-11-22T08:00:00+00:00"},
        "files": {},
    }
    return result.decode(Result, content, "completed")


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.name == tracking_run.__name__]


def test_run_holds_config_curves_figures_and_files(config, tmp_path, capfd):
    sweep = tmp_path / "2026-11-22_08-00-00"
    folder = sweep / "0_resnet20_digits_pqd_seed3"
    folder.mkdir(parents=True)
    (sweep / "multirun.yaml").touch()
    for name in ("model.onnx", "model.pqd", "result.json"):
        (folder / name).write_text(name)

    with tracking.start(config, folder, "a name") as tracker:
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


def test_epochs_are_counted_over_all_stages_too(config, tmp_path, monkeypatch):
    run = FakeRun()
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    with tracking.start(config, tmp_path, "x") as tracker:
        tracker.finish(completed(), [])
    stages = ("baseline", "prune", "quantize", "distill")
    assert [(row["epoch"], *list(row)[:1]) for row in run.logged] == [
        (2 * before + epoch, f"{stage}/epoch")
        for before, stage in enumerate(stages)
        for epoch in (1, 2)
    ]
    assert run.summary["epoch"] == 8


def test_warnings_are_in_the_summary_and_tagged(config, tmp_path):
    found = completed()
    found.warnings = ["no VNNI"]
    with tracking.start(config, tmp_path, "x") as tracker:
        tracker.finish(found, [])
    records = read(tmp_path)
    assert records.summary["warnings"] == ["no VNNI"]
    assert records.run["tags"] == ["pqd", "resnet20", "digits", "seed3", "warnings"]


def test_the_configuration_holds_experiment_and_overrides(config, tmp_path, monkeypatch):
    overrides = SimpleNamespace(task=["experiment=demo", "seed=3"])
    hydra = SimpleNamespace(
        runtime=SimpleNamespace(choices={"experiment": "demo"}), overrides=overrides
    )
    given = {}
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra)
    monkeypatch.setattr(wandb, "init", lambda **job: given.update(job) or FakeRun())
    with tracking.start(config, tmp_path, "x"):
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
    config, tmp_path, monkeypatch, options, environment, project, entity, tags
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    wandb.teardown()  # it reads them when it starts
    config.logger = LoggerConfig("wandb", **options)
    with tracking.start(config, tmp_path, "x") as tracker:
        tracker.finish(completed(), [])
    run = read(tmp_path).run
    assert (run["project"], run.get("entity")) == (project, entity)
    assert run["tags"] == ["pqd", "resnet20", "digits", "seed3", *tags]


def test_a_closed_run_tells_where_it_is(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def told():
        with tracking.start(config, tmp_path / "a run", "x") as tracker:
            tracker.finish(completed(), [])
        return tracker.told

    (line, *_) = told(), wandb.teardown()
    (path,) = Path("a run/wandb").glob("offline-run-*")
    assert line == (
        f"W&B: offline, not logged in (`wandb login`); upload with: wandb sync '{path}'"
    )
    monkeypatch.setattr(wandb, "init", lambda **_: FakeRun())
    sync = "upload with: wandb sync /runs/x/wandb/offline-run-1"
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    assert told() == "W&B: https://wandb.ai/me/pqd/runs/1"
    config.logger.mode = "offline"
    assert told() == f"W&B: offline, as logger.mode says; {sync}"
    tracking_run._unreachable.set()
    config.logger.mode = "online"
    assert told() == f"W&B: offline, it could not be reached; {sync}"
    monkeypatch.setattr(wandb, "init", broken)
    assert told() is None


def test_figures_have_stable_names():
    figures = final_figures(completed().final)
    expected = {
        "final/accuracy": 98.0,
        "final/network_accuracy": 98.0,
        "final/agreement": 100.0,
        "final/dense_accuracy": 98.6,
        "final/sparsity": 0.9,
        "final/sparsity_percent": 90.0,
        "final/parameters": 272474,
        "final/macs": 40810000,
        "final/fp32_onnx_bytes": 900,
        "final/int8_onnx_bytes": 300,
        "final/package_bytes": 100,
        "final/floor_bytes": 80,
        "final/accuracy/onnxruntime": 98.0,
        "final/latency_ms_p50": 1.0,
        "final/latency_ms_p90": 1.1,
        "final/latency_ms_p99": 1.2,
        "final/dense_latency_ms_p50": 4.0,
        "final/runtime": "ONNX Runtime",
        "final/speedup": 4.0,
        "final/latency_ms_p50_low": 1.0,
        "final/latency_ms_p50_high": 1.0,
        "final/speedup_low": 1.0,
        "final/speedup_high": 2.0,
        "final/noisy": False,
        "final/slower_than_dense": False,
        "final/latency_ms_p50/dense_onnxruntime_threads1_batch1": 4.0,
        "final/latency_ms_p50/int8_onnxruntime_threads1_batch1": 1.0,
        "final/latency_ms_p50/int8_onnxruntime_threads0_batch1": 0.7,
    }
    assert figures == expected
    smallest = Final(dense_accuracy=98.5, accuracy=97.5, sparsity=0.0)
    assert final_figures(smallest) == {
        "final/dense_accuracy": 98.5,
        "final/accuracy": 97.5,
        "final/sparsity": 0.0,
        "final/sparsity_percent": 0.0,
    }


def test_run_that_fails_is_marked_and_its_next_attempt_goes_on_under_its_id(config, tmp_path):
    failed = completed()
    failed.status, failed.reason, failed.final = "failed", "disk full", None
    del failed.stages[1:]
    with tracking.start(config, tmp_path, "x") as tracker:
        tracker.finish(failed, [])
    first = read(tmp_path)
    assert (first.exit, first.summary["status"], first.summary["reason"]) == (
        1,
        "failed",
        "disk full",
    )
    assert "run_group" not in first.run
    assert first.artifacts == []

    with pytest.raises(KeyboardInterrupt), tracking.start(config, tmp_path, "x"):
        raise KeyboardInterrupt
    second = read(tmp_path)  # the only one there
    assert (second.run["run_id"], second.exit) == (first.run["run_id"], 1)

    with tracking.start(config, tmp_path, "x") as tracker:
        tracker.finish(completed(), [])
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


def test_parallel_jobs_keep_their_config_and_summary(tmp_path):
    jobs = {}
    for order in ("qdp", "dpq"):
        folder = tmp_path / order
        folder.mkdir()
        (folder / "job").write_bytes(cloudpickle.dumps((make_config(order), completed(order))))
        jobs[order] = subprocess.Popen([sys.executable, "-c", JOB, folder])
    assert [job.wait(60) for job in jobs.values()] == [0, 0]
    for order in jobs:
        found = read(tmp_path / order)
        assert found.config["order"]["name"] == order
        assert found.config["config_hash"] == f"{order}3"
        assert found.summary["final/accuracy"] == 98
        assert found.exit == 0


def hang(*_, **__):
    threading.Event().wait()


def broken(*_, **__):
    raise OSError("no space left\non device.")


class FakeRun:
    """A run in which everything works."""

    resumed, tags = False, None
    url, dir = "https://wandb.ai/me/pqd/runs/1", "/runs/x/wandb/offline-run-1/files"

    def __init__(self, **_):
        self.config, self.summary, self.exit_codes, self.logged = {}, {}, [], []

    def define_metric(self, *_, **__): ...

    def log(self, values):
        self.logged.append(values)
        self.summary.update(values)

    def log_artifact(self, *_, **__): ...

    def finish(self, exit_code):
        self.exit_codes.append(exit_code)


@pytest.mark.parametrize(
    "call", ["init", "setup", "define_metric", "log", "log_artifact", "finish"]
)
@pytest.mark.parametrize("trouble", [broken, hang])
def test_trouble_is_one_warning(config, tmp_path, monkeypatch, caplog, call, trouble):
    run, ended = FakeRun(), []
    monkeypatch.setattr(tracking_run, "_end_service", lambda: ended.append(True))
    if trouble is hang:
        monkeypatch.setattr(tracking_run, "END_SECONDS", 0.1)
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    settings = SimpleNamespace(settings=SimpleNamespace(mode="offline"))
    monkeypatch.setattr(wandb, "setup", lambda _: settings)
    monkeypatch.setattr(wandb if call in ("init", "setup") else run, call, trouble)
    with tracking.start(config, tmp_path, "x") as tracker:
        tracker.epoch("prune", {"epoch": 1, "loss": 1.0}, 0)
        tracker.finish(completed(), [])
    reason = "no space left on device" if trouble is broken else "no answer within 0 s"
    assert warnings_of(caplog) == [f"W&B: {reason}. The run goes on without it."]
    assert ended == [True]
    assert tracking_run._unreachable.is_set() == (trouble is hang)  # and the next run does not wait
    if trouble is broken and call in ("log", "log_artifact"):
        assert run.exit_codes == [0]  # finished all the same


def test_service_that_hangs_is_ended_and_the_next_run_has_a_new_one(
    config, tmp_path, monkeypatch, caplog
):
    with tracking.start(config, tmp_path / "a", "a") as tracker:
        tracker.finish(completed(), [])
    service = wandb.setup()._connection._proc
    service._process.send_signal(signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(tracking_run, "END_SECONDS", 0.5)
        patch.setattr(tracking_run, "SHUTDOWN_SECONDS", 0.5)
        with tracking.start(config, tmp_path / "b", "b") as tracker:
            tracker.finish(completed(), [])
    assert warnings_of(caplog) == ["W&B: no answer within 0 s. The run goes on without it."]
    assert service.join() == -signal.SIGKILL
    with tracking.start(config, tmp_path / "c", "c") as tracker:
        tracker.finish(completed(), [])
    assert read(tmp_path / "c").exit == 0
    assert len(warnings_of(caplog)) == 1


def test_without_wandb_a_run_warns_once(config, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with tracking.start(config, tmp_path, "x") as tracker:
        tracker.epoch("prune", {"epoch": 1, "loss": 1.0}, 0)
        tracker.finish(completed(), [])
    (warning,) = warnings_of(caplog)
    assert warning.startswith("W&B: import of wandb halted")


def test_logger_none_does_nothing(config, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config.logger = OmegaConf.to_object(
        OmegaConf.merge(
            OmegaConf.structured(LoggerConfig), OmegaConf.load(CONF / "logger/none.yaml")
        )
    )
    with tracking.start(config, tmp_path, "x") as tracker:
        tracker.epoch("prune", {"epoch": 1, "loss": 1.0}, 0)
        tracker.finish(completed(), [])
    assert warnings_of(caplog) == []
    assert list(tmp_path.iterdir()) == []


def test_logger_wandb_is_auto():
    given = OmegaConf.load(CONF / "logger/wandb.yaml")
    assert OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(LoggerConfig), given)) == (
        LoggerConfig(name="wandb", project=None, entity=None, group=None, tags=[], mode="auto")
    )


@pytest.mark.parametrize(
    ("wanted", "environment", "logged_in", "mode"),
    [
        ("auto", "online", False, "offline"),
        ("auto", "online", True, "online"),
        ("auto", "offline", True, "offline"),
        ("auto", "disabled", True, "disabled"),
        ("offline", "online", True, "offline"),
        ("online", "offline", True, "online"),
        ("online", "online", False, "offline"),
    ],
)
def test_online_needs_a_login_and_never_asks(
    config, tmp_path, monkeypatch, caplog, wanted, environment, logged_in, mode
):
    asked = []

    def login(prompt, verify):
        asked.append((prompt, verify))
        return logged_in

    modes = []
    settings = SimpleNamespace(settings=SimpleNamespace(mode=environment))
    monkeypatch.setattr(wandb, "setup", lambda _: settings)
    monkeypatch.setattr(wandb, "login", login)
    monkeypatch.setattr(wandb, "init", lambda mode, **_: modes.append(mode) or FakeRun())
    config.logger.mode = wanted
    with tracking.start(config, tmp_path, "x") as tracker:
        tracker.finish(completed(), [])
    assert modes == [mode]
    assert set(asked) <= {(False, False)}
    assert len(warnings_of(caplog)) == (wanted == "online" and not logged_in)


def test_server_that_is_down_makes_this_and_the_next_runs_offline(
    config, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr(tracking_run, "INIT_SECONDS", 0.5)
    wandb.teardown()
    for name in ("a", "b"):
        with tracking.start(config, tmp_path / name, name) as tracker:
            tracker.finish(completed(), [])
        found = read(tmp_path / name)
        assert (found.exit, found.summary["final/accuracy"]) == (0, 98)
    (warning,) = warnings_of(caplog)
    assert warning.endswith("Logging offline; upload with `wandb sync`.")


def test_an_upload_that_takes_too_long_makes_the_next_runs_offline(
    config, tmp_path, monkeypatch, caplog
):
    def too_long(_):
        raise TimeoutError("Timed out finishing run.")

    runs, modes = [FakeRun(), FakeRun()], []
    runs[0].finish = too_long
    opened = iter(runs)
    monkeypatch.setattr(tracking_run, "_end_service", lambda: None)
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(wandb, "init", lambda mode, **_: modes.append(mode) or next(opened))
    config.logger.mode = "online"
    for name in ("a", "b"):
        with tracking.start(config, tmp_path / name, name) as tracker:
            tracker.finish(completed(), [])
    assert modes == ["online", "offline"]
    assert warnings_of(caplog) == ["W&B: Timed out finishing run. The run goes on without it."]


@pytest.mark.parametrize("resumed", [True, False], ids=["online", "offline"])
def test_a_stage_that_goes_on_is_whole_and_its_summary_is_its_last_epochs(
    config, tmp_path, monkeypatch, resumed
):
    """The run online has the baseline and an epoch of pruning; one offline begins anew."""
    run = FakeRun()
    run.resumed = resumed
    if resumed:
        run.summary |= {"baseline/epoch": 2, "prune/epoch": 1}
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    found = completed()
    found.stages[1].history = epochs([1, 2, 3])
    with tracking.start(config, tmp_path, "x") as tracker:
        tracker.epoch("prune", epochs([3])[0], 2)
        tracker.finish(found, [])
    logged = [(k, v) for row in run.logged for k, v in row.items() if k.endswith("/epoch")]
    earlier = [] if resumed else [("baseline/epoch", 1), ("baseline/epoch", 2), ("prune/epoch", 1)]
    assert sorted(logged) == sorted(
        [*earlier, ("prune/epoch", 2), ("prune/epoch", 3)]
        + [(f"{stage}/epoch", epoch) for stage in ("quantize", "distill") for epoch in (1, 2)]
    )
    assert (run.summary["prune/epoch"], run.summary["prune/loss"]) == (3, 1 / 3)


def test_sweep_leaves_one_summary_run_with_the_frontier(config, tmp_path):
    for order, accuracy in (("pqd", 98.0), ("qpd", 97.0)):
        (tmp_path / order).mkdir()
        result.write(tmp_path / order, completed(order, accuracy=accuracy))
    (tmp_path / "report.md").write_text("report")
    report = view(load([tmp_path]))
    told = tracking.log_sweep(config.logger, tmp_path, report)

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


def test_training_does_not_wait_for_wandb(config, tmp_path, monkeypatch):
    opened, run = threading.Event(), FakeRun()

    def init(**_):
        assert opened.wait(30)
        return run

    monkeypatch.setattr(wandb, "init", init)
    with tracking.start(config, tmp_path, "x") as tracker:
        tracker.epoch("prune", {"epoch": 1, "loss": 1.0}, 0)
        opened.set()  # only now can the run open
        tracker.finish(completed(), [])
    assert run.exit_codes == [0]
