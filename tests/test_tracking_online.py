"""W&B: when a run is online, and how one that is offline gets there."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb
from omegaconf import OmegaConf

from pqd.config import LoggerConfig
from pqd.tracking import run as tracking_run
from wandb_reader import read
from wandb_runs import FakeRun, broken, log, warnings_of

CONF = Path(__file__).parents[1] / "conf"


def test_a_closed_run_tells_where_it_is(wandb_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def told():
        return log(wandb_config, tmp_path / "a run").told

    (line, *_) = told(), wandb.teardown()
    (path,) = Path("a run/wandb").glob("offline-run-*")
    assert line == (
        f"W&B: offline, not logged in (`wandb login`); upload with: wandb sync '{path}'"
    )
    monkeypatch.setattr(wandb, "init", lambda **_: FakeRun())
    sync = "upload with: wandb sync /runs/x/wandb/offline-run-1"
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    assert told() == "W&B: https://wandb.ai/me/pqd/runs/1"
    wandb_config.logger.mode = "offline"
    assert told() == f"W&B: offline, as logger.mode says; {sync}"
    tracking_run._unreachable.set()
    wandb_config.logger.mode = "online"
    assert told() == f"W&B: offline, it could not be reached; {sync}"
    monkeypatch.setattr(wandb, "init", broken)
    assert told() is None


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
    wandb_config, tmp_path, monkeypatch, caplog, wanted, environment, logged_in, mode
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
    wandb_config.logger.mode = wanted
    log(wandb_config, tmp_path)
    assert modes == [mode]
    assert set(asked) <= {(False, False)}
    assert len(warnings_of(caplog)) == (wanted == "online" and not logged_in)


def test_server_that_is_down_makes_this_and_the_next_runs_offline(
    wandb_config, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr(tracking_run, "INIT_SECONDS", 0.5)
    wandb.teardown()
    for name in ("a", "b"):
        log(wandb_config, tmp_path / name)
        found = read(tmp_path / name)
        assert (found.exit, found.summary["final/accuracy"]) == (0, 98)
    (warning,) = warnings_of(caplog)
    assert warning.endswith("Logging offline; upload with `wandb sync`.")


def test_an_upload_that_takes_too_long_makes_the_next_runs_offline(
    wandb_config, tmp_path, monkeypatch, caplog
):
    def too_long(_):
        raise TimeoutError("Timed out finishing run.")

    runs, modes = [FakeRun(), FakeRun()], []
    runs[0].finish = too_long
    opened = iter(runs)
    monkeypatch.setattr(tracking_run, "_end_service", lambda: None)
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(wandb, "init", lambda mode, **_: modes.append(mode) or next(opened))
    wandb_config.logger.mode = "online"
    for name in ("a", "b"):
        log(wandb_config, tmp_path / name)
    assert modes == ["online", "offline"]
    assert warnings_of(caplog) == ["W&B: Timed out finishing run. The run goes on without it."]
