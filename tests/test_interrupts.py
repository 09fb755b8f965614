"""A signal that arrives where Python swallows exceptions still ends the run."""

import signal
import subprocess
import sys

import onnx
import pytest
import torch
from onnx import TensorProto, helper
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


AFTER_OPENVINO = """
import gc, signal
import numpy as np
from pqd import interrupts
from pqd.runtimes import get

interrupts.listen()
sessions = [get("openvino").open("relu.onnx", 1) for _ in range(2)]
for session in sessions:
    session(np.ones((1, 4), np.float32))
del session
while sessions:  # the older one goes first, as in a measurement
    del sessions[0]
    gc.collect()
try:
    signal.raise_signal(signal.SIGTERM)
except KeyboardInterrupt as error:
    print(error)
"""


def test_a_signal_arrives_after_openvino_has_run(tmp_path):
    pytest.importorskip("openvino")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "relu.onnx")
    line = [sys.executable, "-c", AFTER_OPENVINO]
    ended = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "stopped by SIGTERM\n"), ended.stderr
