"""What the options for speed may change of masks, fake-quantizers and a teacher in one step."""

import warnings

import pytest

from configs import stage
from golden import golden
from nets import Batches, Residual, traced
from pqd.config import TrainConfig
from pqd.stages.teachers import frozen
from pqd.training import fit

GOLDEN_LOSSES = [0.3267151676118374, 0.23076505959033966, 0.25636203959584236]


def losses(**options):
    """Trains a pruned and quantized network towards a teacher; returns the loss of each epoch."""
    model, batches = traced(Residual), Batches(4, fixed=True)
    prune = stage("prune", batches, epochs=3, sparsity=0.5, schedule="oneshot")
    quantize = stage("quantize", batches, epochs=3, calibration_batches=2)
    for constraining in (prune, quantize):
        constraining.attach(model)
    distill = stage("distill", batches, epochs=3)
    distill.teacher = frozen(traced(Residual, seed=1))

    def before_step(step):
        prune.before_step(model, step)
        quantize.before_step(model, step)

    settings = {"device": "cpu", "precision": "fp32", "compile": "false"} | options
    history = fit(
        model,
        batches,
        distill.loss,
        settings=TrainConfig(**settings),
        epochs=3,
        lr=0.05,
        seed=0,
        validate=None,
        before_step=before_step,
    )
    return [metrics["loss"] for metrics in history]


def test_golden_losses():
    # Elsewhere a value between two codes may fall either way.
    assert losses() == golden(GOLDEN_LOSSES, rel=1e-2)


def test_bf16_stays_within_five_percent():
    found = losses(precision="bf16")
    assert found == pytest.approx(losses(), rel=5e-2)
    assert found != losses()


@pytest.mark.slow
def test_compiled_stays_within_a_hundredth(caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        found = losses(compile="true")
    assert not [r for r in caplog.records if r.name == "pqd.training"]
    assert found == pytest.approx(losses(), rel=1e-2)
