"""Shared by all tests: one thread, and torchvision that imports on CPU builds of torch."""

import os

import pytest
import torch

import pqd.backbones._torchvision  # noqa: F401

os.environ["WANDB_MODE"] = "offline"


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)
