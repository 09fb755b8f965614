"""Splits, the digits, and the configuration of data sets."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from pqd.config import AugmentConfig, DatasetConfig
from pqd.data import Dataset, load_dataset
from pqd.data.split import balanced_order, resize, statistics
from pqd.errors import UserError

CONF = Path(__file__).parents[1] / "conf"


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def test_every_prefix_of_the_balanced_order_holds_each_class_in_its_share():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    order = balanced_order(labels, seed=3)
    assert sorted(order.tolist()) == list(range(100))
    for m in range(101):
        counts = labels[order[:m]].bincount(minlength=3)
        assert (counts - torch.tensor([0.5, 0.3, 0.2]) * m).abs().max() <= 1
    assert order.tolist() == balanced_order(labels, seed=3).tolist()
    assert order.tolist() != balanced_order(labels, seed=4).tolist()


def test_balanced_order_skips_labels_that_do_not_occur():
    assert sorted(balanced_order(torch.tensor([5, 2, 5]), 0).tolist()) == [0, 1, 2]


def digits(**changes) -> Dataset:
    return load_dataset(DatasetConfig(name="digits", root="", **changes))


def test_digits():
    data = digits()
    assert (len(data.train), len(data.validation), len(data.test)) == (1213, 135, 449)
    assert data.train.images.shape == (1213, 8, 8, 1)
    assert data.train.images.dtype == torch.uint8
    assert data.train.labels.dtype == torch.int64
    assert data.classes == list("0123456789")
    assert data.train.images.max() == 255
    counts = [s.labels.bincount(minlength=10) for s in (data.train, data.validation, data.test)]
    assert (counts[2] - 0.25 * sum(counts)).abs().max() <= 1
    assert (counts[1] - 0.1 * (counts[0] + counts[1])).abs().max() <= 1


def test_digits_are_scikit_learns_and_every_image_is_in_one_split():
    from sklearn.datasets import load_digits

    data = digits()
    together = torch.cat([s.images for s in (data.train, data.validation, data.test)])
    levels = (together.double() * 16 / 255).round().reshape(-1, 64)
    expected = torch.from_numpy(load_digits().data)
    assert sorted(levels.tolist()) == sorted(expected.tolist())


def test_test_split_depends_on_nothing():
    one, other = digits(), digits(split_seed=7, validation=0.3, train_limit=100)
    assert torch.equal(one.test.images, other.test.images)
    assert one.mean == other.mean
    assert len(other.train) == 100
    assert len(other.validation) == round(0.3 * 1348)
    assert not torch.equal(one.validation.labels, other.validation.labels[:135])


def test_fingerprint_changes_with_split_and_size_only():
    assert re.fullmatch("[0-9a-f]{16}", digits().fingerprint)
    assert digits().fingerprint == digits().fingerprint
    assert digits().fingerprint == digits(augment=AugmentConfig(cutout=3)).fingerprint
    variants = [digits(), digits(split_seed=1), digits(train_limit=500), digits(image_size=16)]
    assert len({v.fingerprint for v in variants}) == 4


def test_train_limit_is_stratified_and_a_larger_one_keeps_all():
    counts = digits(train_limit=100).train.labels.bincount(minlength=10)
    assert counts.sum() == 100
    assert counts.min() >= 9
    assert len(digits(train_limit=10**6).train) == 1213


def test_image_size_resizes_any_data_set():
    data = digits(image_size=16)
    for split in (data.train, data.validation, data.test):
        assert split.images.shape[1:] == (16, 16, 1)


def test_resize_keeps_constant_images_and_averages():
    constant = torch.full((3, 8, 8, 3), 77, dtype=torch.uint8)
    assert torch.equal(resize(constant, 32), torch.full((3, 32, 32, 3), 77, dtype=torch.uint8))
    board = torch.zeros(1, 8, 8, 1, dtype=torch.uint8)
    board[:, ::2] = 200
    assert (resize(board, 2).float() - 100).abs().max() <= 25
    assert resize(board, 8) is board


def test_statistics_equal_numpys():
    images = noise(50, 5, 4, 3)
    images[..., 2] = 9
    mean, std = statistics(torch.from_numpy(images))
    scaled = images / 255
    assert mean == pytest.approx(scaled.mean((0, 1, 2)), abs=1e-12)
    assert std == pytest.approx([scaled[..., 0].std(), scaled[..., 1].std(), 1.0], abs=1e-12)


def test_statistics_are_the_same_on_every_machine_to_the_last_bit():
    def added(numbers: list[float]) -> float:
        """16 rows of 4 groups of 4 numbers: rows first, then groups, then what is left."""
        for rows in (16, 4, 4):
            columns = len(numbers) // rows
            total = numbers[:columns]
            for start in range(columns, len(numbers), columns):
                total = [a + b for a, b in zip(total, numbers[start:], strict=False)]
            numbers = total
        (result,) = numbers
        return result

    for seed in range(100):
        images = noise(1 + seed % 7, 5, 4, 3, seed=seed)
        means, deviations = statistics(torch.from_numpy(images))
        for channel, (mean, deviation) in enumerate(zip(means, deviations, strict=True)):
            counts = np.bincount(images[..., channel].ravel(), minlength=256).tolist()
            shares = [count / sum(counts) for count in counts]
            assert mean == added([s * (v / 255) for v, s in enumerate(shares)])
            squares = [s * ((v / 255 - mean) * (v / 255 - mean)) for v, s in enumerate(shares)]
            assert deviation == math.sqrt(added(squares))


def test_images_can_be_normalised_as_a_loaded_network_wants():
    data = digits(mean=[0.25], std=[0.5])
    assert (data.mean, data.std) == ((0.25,), (0.5,))
    assert data.fingerprint != digits().fingerprint
    assert torch.equal(data.train.images, digits().train.images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": [0.5]}, "dataset.std is missing; give dataset.mean and dataset.std, or none"),
        ({"std": [0.5]}, "dataset.mean is missing; give dataset.mean and dataset.std, or none"),
        (
            {"mean": [0.5, 0.5, 0.5], "std": [1.0]},
            "dataset.mean=[0.5, 0.5, 0.5] must be 1 numbers in units of 1 (pixel / 255), one for "
            "each channel",
        ),
    ],
)
def test_a_normalisation_that_does_not_fit_is_one_line(changes, message):
    with pytest.raises(UserError) as error:
        digits(**changes)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "changes", [{"validation": 1e-5}, {"validation": 0.9999}, {"train_limit": 1}]
)
def test_splits_without_images_are_refused(changes):
    with pytest.raises(UserError, match=r"leave \d+ images to train and \d+ to validate"):
        digits(**changes)


def test_unknown_name():
    with pytest.raises(
        UserError, match=r"did you mean cifar10.*choose from: cifar10, cifar100, dig"
    ):
        load_dataset(DatasetConfig(name="cifar-10", root=""))


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar100", "imagefolder"])
def test_conf_fills_the_schema(name, monkeypatch):
    monkeypatch.delenv("PQD_DATA", raising=False)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        group = compose(f"dataset/{name}").dataset
    cfg = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DatasetConfig), group))
    assert cfg.name == name
    assert cfg.root == ("data" if name.startswith("cifar") else "")
    assert cfg.augment == (AugmentConfig(1, False) if name == "digits" else AugmentConfig())


def test_data_root_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("PQD_DATA", "/somewhere")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert compose("dataset/cifar10").dataset.root == "/somewhere"
