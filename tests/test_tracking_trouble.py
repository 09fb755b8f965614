"""W&B can do no harm: neither trouble with it nor its absence stops a run."""

import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb
from omegaconf import OmegaConf

from pqd import tracking
from pqd.config import LoggerConfig
from pqd.tracking import run as tracking_run
from wandb_reader import read
from wandb_runs import FakeRun, broken, completed, hang, log, warnings_of

CONF = Path(__file__).parents[1] / "conf"


@pytest.mark.parametrize(
    "call", ["init", "setup", "define_metric", "log", "log_artifact", "finish"]
)
@pytest.mark.parametrize("trouble", [broken, hang])
def test_trouble_is_one_warning(wandb_config, tmp_path, monkeypatch, caplog, call, trouble):
    run, ended = FakeRun(), []
    monkeypatch.setattr(tracking_run, "_end_service", lambda: ended.append(True))
    if trouble is hang:
        monkeypatch.setattr(tracking_run, "END_SECONDS", 0.1)
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    settings = SimpleNamespace(settings=SimpleNamespace(mode="offline"))
    monkeypatch.setattr(wandb, "setup", lambda _: settings)
    monkeypatch.setattr(wandb if call in ("init", "setup") else run, call, trouble)
    with tracking.start(wandb_config, tmp_path, "x") as tracker:
        tracker.epoch("prune", {"epoch": 1, "loss": 1.0}, 0)
        tracker.finish(completed(), [])
    reason = "no space left on device" if trouble is broken else "no answer within 0 s"
    assert warnings_of(caplog) == [f"W&B: {reason}. The run goes on without it."]
    assert ended == [True]
    assert tracking_run._unreachable.is_set() == (trouble is hang)  # and the next run does not wait
    if trouble is broken and call in ("log", "log_artifact"):
        assert run.exit_codes == [0]  # finished all the same


def test_service_that_hangs_is_ended_and_the_next_run_has_a_new_one(
    wandb_config, tmp_path, monkeypatch, caplog
):
    log(wandb_config, tmp_path / "a")
    service = wandb.setup()._connection._proc
    service._process.send_signal(signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(tracking_run, "END_SECONDS", 0.5)
        patch.setattr(tracking_run, "SHUTDOWN_SECONDS", 0.5)
        log(wandb_config, tmp_path / "b")
    assert warnings_of(caplog) == ["W&B: no answer within 0 s. The run goes on without it."]
    assert service.join() == -signal.SIGKILL
    log(wandb_config, tmp_path / "c")
    assert read(tmp_path / "c").exit == 0
    assert len(warnings_of(caplog)) == 1


def test_without_wandb_a_run_warns_once(wandb_config, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with tracking.start(wandb_config, tmp_path, "x") as tracker:
        tracker.epoch("prune", {"epoch": 1, "loss": 1.0}, 0)
        tracker.finish(completed(), [])
    (warning,) = warnings_of(caplog)
    assert warning.startswith("W&B: import of wandb halted")


def test_logger_none_does_nothing(wandb_config, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    wandb_config.logger = OmegaConf.to_object(
        OmegaConf.merge(
            OmegaConf.structured(LoggerConfig), OmegaConf.load(CONF / "logger/none.yaml")
        )
    )
    with tracking.start(wandb_config, tmp_path, "x") as tracker:
        tracker.epoch("prune", {"epoch": 1, "loss": 1.0}, 0)
        tracker.finish(completed(), [])
    assert warnings_of(caplog) == []
    assert list(tmp_path.iterdir()) == []


def test_training_does_not_wait_for_wandb(wandb_config, tmp_path, monkeypatch):
    opened, run = threading.Event(), FakeRun()

    def init(**_):
        assert opened.wait(30)
        return run

    monkeypatch.setattr(wandb, "init", init)
    with tracking.start(wandb_config, tmp_path, "x") as tracker:
        tracker.epoch("prune", {"epoch": 1, "loss": 1.0}, 0)
        opened.set()  # only now can the run open
        tracker.finish(completed(), [])
    assert run.exit_codes == [0]
