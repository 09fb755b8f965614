"""Decoded images in a file: decoded once in spite of everything, and the same batches from it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pqd.config import AugmentConfig, DatasetConfig
from pqd.data import (
    Dataset,
    TrainBatches,
    batches,
    decoding,
    eval_batches,
    imagefolder,
    load_dataset,
    memory,
)
from pqd.data.stored import StoredImages
from pqd.errors import UserError

CPU = torch.device("cpu")
IMAGE = 8 * 8 * 3


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pqd"


@pytest.fixture
def root(tmp_path) -> Path:
    """Two classes of different size, 21 train and 4 test images of 8x8 pixels."""
    random = np.random.RandomState(0)
    for split, counts in (("train", (14, 7)), ("test", (2, 2))):
        for name, count in zip("ab", counts, strict=True):
            (tmp_path / "own" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.randint(0, 256, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "own" / split / name / f"{i:02}.png")
    return tmp_path / "own"


def own(root: Path, **changes) -> Dataset:
    return load_dataset(DatasetConfig("imagefolder", str(root), validation=0.2, **changes))


def stored(root: Path, monkeypatch, **changes) -> Dataset:
    with monkeypatch.context() as patched:
        patched.setattr(memory, "STORED", 0)
        data = own(root, **changes)
    assert isinstance(data.train.images, StoredImages)
    return data


def same(one: Dataset, other: Dataset) -> bool:
    splits = ("train", "validation", "test")
    return (
        (one.classes, one.mean, one.std) == (other.classes, other.mean, other.std)
        and one.fingerprint == other.fingerprint
        and all(
            torch.equal(getattr(one, name).images[:], getattr(other, name).images[:])
            and torch.equal(getattr(one, name).labels, getattr(other, name).labels)
            for name in splits
        )
    )


def equal(one: list, other: list) -> bool:
    pairs = [pair for two in zip(one, other, strict=True) for pair in zip(*two, strict=True)]
    return all(a is b is None or torch.equal(a, b) for a, b in pairs)


def test_images_in_a_file_are_those_in_memory(root, monkeypatch):
    file, ram = stored(root, monkeypatch), own(root)
    assert same(file, ram)
    assert file.train.images.shape == ram.train.images.shape
    assert file.train.images.nbytes == ram.train.images.nbytes
    index = torch.tensor([3, 0, 3])
    assert torch.equal(file.train.images[index], ram.train.images[index])
    assert torch.equal(file.train.take(index).images[1:], ram.train.images[index][1:])


def test_batches_are_the_same_bit_by_bit(root, monkeypatch):
    file, ram = stored(root, monkeypatch), own(root)
    augment = AugmentConfig(2, True, cutout=3)
    for seed in (0, 1):
        one, other = (list(TrainBatches(d, augment, 4, CPU).epoch(seed)) for d in (file, ram))
        assert len(one) == 4
        assert equal(one, other)
    one, other = (list(eval_batches(d.test, d, 3, CPU)) for d in (file, ram))
    assert [len(labels) for _, labels in one] == [3, 1]
    assert equal(one, other)


def test_mean_and_deviation_are_those_of_all_readable_train_images(root, monkeypatch):
    (root / "train" / "a" / "03.png").write_text("x")
    data = stored(root, monkeypatch, on_corrupt="skip")
    files = [
        f for f in sorted((root / "train").rglob("*.png")) if f.name != "03.png" or "/b/" in str(f)
    ]
    pixels = np.stack([np.asarray(Image.open(f)) for f in files]) / 255
    assert len(files) == 20
    assert data.mean == pytest.approx(pixels.mean((0, 1, 2)))
    assert data.std == pytest.approx(pixels.std((0, 1, 2)))


def test_no_more_batches_are_fetched_than_stated(root, monkeypatch):
    data = stored(root, monkeypatch)
    asked = []
    monkeypatch.setattr(
        StoredImages,
        "__getitem__",
        lambda self, rows: asked.append(rows) or torch.zeros(2, 8, 8, 3),
    )
    found = batches.fetched(data.train.images, torch.arange(16).split(2), CPU)
    next(found)
    found.close()
    assert 1 <= len(asked) <= 1 + batches.AHEAD


def test_an_error_while_a_batch_is_fetched_is_raised(root, monkeypatch):
    data = stored(root, monkeypatch)
    monkeypatch.setattr(StoredImages, "__getitem__", lambda self, rows: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(TrainBatches(data, AugmentConfig(), 4, CPU).epoch(0))


@pytest.mark.parametrize("at", [0, 1, 4, 9])
def test_a_decode_that_ends_early_goes_on_where_it_was(root, cache, monkeypatch, at):
    """The decoder fails at image `at`; parts are of 3 images."""
    whole = own(root)
    for path in cache.iterdir():
        path.unlink()
    monkeypatch.setattr(decoding, "PART", 3 * IMAGE)
    decode, calls = decoding._fill, []

    def failing(job, file, image):
        calls.append(file)
        if file == sorted((root / "train").rglob("*.png"))[at]:
            raise KeyboardInterrupt
        return decode(job, file, image)

    with monkeypatch.context() as patched:
        patched.setattr(decoding, "_fill", failing)
        with pytest.raises(KeyboardInterrupt):
            own(root)
    records = [json.loads(path.read_text())["done"] for path in cache.glob("*train*.json")]
    assert records == ([at // 3 * 3] if at >= 3 else [])
    calls.clear()
    monkeypatch.setattr(
        decoding, "_fill", lambda job, file, image: calls.append(file) or decode(job, file, image)
    )
    again = own(root)
    assert len(calls) == 21 - at // 3 * 3 + 4  # the test split was not begun
    monkeypatch.setattr(decoding, "_fill", None)
    assert same(again, own(root))
    assert [torch.equal(again.train.images, whole.train.images), again.mean == whole.mean] == [
        True
    ] * 2


KILLED = """
import sys, time
from pqd.config import DatasetConfig
from pqd.data import decoding, load_dataset
decoding.PART = 3 * 8 * 8 * 3
fill = decoding._fill
def slow(job, file, image):
    time.sleep(0.05)
    return fill(job, file, image)
