"""A signal that arrives where Python swallows exceptions still ends the run."""

import signal
import sys

import pytest
import torch
from torch import nn

from pqd import interrupts
from pqd.config import TrainConfig
from pqd.data import Batch
from pqd.training import fit


class Batches:
    """One epoch of three batches; a destructor is interrupted before the second."""

    def __init__(self, sent):
        self.sent = sent

    def __len__(self):
        return 3

    def epoch(self, seed):
        for number in range(3):
            if number == 1:
                Doomed(self.sent)
            images = torch.randn(2, 1, 4, 4)
            yield Batch(images, torch.tensor([0, 1]), torch.arange(2))


class Doomed:
    def __init__(self, sent):
        self.sent = sent

    def __del__(self):
        signal.raise_signal(self.sent)


@pytest.mark.parametrize(
    ("sent", "reason"), [(signal.SIGTERM, ["stopped by SIGTERM"]), (signal.SIGINT, [])]
)
def test_the_next_step_is_not_taken(sent, reason, monkeypatch, capsys):
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # pytest's, put back at the end
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell's jobs may ignore
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    steps = []

    def loss(model, batch):
        logits = model(batch.images)
        return {"loss": logits.square().mean(), "logits": logits}

    interrupts.listen()
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            fit(
                model,
                Batches(sent),
                loss,
                settings=TrainConfig(batch_size=2, device="cpu", compile="false"),
                epochs=1,
                lr=0.1,
                seed=0,
                validate=None,
                before_step=steps.append,
            )
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
        interrupts._received.clear()
    assert list(caught.value.args) == reason
    assert steps == [0]
    assert capsys.readouterr().err == ""


def test_what_else_is_swallowed_is_printed(monkeypatch, capsys):
    class Broken:
        def __del__(self):
            raise ValueError("in a destructor")

    monkeypatch.setattr(interrupts, "_received", [signal.SIGINT])
    monkeypatch.setattr(sys, "unraisablehook", interrupts._unraisable)
    Broken()
    assert "ValueError: in a destructor" in capsys.readouterr().err
