"""Shared by all tests: one thread, Hydra's plugins, torchvision on CPU builds of torch."""

import os
import threading
from pathlib import Path

import pytest
import torch
from hydra.core.plugins import Plugins

import pqd.backbones._torchvision  # noqa: F401

os.environ["WANDB_MODE"] = "offline"
# Looking for plugins, Hydra executes their modules again: classes that a test imported before
# would be others than their bases.
Plugins.instance()


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def own_wandb(tmp_path_factory):
    """No login, no settings and no folders but the tests' own; its service ends with the tests."""
    import wandb

    home = tmp_path_factory.mktemp("wandb-home")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        patch.setenv("NETRC", str(home / "netrc"))
        for name in ("CONFIG_DIR", "CACHE_DIR", "DATA_DIR"):
            patch.setenv(f"WANDB_{name}", str(home))
        wandb.teardown()
        yield
        wandb.teardown()


@pytest.fixture
def wandb_config(own_wandb, monkeypatch):
    """The configuration of a run that is logged; no run before it found W&B out of reach."""
    import wandb_runs
    from pqd.tracking import run

    monkeypatch.setattr(run, "_unreachable", threading.Event())
    return wandb_runs.config()


@pytest.fixture
def unmeasured(monkeypatch):
    """Leaves export and measurement out of whole runs."""
    from pqd import artifact, pipeline

    def touch(folder):
        (folder / artifact.DENSE_MODEL).write_text("")
        return {"dense_accuracy": 0.0, "accuracy": 0.0, "sparsity": 0.0}

    monkeypatch.setattr(artifact, "make_dense", lambda subject, folder: touch(folder))
    monkeypatch.setattr(artifact, "make", lambda subject, dense, folder: touch(folder))
    monkeypatch.setattr(artifact, "figures", lambda subject, dense, made, runtime: {})
    monkeypatch.setattr(pipeline, "stage_table", lambda found: found.name)
    monkeypatch.setattr(pipeline, "ending", lambda found, folder, told: [])


@pytest.fixture
def hydra(tmp_path, monkeypatch):
    """Hydra, with the configuration of train.py, in a folder of its own: no cache is there yet."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from pqd import schema

    monkeypatch.chdir(tmp_path)
    schema.register()
    conf = Path(__file__).resolve().parents[1] / "conf"
    with initialize_config_dir(str(conf), version_base="1.3"):
        yield GlobalHydra.instance().hydra
