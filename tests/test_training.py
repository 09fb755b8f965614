"""What `fit` promises: metrics, seeds, hooks, its learning rate and its optimizer."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from blobs import Blobs, Mask, assert_same_state, loss_fn, network, settings, train, untimed
from pqd import training
from pqd.errors import UserError
from pqd.training import evaluate, learning_rate, predict


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


def test_what_is_done_before_a_step_is_no_time_of_an_epochs(monkeypatch):
    now = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: next(now) + waited[0])
    waited, reported = [0], []
    monkeypatch.setattr(training, "time", clock)

    def before_step(step):
        waited[0] += 1000 if step == 0 else 0

    train(network(), epochs=2, before_step=before_step, on_epoch=reported.append)
    first, second = reported
    assert first["seconds"] == second["seconds"] + 1000
    assert first["images_per_s"] == second["images_per_s"]
    assert first["eta_s"] < 1000


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_cuda_where_there_is_none_is_a_user_error():
    with pytest.raises(UserError, match=r"train\.device=cuda, but this machine has no CUDA device"):
        train(network(), config=settings(device="cuda"))
