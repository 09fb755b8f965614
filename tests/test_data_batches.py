"""Batches: normalisation and augmentation against loops."""

import numpy as np
import pytest
import torch

from pqd.config import AugmentConfig, DatasetConfig
from pqd.data import Dataset, Split, TrainBatches, eval_batches, load_dataset, normalise

CPU = torch.device("cpu")


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def dataset(images: torch.Tensor) -> Dataset:
    """A data set whose labels are the indices of the images."""
    split = Split(images, torch.arange(len(images)))
    channels = images.shape[-1]
    mean, std = (0.25, 0.5, 0.75)[:channels], (0.2, 0.3, 0.4)[:channels]
    return Dataset("made", ["a", "b"], split, split, split, mean, std, "0" * 16)


def naive_views(image: np.ndarray, padding: int, flip: bool) -> list[np.ndarray]:
    """Every crop and flip of one image [H, W, C], by loops."""
    height, width = image.shape[:2]
    views = []
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = np.zeros_like(image)
            for y in range(height):
                for x in range(width):
                    row, column = y + top - padding, x + left - padding
                    if 0 <= row < height and 0 <= column < width:
                        crop[y, x] = image[row, column]
            views.append(crop)
            if flip:
                views.append(crop[:, ::-1].copy())
    return views


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("padding", "flip"), [(0, False), (0, True), (1, False), (2, True)])
def test_augmented_images_are_exactly_the_naive_crops_and_flips(padding, flip, channels):
    images = noise(6, 5, 7, channels)
    data = dataset(torch.from_numpy(images))
    views = [naive_views(image, padding, flip) for image in images]
    allowed = [normalise(torch.from_numpy(np.stack(v)), data.mean, data.std) for v in views]
    batches = TrainBatches(data, AugmentConfig(padding, flip), 6, CPU)
    seen = set()
    for seed in range(500):
        for batch in batches.epoch(seed):
            assert torch.equal(batch.labels, data.train.labels[batch.rows])
            for image, label in zip(batch.images, batch.labels.tolist(), strict=True):
                matches = (allowed[label] == image).flatten(1).all(1).nonzero().flatten().tolist()
                assert len(matches) == 1
                seen.add((label, matches[0]))
    assert len(seen) == sum(map(len, views))  # every crop and flip of every image does occur


def test_epoch_is_a_permutation_and_drops_the_rest():
    batches = TrainBatches(dataset(torch.from_numpy(noise(10, 4, 4, 3))), AugmentConfig(), 4, CPU)
    shown = [batch.labels.tolist() for batch in batches.epoch(0)]
    assert [len(labels) for labels in shown] == [4, 4]
    assert len(batches) == 2
    assert len({label for labels in shown for label in labels}) == 8


def test_batch_size_is_capped_at_the_split():
    batches = TrainBatches(dataset(torch.from_numpy(noise(10, 4, 4, 3))), AugmentConfig(), 64, CPU)
    assert len(batches) == 1
    assert [sorted(batch.labels.tolist()) for batch in batches.epoch(5)] == [list(range(10))]


def test_epoch_depends_on_its_seed_alone():
    augment = AugmentConfig(cutout=2)
    batches = TrainBatches(dataset(torch.from_numpy(noise(20, 6, 6, 3))), augment, 5, CPU)
    first = list(batches.epoch(1))
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = list(batches.epoch(1))
    assert torch.equal(state, torch.get_rng_state())  # the global generator is left alone
    assert all(
        torch.equal(a, b)
        for one, other in zip(first, again, strict=True)
        for a, b in zip(one[:3], other[:3], strict=True)
    )
    assert not torch.equal(first[0][0], next(batches.epoch(2))[0])


