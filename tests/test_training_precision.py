"""Training in bfloat16 and compiled is that in float32 and eager, whose losses are golden."""

import warnings

import pytest
import torch
from torch.nn.utils import parametrize

from blobs import Mask, assert_same_state, network, settings, train, untimed
from golden import golden
from pqd.errors import UserError

GOLDEN_LOSSES = [
    1.36923086643219,
    1.0183972716331482,
    0.6115989312529564,
    0.29141906648874283,
    0.22771073505282402,
    0.11718469485640526,
]


def test_golden_loss_curve():
    losses = [metrics["loss"] for metrics in train(network(), epochs=6)]
    assert losses == golden(GOLDEN_LOSSES, rel=1e-3)


def test_bf16_stays_within_five_percent_of_the_golden_curve():
    losses = [m["loss"] for m in train(network(), epochs=6, config=settings(precision="bf16"))]
    assert losses == pytest.approx(GOLDEN_LOSSES, rel=5e-2)
    assert losses != GOLDEN_LOSSES


@pytest.mark.slow
def test_compiled_stays_within_a_thousandth_of_eager_and_never_goes_stale(caplog):
    def run(compile_):
        model = network(0)  # without dropout: the compiler draws other random numbers
        mask = Mask(torch.ones_like(model[3].weight))
        parametrize.register_parametrization(model[3], "weight", mask)

        def before_step(step):
            if step == 5:
                mask.mask.copy_(torch.arange(8).view(1, 8, 1, 1) % 2)
            model[1].train(step < 10)

        config = settings(compile=compile_)
        return model, train(model, config=config, before_step=before_step)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        compiled, history = run("true")
    eager, expected = run("false")
    assert not [r for r in caplog.records if r.name == "pqd.training"]
    losses = [metrics["loss"] for metrics in history]
    assert losses == pytest.approx([metrics["loss"] for metrics in expected], rel=1e-3)
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("half", ["forward", "backward"])
def test_a_compilation_failure_falls_back_to_eager_with_one_line(monkeypatch, caplog, half):
    def compile_(function, **_):
        def failing(*args):
            if half == "forward":
                raise RuntimeError("no compiler\nlong trace")
            parts = function(*args)
            return parts | {"loss": Fails.apply(parts["loss"])}

        return failing

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, loss):
            return loss.clone()

        @staticmethod
        def backward(ctx, grad):
            raise RuntimeError("no compiler\nlong trace")

    monkeypatch.setattr(torch, "compile", compile_)
    model, eager = network(0), network(0)
    history = train(model, config=settings(compile="true"))
    messages = ["torch.compile failed, training goes on in eager mode: no compiler"]
    assert caplog.messages == messages
    if half == "forward":
        assert untimed(history) == untimed(train(eager))
        assert_same_state(model, eager)


def test_an_error_of_the_loss_is_not_taken_for_the_compilers(monkeypatch):
    def broken(model, batch):
        raise UserError("the teacher is missing")

    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    with pytest.raises(UserError, match="the teacher is missing"):
        train(network(), loss=broken, config=settings(compile="true"))
