"""The user's own images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pqd.config import DatasetConfig
from pqd.data import Dataset, load_dataset
from pqd.data.images import RESIZE
from pqd.errors import UserError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def save(path: Path, image: Image.Image | np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(path, **options)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes, 3 train and 1 test images each, 6x6 pixels."""
    for c, name in enumerate(["cat", "dog"]):
        for i in range(3):
            save(tmp_path / "own" / "train" / name / f"{i}.png", noise(6, 6, 3, seed=10 * c + i))
        save(tmp_path / "own" / "test" / name / "0.png", noise(6, 6, 3, seed=10 * c + 9))
    return tmp_path / "own"


def own(root: Path, **changes) -> Dataset:
    return load_dataset(
        DatasetConfig(name="imagefolder", root=str(root), validation=0.34, **changes)
    )


def only(root: Path, size: int, **changes) -> np.ndarray:
    """The test image of class cat."""
    return own(root, image_size=size, **changes).test.images[0].numpy()


def test_own_images(folder):
    data = own(folder)
    assert data.classes == ["cat", "dog"]
    assert np.array_equal(
        data.test.images.numpy(), np.stack([noise(6, 6, 3, seed=9), noise(6, 6, 3, seed=19)])
    )
    assert data.test.labels.tolist() == [0, 1]
    assert data.train.labels.bincount().tolist() == [2, 2]
    assert data.validation.labels.bincount().tolist() == [1, 1]


def test_hidden_and_other_files_are_ignored(folder):
    expected = own(folder).fingerprint
    (folder / "train" / "cat" / "Thumbs.db").write_bytes(b"x")
    (folder / "train" / "cat" / "notes.txt").write_text("x")
    (folder / "train" / "cat" / "._0.png").write_bytes(b"x")
    (folder / "train" / "cat" / "deeper.png").mkdir()
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    (folder / "train" / "README.md").write_text("x")
    assert own(folder).fingerprint == expected


def test_shorter_side_is_resized_and_the_centre_cropped(folder):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = [10, 200, 90]
    save(folder / "test" / "cat" / "0.png", wide)
    assert np.array_equal(only(folder, 20), wide[:, 20:40])
    assert np.array_equal(only(folder, 10)[:, 1:-1], wide[:10, 21:29])
    save(folder / "test" / "cat" / "0.png", wide.transpose(1, 0, 2).copy())
    assert np.array_equal(only(folder, 20), wide[:, 20:40])
    assert np.array_equal(only(folder, 40)[1:-1], np.broadcast_to(wide[0, 20], (38, 40, 3)))


@pytest.mark.parametrize("how", ["stretch", "crop", "pad"])
def test_oblong_images_become_square_as_asked_for(folder, how):
    wide = noise(8, 24, 3)
    save(folder / "test" / "cat" / "0.png", wide)
    expected = np.asarray(RESIZE[how](Image.fromarray(wide), 8))
    assert np.array_equal(only(folder, 8, resize=how), expected)
    assert own(folder, image_size=8, resize=how).resize == how


def ramp16() -> np.ndarray:
    return np.arange(36, dtype=np.uint16).reshape(6, 6) * 1800


def palette_image(transparent: bool) -> Image.Image:
    image = Image.new("P", (6, 6), 1)
    image.putpalette([1, 2, 3, 40, 50, 60] + [0] * 762)
    if transparent:
        image.info["transparency"] = 1
    return image


def turned() -> Image.Image:
    """Upright after its EXIF orientation (6: rotate 90 degrees clockwise)."""
    image = Image.fromarray(np.rot90(noise(6, 6, 3), 1).copy())
    image.getexif()[0x0112] = 6
    return image