decoding._fill = slow
load_dataset(DatasetConfig("imagefolder", sys.argv[1], validation=0.2))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="kills a process")
def test_a_killed_decode_is_finished_by_the_next_run(root, cache, monkeypatch):
    running = subprocess.Popen([sys.executable, "-c", KILLED, str(root)])
    while not list(cache.glob("*train*.json")) and running.poll() is None:
        pass
    os.kill(running.pid, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    begun = json.loads(next(cache.glob("*train*.json")).read_text())["done"]
    assert 0 < begun < 21
    monkeypatch.setattr(decoding, "PART", 3 * IMAGE)
    resumed = own(root)
    for path in cache.iterdir():
        path.unlink()
    assert same(resumed, own(root))


@pytest.mark.parametrize("damage", ["no pixels", "short", "no record", "garbage"])
def test_a_damaged_file_is_decoded_anew(root, cache, damage):
    whole = own(root)
    record, pixels = (next(cache.glob(f"*train*.{end}")) for end in ("json", "pixels"))
    match damage:
        case "no pixels":
            pixels.unlink()
        case "short":
            os.truncate(pixels, 5)
        case "no record":
            record.unlink()
        case "garbage":
            record.write_text("{}}")
    assert same(own(root), whole)


def test_a_file_that_is_decoded_anew_stays_for_those_who_read_from_it(root, cache, monkeypatch):
    reader = stored(root, monkeypatch)
    (record,) = cache.glob("*train*.json")
    record.write_text("{}}")
    pixels = record.with_suffix(".pixels")
    before = pixels.stat().st_ino, reader.train.images[:]
    decode = imagefolder.decode

    def other(file, *args, **kwargs):
        return 255 - decode(file, *args, **kwargs)

    monkeypatch.setattr(imagefolder, "decode", other)
    own(root)
    assert pixels.stat().st_ino != before[0]  # else reading now would end the process
    assert torch.equal(reader.train.images[:], before[1])


def test_where_the_cache_cannot_be_written_images_are_decoded_all_the_same(
    root, tmp_path, monkeypatch, caplog
):
    whole = own(root)
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert same(stored(root, monkeypatch), whole)
    assert "decoded images are not kept for the next run" in caplog.text


def test_a_full_disk_is_one_line(root, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(decoding, "write_json", full)
    with pytest.raises(decoding.UserError, match=r"cannot be kept: \S+json: No space left on devi"):
        own(root)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (OSError(24, "Too many open files"), "Too many open files"),
        (MemoryError(), "out of memory"),
    ],
)
def test_what_the_system_refuses_is_not_kept_as_damaged(root, monkeypatch, error, reason):
    denied, real = root / "train" / "b" / "03.png", imagefolder.decode

    def guarded(file, *args, **kwargs):
        if file == denied:
            raise error
        return real(file, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(imagefolder, "decode", guarded)
        with pytest.raises(UserError) as raised:
            own(root, on_corrupt="skip")
        assert str(raised.value) == f"{denied} cannot be read: {reason}"
    data = own(root, on_corrupt="skip")
    assert len(data.train) + len(data.validation) == 21


def test_a_damaged_file_that_points_before_its_beginning_is_skipped(root, monkeypatch):
    real = imagefolder.decode

    def seeking(file, *args, **kwargs):
        if file == root / "train" / "b" / "03.png":
            with file.open("rb", buffering=0) as opened:
                opened.seek(-1)
        return real(file, *args, **kwargs)

    monkeypatch.setattr(imagefolder, "decode", seeking)
    data = own(root, on_corrupt="skip")
    assert len(data.train) + len(data.validation) == 20