def test_offsets_and_flips_are_uniform():
    image = torch.zeros(4, 4, 1, dtype=torch.uint8)
    image[1, 1] = 255
    batches = TrainBatches(
        dataset(image.expand(9000, 4, 4, 1).contiguous()), AugmentConfig(1, True), 9000, CPU
    )
    bright = (next(batches.epoch(0))[0][:, 0] > 0).float().mean(0) * 9000
    # The row is 0, 1 or 2; the column is 0, 1 or 2, mirrored to 3, 2 or 1 half of the time.
    expected = torch.tensor([1, 2, 2, 1]) / 6 * torch.tensor([[1], [1], [1], [0]]) / 3 * 9000
    assert torch.all((bright - expected).abs() <= 4.5 * expected.sqrt())


@pytest.mark.parametrize("side", [1, 2, 3])
def test_cutout_zeroes_one_square_around_a_point_of_the_image(side):
    images = torch.full((300, 5, 4, 3), 255, dtype=torch.uint8)
    batches = TrainBatches(dataset(images), AugmentConfig(0, False, cutout=side), 300, CPU)
    holes = {tuple((image[0] == 0).flatten().tolist()) for image in next(batches.epoch(0))[0]}
    expected = set()
    for y in range(5):
        for x in range(4):
            hole = np.zeros((5, 4), bool)
            top, left = y - side // 2, x - side // 2
            hole[max(top, 0) : top + side, max(left, 0) : left + side] = True
            expected.add(tuple(hole.flatten().tolist()))
    assert holes == expected


def test_cutout_covers_all_channels():
    images = torch.full((8, 6, 6, 3), 255, dtype=torch.uint8)
    batches = TrainBatches(dataset(images), AugmentConfig(0, False, cutout=4), 8, CPU)
    zero = next(batches.epoch(0))[0] == 0
    assert torch.equal(zero[:, 0], zero[:, 1])
    assert torch.equal(zero[:, 0], zero[:, 2])


@pytest.mark.parametrize("channels", [1, 3])
def test_normalise(channels):
    images = torch.from_numpy(noise(4, 6, 5, channels))
    mean, std = (0.4, 0.5, 0.6)[:channels], (0.1, 0.2, 0.3)[:channels]
    out = normalise(images, mean, std)
    expected = (images.double() / 255 - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(out, expected.permute(0, 3, 1, 2).float(), atol=2e-6, rtol=1e-6)
    assert out.shape == (4, channels, 6, 5)
    assert out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(normalise(images[:, ::2], mean, std), out[:, :, ::2])


def test_normalised_train_split_has_mean_0_and_deviation_1():
    data = load_dataset(DatasetConfig(name="digits", root=""))
    pixels = torch.cat(
        [
            images
            for split in (data.train, data.validation)
            for images, _ in eval_batches(split, data, 100, CPU)
        ]
    )
    assert abs(pixels.mean()) < 1e-4
    assert abs(pixels.std() - 1) < 1e-3


def test_eval_batches_show_all_images_in_order():
    data = dataset(torch.from_numpy(noise(10, 4, 4, 3)))
    with torch.inference_mode():
        batches = list(eval_batches(data.test, data, 4, CPU))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    assert torch.cat([labels for _, labels in batches]).tolist() == list(range(10))
    whole = normalise(data.test.images, data.mean, data.std)
    assert torch.equal(torch.cat([images for images, _ in batches]), whole)


def test_training_after_an_evaluation_can_differentiate():
    data = dataset(torch.from_numpy(noise(4, 3, 3, 3)))
    with torch.inference_mode():
        list(eval_batches(data.test, data, 4, CPU))
    images = next(TrainBatches(data, AugmentConfig(0, False), 4, CPU).epoch(0)).images
    weight = torch.ones(1, requires_grad=True)
    (images * weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_no_batch_waits_for_the_device():
    data = dataset(torch.from_numpy(noise(64, 8, 8, 3)))
    batches = TrainBatches(data, AugmentConfig(cutout=3), 8, torch.device("cuda")).epoch(0)
    next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert all(batch.images.is_cuda for batch in batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