@pytest.mark.parametrize(
    ("image", "suffix", "expected"),
    [
        (Image.fromarray(noise(6, 6)), ".png", noise(6, 6)),
        (Image.fromarray(noise(6, 6)), ".BMP", noise(6, 6)),
        (Image.fromarray(noise(6, 6) > 99), ".png", (noise(6, 6) > 99) * 255),
        (Image.fromarray(ramp16()), ".png", ramp16() >> 8),
        (Image.fromarray(ramp16()), ".tiff", ramp16() >> 8),
        (Image.fromarray(ramp16()), ".pgm", ramp16() >> 8),
        (palette_image(False), ".gif", np.broadcast_to([40, 50, 60], (6, 6, 3))),
        (palette_image(False), ".png", np.broadcast_to([40, 50, 60], (6, 6, 3))),
        (palette_image(True), ".png", np.full((6, 6), 255)),
        (Image.new("RGBA", (6, 6), (9, 9, 9, 0)), ".png", np.full((6, 6), 255)),
        (Image.new("RGBA", (6, 6), (9, 8, 7, 255)), ".webp", np.broadcast_to([9, 8, 7], (6, 6, 3))),
        (Image.new("LA", (6, 6), (0, 51)), ".png", np.full((6, 6), 204)),
        (Image.new("CMYK", (6, 6), (0, 255, 255, 0)), ".tif", [[[255, 0, 0]] * 6] * 6),
        (turned(), ".png", noise(6, 6, 3)),
        (turned(), ".tiff", noise(6, 6, 3)),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "mode", ""),
)  # fmt: skip
def test_any_kind_of_image_becomes_rgb(folder, image, suffix, expected):
    (folder / "test" / "cat" / "0.png").unlink()
    exif = {"exif": image.getexif()} if image.getexif() else {}
    options = {"lossless": True} if suffix == ".webp" else exif
    save(folder / "test" / "cat" / f"0{suffix}", image, **options)
    expected = np.asarray(expected, np.uint8)
    if expected.ndim == 2:
        expected = expected[..., None].repeat(3, 2)
    assert np.array_equal(only(folder, 6), expected)


def test_large_jpegs_are_decoded_at_a_fraction_but_look_the_same(folder):
    wave = np.sin(np.arange(400) / 60) * 100 + 128
    smooth = np.add.outer(wave, wave)[..., None].repeat(3, 2) / 2
    save(folder / "test" / "cat" / "0.jpg", smooth.astype(np.uint8), quality=95)
    (folder / "test" / "cat" / "0.png").unlink()
    expected = smooth.reshape(20, 20, 20, 20, 3).mean((1, 3))
    assert np.abs(only(folder, 20) - expected).max() < 4


@pytest.mark.parametrize("size", [None, 3])
def test_images_of_one_pixel(folder, size):
    for path in folder.rglob("*.png"):
        save(path, np.full((1, 1, 3), [10, 20, 30], np.uint8))
    data = own(folder, image_size=size)
    side = size or 1
    assert np.array_equal(
        data.test.images.numpy(), np.broadcast_to([10, 20, 30], (2, side, side, 3))
    )


def test_of_an_animation_the_first_frame_is_read(folder):
    (folder / "test" / "cat" / "0.png").unlink()
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    save(folder / "test" / "cat" / "0.gif", frames[0], save_all=True, append_images=frames[1:])
    assert np.array_equal(only(folder, 6), np.broadcast_to([255, 0, 0], (6, 6, 3)))


def test_ink_of_a_jpeg_becomes_light(folder):
    (folder / "test" / "cat" / "0.png").unlink()
    save(folder / "test" / "cat" / "0.jpg", Image.new("CMYK", (64, 64), (0, 255, 255, 0)))
    assert np.abs(only(folder, 8).astype(int) - [255, 0, 0]).max() <= 2


def test_mixed_sizes_need_an_image_size(folder):
    save(folder / "train" / "dog" / "2.png", noise(9, 9, 3))
    with pytest.raises(UserError, match=r"2.png is 9x9, others are 6x6.*dataset.image_size=N"):
        own(folder)
    assert own(folder, image_size=7).train.images.shape[1:] == (7, 7, 3)


def test_oblong_images_need_an_image_size(folder):
    save(folder / "train" / "cat" / "0.png", noise(6, 8, 3))
    with pytest.raises(
        UserError, match=r"0.png is not square \(8x6 pixels\); give dataset.image_s"
    ):
        own(folder)


def corrupt(path: Path, how: str) -> None:
    match how:
        case "truncated":
            path.write_bytes(path.read_bytes()[:60])
        case "text":
            path.write_text("version https://git-lfs.github.com/spec/v1")
        case "empty":
            path.write_bytes(b"")
        case "float":
            path.unlink()
            save(path.with_suffix(".tiff"), np.zeros((6, 6), np.float32))


