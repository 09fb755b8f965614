"""CIFAR-10 and CIFAR-100 from parquet shards, and the cache of decoded pixels."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from pqd.config import DatasetConfig
from pqd.data import Dataset, cache, load_dataset
from pqd.errors import UserError

REAL = Path(os.environ.get("PQD_DATA", "data")) / "cifar10"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def encode(image: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, lossless=True)
    return buffer.getvalue()


def write_shard(path: Path, encoded: list[bytes | None], **columns: list[int] | pa.Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = pa.array(
        [{"bytes": b, "path": None} for b in encoded],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    parquet.write_table(pa.table({"img": images, **columns}), path)


def cifar(name: str, root: Path, **changes) -> Dataset:
    return load_dataset(DatasetConfig(name=name, root=str(root), validation=0.5, **changes))


def shards(
    root: Path, kind: str = "PNG", name: str = "cifar10", column: str = "label"
) -> np.ndarray:
    """Writes 8 train images in two shards and 2 test images; returns all 10."""
    images = noise(10, 32, 32, 3)
    encoded = [encode(image, kind) for image in images]
    for shard, rows in {
        "train-00000-of-00002": slice(0, 5),
        "train-00001-of-00002": slice(5, 8),
        "test-00000-of-00001": slice(8, 10),
    }.items():
        labels = [row % 2 for row in range(10)][rows]
        columns = {column: labels, "coarse_label": [9] * len(labels)}
        write_shard(root / name / f"{shard}.parquet", encoded[rows], **columns)
    return images


def same_images(split: torch.Tensor, images: np.ndarray) -> bool:
    return sorted(split.flatten(1).tolist()) == sorted(images.reshape(len(images), -1).tolist())


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize(
    ("name", "column", "folder"),
    [
        ("cifar10", "label", "cifar10"),
        ("cifar100", "fine_label", "cifar100"),
        ("cifar10", "label", "cifar10/plain_text"),  # as in the hub's repository
        ("cifar10", "label", "."),  # root is the folder itself
    ],
)
def test_parquet_shards(tmp_path, kind, name, column, folder):
    images = shards(tmp_path, kind, folder, column)
    data = cifar(name, tmp_path)
    assert same_images(torch.cat([data.train.images, data.validation.images]), images[:8])
    assert np.array_equal(data.test.images.numpy(), images[8:])
    assert data.test.labels.tolist() == [0, 1]
    assert data.train.labels.bincount().tolist() == [2, 2]
    assert len(data.classes) == int(name[5:])


def test_gray_images_in_parquet_become_rgb(tmp_path):
    shards(tmp_path)
    gray = noise(2, 32, 32)
    path = tmp_path / "cifar10" / "test-00000-of-00001.parquet"
    write_shard(path, [encode(image, "PNG") for image in gray], label=[0, 1])
    assert np.array_equal(
        cifar("cifar10", tmp_path).test.images.numpy(), gray[..., None].repeat(3, 3)
    )


def test_pixels_are_decoded_once_until_a_shard_changes(tmp_path, monkeypatch):
    images = shards(tmp_path)
    first = cifar("cifar10", tmp_path)
    monkeypatch.setattr("pqd.data.cifar_parquet._decode", lambda content: 1 / 0)
    again = cifar("cifar10", tmp_path)
    assert again.fingerprint == first.fingerprint
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_shard(
        tmp_path / "cifar10" / "test-00000-of-00001.parquet",
        [encode(image, "PNG") for image in images[:3]],
        label=[0, 1, 0],
    )
    assert len(cifar("cifar10", tmp_path).test) == 3


def test_a_damaged_cache_is_made_anew(tmp_path, caplog):
    shards(tmp_path)
    first = cifar("cifar10", tmp_path)
    (file,) = cache.folder().iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    assert cifar("cifar10", tmp_path).fingerprint == first.fingerprint
    assert f"{file} cannot be read and is made anew" in caplog.text
    assert [f.name for f in cache.folder().iterdir()] == [file.name]  # no leftovers


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch, caplog):
    shards(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(cifar("cifar10", tmp_path).test) == 2
    assert "not kept for the next run" in caplog.text


def test_a_full_disk_costs_the_cache_alone(tmp_path, monkeypatch, caplog):
    def full(tensors, path):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("safetensors.torch.save_file", full)
    shards(tmp_path)
    assert len(cifar("cifar10", tmp_path).test) == 2
    assert "not kept for the next run" in caplog.text
    assert "No space left on device" in caplog.text
    assert list(cache.folder().iterdir()) == []


def test_a_user_without_a_home_has_a_cache(monkeypatch, tmp_path):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cache.folder() == tmp_path / "pqd"


def test_cifar_is_resized(tmp_path):
    shards(tmp_path)
    assert cifar("cifar10", tmp_path, image_size=20).train.images.shape == (4, 20, 20, 3)


def break_shard(folder: Path, how: str) -> None:
    path = folder / "train-00001-of-00002.parquet"
    good = encode(noise(32, 32, 3), "PNG")
    match how:
        case "missing":
            path.unlink()
        case "no test":
            (folder / "test-00000-of-00001.parquet").unlink()
        case "mixed":
            (folder / "train-00002-of-00003.parquet").write_bytes(path.read_bytes())
        case "folder":
            path.unlink()
            path.mkdir()
        case "link":
            path.unlink()
            path.symlink_to("nowhere")
        case "no rows":
            for shard in folder.glob("test-*"):
                write_shard(shard, [], label=pa.array([], pa.int64()))
        case "other":
            parquet.write_table(pa.table({"text": ["a"]}), path)
        case "img":
            parquet.write_table(pa.table({"img": [good], "label": [1]}), path)
        case "bytes":
            parquet.write_table(pa.table({"img": [{"pixels": 1}], "label": [1]}), path)
        case "text" | "float" | "null label":
            value = {"text": "1", "float": 0.5, "null label": None}[how]
            write_shard(path, [good], label=pa.array([value], pa.int64() if not value else None))
        case "truncated":
            path.write_bytes(path.read_bytes()[:500])
        case "column":
            write_shard(path, [good], labels=[1])
        case "label":
            write_shard(path, [good], label=[10])
        case "corrupt":
            write_shard(path, [good, good[:100]], label=[0, 1])
        case "null":
            write_shard(path, [None], label=[0])
        case "size":
            write_shard(path, [encode(noise(32, 31, 3), "PNG")], label=[0])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"cifar10 holds 1 of 2 shards train-\*\.parquet"),
        ("no test", r"cifar10 holds 0 of 1 shards test-\*\.parquet"),
        ("mixed", r"cifar10 mixes shards train-\*\.parquet of 2 and 3"),
        ("folder", r"train-00001-of-00002.parquet cannot be read as parquet .* is a directory"),
        ("link", r"train-00001-of-00002.parquet: No such file or directory"),
        ("no rows", r"the test split of cifar10 in .* holds no images"),
        ("other", r"columns img \(struct of bytes, path\) and label \(integers\): KeyError: 'img'"),
        ("img", r"TypeError: img is binary, label is int64"),
        ("bytes", r"KeyError: 'bytes'"),
        ("text", r"TypeError: img is struct<.*>, label is string"),
        ("float", r"TypeError: img is struct<.*>, label is double"),
        ("null label", r"ValueError: label is empty in 1 rows"),
        ("truncated", r"train-00001-of-00002.parquet cannot be read as parquet with the columns"),
        ("column", r"cannot be read as parquet with the columns img .* and label"),
        ("label", r"train-00001-of-00002.parquet has labels outside 0 to 9"),
        ("corrupt", r"train-00001-of-00002.parquet, row 1: no readable image: OSError"),
        ("null", r"row 0: no readable image"),
        ("size", r"row 0: no readable image: ValueError: its size is 31x32, not 32x32"),
    ],
)
def test_broken_shards(tmp_path, how, message):
    shards(tmp_path)
    break_shard(tmp_path / "cifar10", how)
    with pytest.raises(UserError, match=message) as error:
        cifar("cifar10", tmp_path)
    assert "\n" not in str(error.value)


def test_class_names_are_those_of_the_hub(tmp_path):
    shards(tmp_path, name="cifar100", column="fine_label")
    classes = cifar("cifar100", tmp_path).classes
    assert classes == sorted(set(classes))
    assert (classes[0], classes[-1], len(classes)) == ("apple", "worm", 100)


needs_cifar10 = pytest.mark.skipif(not REAL.is_dir(), reason="needs CIFAR-10 in $PQD_DATA/cifar10")


@needs_cifar10
@pytest.mark.slow
def test_real_cifar10(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")  # decoding takes seconds: share it with everyone
    data = load_dataset(DatasetConfig(name="cifar10", root=str(REAL.parent)))
    assert (len(data.train), len(data.validation), len(data.test)) == (45_000, 5_000, 10_000)
    assert data.train.images.shape == (45_000, 32, 32, 3)
    assert data.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=5e-5)
    assert data.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=5e-5)
    for split, each in ((data.train, 4_500), (data.validation, 500), (data.test, 1_000)):
        assert split.labels.bincount().tolist() == [each] * 10


@needs_cifar10
def test_class_names_of_the_real_shards():
    from pqd.data.cifar import VARIANTS

    file = min(REAL.rglob("train-*.parquet"), default=None)
    if file is None:
        pytest.skip("CIFAR-10 is there, but not as parquet")
    features = json.loads(parquet.read_schema(file).metadata[b"huggingface"])["info"]["features"]
    assert VARIANTS["cifar10"].classes == features["label"]["names"]
