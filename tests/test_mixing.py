"""Mixup and cutmix: which images, which labels, and what every loss makes of them."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from configs import stage
from pqd.config import AugmentConfig, TrainConfig
from pqd.data import Batch, TrainBatches
from pqd.data.mixing import mixes
from pqd.stages.losses import LOSSES
from test_data_batches import CPU, dataset, noise

OFF = {"crop_padding": 0, "flip": False}


def epoch(seed=0, count=40, size=4, images=None, **given):
    """Batches of images that are not augmented otherwise."""
    if images is None:
        images = torch.from_numpy(noise(count, 5, 7, 3))
    return list(TrainBatches(dataset(images), AugmentConfig(**OFF, **given), size, CPU).epoch(seed))


@pytest.mark.parametrize("given", [{"mixup": 0.4}, {"cutmix": 1.0}])
def test_a_mixed_image_is_its_two_images_as_they_weigh(given):
    plain = {
        row: image for b in epoch() for row, image in zip(b.rows.tolist(), b.images, strict=True)
    }
    shares = []
    for batch in epoch(**given):
        share = batch.share.item()
        shares.append(share)
        assert 0.5 <= share <= 1
        assert batch.share.shape == ()
        assert torch.equal(batch.labels, batch.rows)  # the data set's labels are its rows
        assert torch.equal(batch.others, batch.labels.flip(0))
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        for mixed, label, other in zip(
            batch.images, batch.labels.tolist(), batch.others.tolist(), strict=True
        ):
            one, two = plain[label], plain[other]
            if "mixup" in given:
                expected = share * one + (1 - share) * two
                torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=1e-5)
            else:
                from_one, from_two = (mixed == one).all(0), (mixed == two).all(0)
                assert (from_one | from_two).all()
                assert from_one.sum().item() == pytest.approx(share * 35)
    assert len(set(shares)) > 5


def test_a_box_is_cut_off_at_the_edges_and_its_share_is_what_it_leaves():
    found = list(mixes(AugmentConfig(cutmix=1.0), 3, 2000, (5, 7), CPU))
    assert all(isinstance(mix.box, tuple) for mix in found)
    for mix in found:
        mask = np.zeros((5, 7))
        mask[mix.box] = 1
        assert mix.share == pytest.approx(1 - mask.sum() / 35)
        assert mix.weight.item() == pytest.approx(max(mix.share, 1 - mix.share))
    centres = {(mix.box[0].start, mix.box[1].start) for mix in found}
    assert len(centres) > 20


def test_shares_follow_beta():
    shares = np.array([m.share for m in mixes(AugmentConfig(mixup=0.2), 0, 4000, (8, 8), CPU)])
    # Of Beta(a, a) the mean is 1/2 and the variance 1 / (4 (2a + 1)).
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (4 * 1.4), abs=0.01)


def test_both_take_turns():
    found = list(mixes(AugmentConfig(mixup=0.2, cutmix=1.0), 0, 1000, (8, 8), CPU))
    assert 430 < sum(mix.box is None for mix in found) < 570


def test_the_same_seed_gives_the_same_mixtures():
    one, again, other = (epoch(seed, mixup=0.4, cutmix=1.0) for seed in (7, 7, 8))
    pairs = [pair for x, y in zip(one, again, strict=True) for pair in zip(x, y, strict=True)]
    assert all(torch.equal(a, b) for a, b in pairs)
    assert [b.share.item() for b in one] != [b.share.item() for b in other]


def test_crops_and_order_are_those_without_mixing():
    images = torch.from_numpy(noise(40, 5, 7, 3))
    rows = [
        [sorted(b.rows.tolist()) for b in TrainBatches(dataset(images), given, 4, CPU).epoch(1)]
        for given in (AugmentConfig(), AugmentConfig(mixup=0.4))
    ]
    assert rows[0] == rows[1]
    assert epoch()[0].share is None
    assert epoch()[0].others is None


def mixed_batch(share=0.75):
    torch.manual_seed(0)
    images, labels = torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 2, 3])
    return Batch(images, labels, labels, labels.flip(0), torch.tensor(share))


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 4))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_that_of_soft_labels(smoothing):
    batch, model = mixed_batch(), network()
    found = stage("baseline", train=TrainConfig(label_smoothing=smoothing)).loss(model, batch)
    soft = 0.75 * F.one_hot(batch.labels, 4) + 0.25 * F.one_hot(batch.others, 4)
    expected = F.cross_entropy(model(batch.images), soft.float(), label_smoothing=smoothing)
    assert found["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("name", list(LOSSES))
def test_every_distillation_loss_weighs_both_labels(name):
    batch, student, teacher = mixed_batch(), network(), network()
    with torch.no_grad():
        teacher[1].weight.mul_(2)
    seen = []
    distill = stage("distill", loss=name, alpha=0.5)
    distill.teacher = lambda images: seen.append(images) or teacher(images)
    found = distill.loss(student, batch)
    assert seen[0] is batch.images  # what the student sees
    with torch.no_grad():
        logits, targets = student(batch.images), teacher(batch.images)
        each = [distill.distance(logits, targets, y) for y in (batch.labels, batch.others)]
    expected = 0.75 * each[0] + 0.25 * each[1]
    assert found["kd_loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    task = 0.75 * F.cross_entropy(logits, batch.labels) + 0.25 * F.cross_entropy(
        logits, batch.others
    )
    assert found["loss"].item() == pytest.approx(0.5 * (task + expected).item(), rel=1e-6)


def test_an_image_that_is_mixed_is_another_in_every_epoch():
    assert not AugmentConfig(**OFF)
    assert AugmentConfig(**OFF, mixup=0.2)
    assert AugmentConfig(**OFF, cutmix=1.0)