@pytest.mark.parametrize("how", ["truncated", "text", "empty", "float"])
@pytest.mark.parametrize("size", [None, 5])
def test_corrupt_files_are_named_and_refused_or_skipped(folder, caplog, how, size):
    path = folder / "train" / "cat" / "0.png"
    corrupt(path, how)
    with pytest.raises(UserError, match=r"1 of 6 images cannot be read, first .*cat/0\.") as error:
        own(folder, image_size=size)
    assert "dataset.on_corrupt=skip" in str(error.value)
    for _ in range(2):  # decoded, then from the cache
        caplog.clear()
        data = own(folder, image_size=size, on_corrupt="skip")
        assert len(data.train) + len(data.validation) == 5
        assert data.train.labels.bincount().tolist() == [1, 2]
        assert f"skipped, as it cannot be read: {path.with_suffix('')}" in caplog.text
    with pytest.raises(UserError, match="cannot be read"):
        own(folder, image_size=size)


def test_odd_file_names_are_told_in_one_line(folder, caplog):
    (folder / "train" / "cat" / "a\nb.png").write_text("x")
    with pytest.raises(
        UserError, match=r"1 of 7 images cannot be read, first '.*a\\nb.png'"
    ) as error:
        own(folder)
    assert "\n" not in str(error.value)
    own(folder, on_corrupt="skip")
    assert [r.message.count("\n") for r in caplog.records if "skipped" in r.message] == [0]


def test_a_class_that_validation_empties_is_told(folder, caplog):
    for i in (1, 2):
        (folder / "train" / "cat" / f"{i}.png").unlink()
    data = load_dataset(DatasetConfig(name="imagefolder", root=str(folder), validation=0.5))
    assert data.train.labels.tolist() == [1, 1]
    assert (
        "no image of 1 of 2 classes is left to train on, first cat; lower dataset.validation or "
        "raise dataset.train_limit"
    ) in caplog.text
    caplog.clear()
    own(folder)
    assert "left to train on" not in caplog.text


def test_a_class_without_readable_images_is_refused(folder):
    corrupt(folder / "test" / "dog" / "0.png", "text")
    with pytest.raises(UserError, match="test/dog: none of the images of class dog can be read"):
        own(folder, on_corrupt="skip")


def test_own_images_are_decoded_once(folder, monkeypatch):
    first = own(folder, image_size=5)
    monkeypatch.setattr("pqd.data.imagefolder.decode", lambda *args, **kwargs: 1 / 0)
    assert own(folder, image_size=5).fingerprint == first.fingerprint
    with pytest.raises(UserError, match="cannot be read"):
        own(folder, image_size=4)


def test_folders_that_are_wrong(folder, tmp_path):
    with pytest.raises(UserError, match=r"dataset.root is not set"):
        load_dataset(DatasetConfig(name="imagefolder", root=""))
    with pytest.raises(UserError, match="nothing/train is missing"):
        own(tmp_path / "nothing")
    (folder / "train" / "bird").mkdir()
    with pytest.raises(UserError, match="train/bird holds no image file"):
        own(folder)
    save(folder / "train" / "bird" / "0.png", noise(6, 6, 3))
    with pytest.raises(UserError, match=r"class bird is in .*train but not in .*test"):
        own(folder)
    (folder / "train" / "bird" / "0.png").unlink()
    (folder / "train" / "bird").rmdir()
    save(folder / "test" / "ant" / "0.png", noise(6, 6, 3))
    with pytest.raises(UserError, match=r"class ant is in .*test but not in .*train"):
        own(folder)


def test_one_class_is_too_few(tmp_path):
    for split in ("train", "test"):
        save(tmp_path / split / "cat" / "0.png", noise(6, 6, 3))
    with pytest.raises(UserError, match="holds 1 class folders; at least 2 are needed"):
        own(tmp_path)


def test_too_many_pixels_for_the_disk(folder):
    with pytest.raises(UserError, match=r"8 images of 1000000x1000000 pixels need .* GiB of disk"):
        own(folder, image_size=10**6)
