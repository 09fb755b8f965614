"""One image file as a square of RGB pixels."""

import numpy as np
import pytest
from PIL import Image

from pqd.config import DatasetConfig
from pqd.data.images import RESIZE, decode
from pqd.options import option_of


def test_ways_to_make_an_image_square(tmp_path):
    """Red, green and blue squares of 4 pixels side by side."""
    colours = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250]], np.uint8)
    wide = np.broadcast_to(colours[None].repeat(4, 1), (4, 12, 3))
    for pixels, turn in ((wide, False), (wide.transpose(1, 0, 2), True)):
        Image.fromarray(pixels.copy()).save(tmp_path / "x.png")
        found = {how: decode(tmp_path / "x.png", 12, resize=True, how=how) for how in RESIZE}
        found = {how: x.transpose(1, 0, 2) if turn else x for how, x in found.items()}
        assert np.array_equal(found["stretch"][[0, -1]], wide[:2])
        assert np.array_equal(found["crop"][:, 2:-2], np.broadcast_to(colours[1], (12, 8, 3)))
        assert np.array_equal(found["pad"][4:8], wide)
        assert not found["pad"][:4].any()
        assert not found["pad"][8:].any()
        default = decode(tmp_path / "x.png", 12, resize=True)
        assert np.array_equal(default.transpose(1, 0, 2) if turn else default, found["crop"])


def test_every_way_can_be_asked_for():
    assert list(option_of(DatasetConfig.__dataclass_fields__["resize"]).choices()) == list(RESIZE)


def test_a_square_image_is_the_same_in_every_way(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    found = [decode(tmp_path / "x.png", 5, resize=True, how=how).tolist() for how in RESIZE]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("how", RESIZE)
def test_large_jpegs_are_decoded_at_a_fraction_in_every_way(tmp_path, how):
    wave = (np.sin(np.arange(600) / 60) * 50 + 128)[None, :, None]
    Image.fromarray(np.broadcast_to(wave, (300, 600, 3)).astype(np.uint8)).save(
        tmp_path / "x.jpg", quality=95
    )
    with Image.open(tmp_path / "x.jpg") as image:
        expected = np.asarray(RESIZE[how](image, 20)).astype(int)
    assert np.abs(decode(tmp_path / "x.jpg", 20, resize=True, how=how) - expected).max() <= 4
