"""Shared by all tests: one thread, Hydra's plugins, torchvision on CPU builds of torch."""

import os

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
