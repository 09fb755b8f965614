"""A training that is killed goes on as if it had not been, and one that fails loses nothing."""

import errno
import logging
import math
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from blobs import assert_same_state, loss_fn, network, train, untimed
from pqd.errors import UserError


class Killed(BaseException):
    pass


def killed_after(epochs):
    def on_epoch(metrics):
        if metrics["epoch"] == epochs:
            raise Killed

    return on_epoch


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole, half, resumed = network(), network(), network()
    path = tmp_path / "deep" / "stage.pt"
    history = train(whole)
    with pytest.raises(Killed):
        train(half, on_epoch=killed_after(2), checkpoint=path)
    steps = []
    again = train(resumed, checkpoint=path, before_step=steps.append)
    assert steps == list(range(8, 16))
    assert untimed(again) == untimed(history)
    assert_same_state(resumed, whole)
    assert [p.name for p in path.parent.iterdir()] == ["stage.pt"]

    finished = network()
    assert train(finished, checkpoint=path) == again  # nothing left to do
    assert_same_state(finished, whole)


def test_a_run_killed_within_an_epoch_resumes_at_that_epoch(tmp_path):
    def killer(step):
        if step == 10:
            raise KeyboardInterrupt

    whole, resumed = network(), network()
    train(whole)
    with pytest.raises(KeyboardInterrupt):
        train(network(), before_step=killer, checkpoint=tmp_path / "stage.pt")
    assert len(train(resumed, checkpoint=tmp_path / "stage.pt")) == 4
    assert_same_state(resumed, whole)


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "network", "run"])
def test_a_checkpoint_that_does_not_fit_is_ignored_with_one_line(tmp_path, caplog, damage):
    path = tmp_path / "stage.pt"
    if damage == "network":
        train(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), checkpoint=path)
    else:
        train(network(), checkpoint=path, seed=damage == "run")
    content = path.read_bytes()
    if damage in ("empty", "cut", "garbage"):
        damaged = {"empty": b"", "cut": content[: len(content) // 2], "garbage": b"x" * 999}
        path.write_bytes(damaged[damage])

    model, whole = network(), network()
    with caplog.at_level(logging.WARNING):
        history = train(model, checkpoint=path)
    assert len(caplog.messages) == 1
    assert "\n" not in caplog.messages[0]
    assert str(path) in caplog.messages[0]
    assert untimed(history) == untimed(train(whole))
    assert_same_state(model, whole)


def test_a_checkpoint_that_cannot_be_read_now_is_kept(tmp_path, monkeypatch):
    path = tmp_path / "stage.pt"
    train(network(), checkpoint=path)
    content = path.read_bytes()
    stale = OSError(errno.ESTALE, "Stale file handle")
    full = torch.OutOfMemoryError("CUDA out of memory")
    for owner, name, error, raised in (
        (Path, "read_bytes", stale, UserError),
        (torch, "load", full, torch.OutOfMemoryError),
    ):
        with monkeypatch.context() as now:
            now.setattr(owner, name, Mock(side_effect=error))
            with pytest.raises(raised):
                train(network(), checkpoint=path)
        assert path.read_bytes() == content


def test_an_unwritable_checkpoint_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the checkpoint .*stage\.pt"):
        train(network(), epochs=1, checkpoint=tmp_path / "file" / "stage.pt")


def test_divergence_names_epoch_and_rate_and_keeps_the_last_good_checkpoint(tmp_path):
    path = tmp_path / "stage.pt"
    broken = [False]

    def diverging(model, batch):
        parts = loss_fn(model, batch)
        return parts | {"loss": parts["loss"] * (math.nan if broken[0] else 1)}

    def before_step(step):
        broken[0] = step == 9

    with pytest.raises(UserError, match=r"loss became nan in epoch 3 of 4, at .* rate 0\.0") as e:
        train(network(), loss=diverging, before_step=before_step, checkpoint=path)
    assert "try lr=0.05 rather than 0.2" in str(e.value)
    assert len(torch.load(path, weights_only=True)["history"]) == 2
