import errno
import itertools
import logging
import math
import warnings
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from pqd import training
from pqd.config import TrainConfig
from pqd.data import Batch
from pqd.errors import UserError
from pqd.training import evaluate, fit, learning_rate, predict

TIMES = ("seconds", "images_per_s", "eta_s")


class Blobs:
    """64 noisy images of 4 classes; the order and the noise depend on the epoch's seed alone."""

    def __init__(self, batch_size=16):
        generator = torch.Generator().manual_seed(7)
        self.labels = torch.arange(64) % 4
        centres = torch.randn(4, 3, 8, 8, generator=generator)
        self.images = centres[self.labels] + torch.randn(64, 3, 8, 8, generator=generator)
        self.batch_size = batch_size

    def __len__(self):
        return 64 // self.batch_size

    def epoch(self, seed):
        generator = torch.Generator().manual_seed(seed)
        for rows in torch.randperm(64, generator=generator).split(self.batch_size):
            noise = 0.5 * torch.randn(len(rows), 3, 8, 8, generator=generator)
            images = (self.images[rows] + noise).contiguous(memory_format=torch.channels_last)
            yield Batch(images, self.labels[rows], rows)

    def all(self):
        return zip(self.images.split(24), self.labels.split(24), strict=True)


def network(dropout=0.1):
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(16, 4),
    )


class Mask(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight):
        return weight * self.mask


def loss_fn(model, batch):
    logits = model(batch.images)
    loss = F.cross_entropy(logits.float(), batch.labels)
    return {"loss": loss, "task_loss": loss, "logits": logits}


def settings(**changes):
    return TrainConfig(**{"device": "cpu", "precision": "fp32", "compile": "false"} | changes)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(model, epochs=4, loss=loss_fn, config=None, lr=0.2, **kwargs):
    blobs = Blobs()
    kwargs = {"validate": lambda m: evaluate(m, blobs.all()), "seed": 0} | kwargs
    return fit(model, blobs, loss, settings=config or settings(), epochs=epochs, lr=lr, **kwargs)


def untimed(history):
    return [{k: v for k, v in metrics.items() if k not in TIMES} for metrics in history]


def assert_same_state(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


# --- the golden curve guards refactorings: the same numbers from commit to commit ---------------

GOLDEN = [
    {"torch": "2.13.0", "capability": capability, "cpu": "AMD EPYC"}
    for capability in ("AVX2", "AVX512")
]
GOLDEN_LOSSES = [
    1.36923086643219,
    1.0183972716331482,
    0.6115989312529564,
    0.29141906648874283,
    0.22771073505282402,
    0.11718469485640526,
]


def machine():
    flags = getattr(torch.cpu, "get_capabilities", dict)()
    return {
        "torch": torch.__version__.partition("+")[0],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cpu": str(flags.get("cpu_name")),
    }


def test_golden_loss_curve():
    losses = [metrics["loss"] for metrics in train(network(), epochs=6)]
    if machine() in GOLDEN:
        assert losses == GOLDEN_LOSSES
    else:  # other kernels sum in another order
        assert losses == pytest.approx(GOLDEN_LOSSES, rel=1e-3)


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


# --- what fit promises -------------------------------------------------------------------------


def test_learns_and_reports_every_metric():
    reported = []
    history = train(network(0), epochs=8, on_epoch=reported.append)
    assert [metrics["epoch"] for metrics in history] == list(range(1, 9))
    assert history[-1].keys() == {
        *("epoch", "loss", "task_loss", "train_accuracy", "validation_accuracy"),
        *("lr", "images_per_s", "seconds"),
    }
    assert history[-1]["validation_accuracy"] > 90
    assert history[-1]["loss"] < history[0]["loss"] / 2
    assert all(metrics["loss"] == metrics["task_loss"] for metrics in history)
    assert [untimed([m]) for m in reported] == [untimed([m]) for m in history]
    assert reported[-1]["eta_s"] == 0
    assert reported[0]["eta_s"] == 7 * reported[0]["seconds"]


def test_without_validation_there_is_no_validation_accuracy():
    assert "validation_accuracy" not in train(network(), epochs=1, validate=None)[0]


def test_same_seed_same_network_other_seed_other_network():
    one, two, other = network(), network(), network()
    assert untimed(train(one, epochs=2)) == untimed(train(two, epochs=2))
    assert_same_state(one, two)
    train(other, epochs=2, seed=1)
    assert not torch.equal(one[0].weight, other[0].weight)


def test_metrics_are_means_over_the_images_of_the_epoch():
    model, seen = network(0), []

    def recording(model, batch):
        parts = loss_fn(model, batch)
        hits = (parts["logits"].argmax(1) == batch.labels).double().mean()
        seen.append((parts["loss"].item(), 100 * hits.item()))
        return parts

    (metrics,) = train(model, epochs=1, loss=recording)
    means = torch.tensor(seen, dtype=torch.float64).mean(0)
    assert metrics["loss"] == pytest.approx(means[0].item(), rel=1e-12)
    assert metrics["train_accuracy"] == pytest.approx(means[1].item(), rel=1e-6)


def test_hooks_see_training_mode_once_and_every_step_in_order():
    model, steps, modes = network(), [], []

    def before_step(step):
        steps.append(step)
        modes.append(model[1].training)
        model[1].eval()  # as freezing batch-norm statistics does

    train(model, epochs=2, before_step=before_step)
    assert steps == list(range(8))
    assert modes == [True, False, False, False] * 2
    assert model[1].num_batches_tracked == 0
    assert model[4].num_batches_tracked == 8


def test_weight_decay_acts_on_weights_alone():
    class Scale(nn.Module):  # a quantizer's parameter
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, weight):
            return weight * (self.scale / self.scale.detach())

    model = network()
    parametrize.register_parametrization(model[0], "weight", Scale())
    groups = training.make_optimizer(model, settings()).param_groups
    assert [group["weight_decay"] for group in groups] == [5e-4, 0.0]
    assert [p.ndim for p in groups[0]["params"]] == [4, 4, 2]
    assert [p.ndim for p in groups[1]["params"]] == [0, 1, 1, 1, 1, 1]


def test_a_mask_over_a_weight_holds_through_training():
    model = network()
    mask = (torch.rand_like(model[3].weight) < 0.5).float()
    parametrize.register_parametrization(model[3], "weight", Mask(mask))
    train(model, epochs=2)
    assert torch.equal(model[3].weight == 0, mask == 0)


# --- the schedule ------------------------------------------------------------------------------


def test_learning_rate_rises_linearly_then_falls_as_a_cosine():
    rates = [learning_rate(step, 100, 0.4, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([0.04 * k for k in range(1, 11)])
    assert rates[10] == 0.4
    assert rates[55] == pytest.approx(0.2)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert 0 < rates[-1] < 1e-3 * 0.4


@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5, 0.99])
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_learning_rate_is_positive_and_at_most_the_peak(steps, warmup):
    rates = [learning_rate(step, steps, 0.1, warmup) for step in range(steps)]
    assert all(0 < rate <= 0.1 for rate in rates)
    assert max(rates) == pytest.approx(0.1)


# --- checkpoints -------------------------------------------------------------------------------


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


# --- evaluation --------------------------------------------------------------------------------


def test_evaluate_and_predict_see_every_image_in_order_and_in_float32():
    model = network()
    blobs = Blobs()
    model.train()
    accuracy = evaluate(model, blobs.all())
    predicted = predict(model, blobs.all())
    assert not model.training
    assert predicted.dtype == torch.int64
    assert torch.equal(predicted, model(blobs.images).argmax(1))
    assert accuracy == 100 * (predicted == blobs.labels).sum().item() / 64


# --- where the device is missing or the compiler fails -----------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_cuda_where_there_is_none_is_a_user_error():
    with pytest.raises(UserError, match=r"train\.device=cuda, but this machine has no CUDA device"):
        train(network(), config=settings(device="cuda"))


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
