"""`pqd predict`: classes of images, and what is wrong with an image or a model."""

import json

import numpy as np
import onnx
import pytest
from onnx import helper
from PIL import Image

from pqd.errors import UserError
from pqd.measure import predict
from pqd.package import pack
from tiny_onnx import METADATA, int8_network, write


def test_predict_names_the_class_of_images(tmp_path):
    model, package = int8_network(tmp_path / "model.onnx"), tmp_path / "model.pqd"
    pack(model, package)
    dark, light = tmp_path / "dark.png", tmp_path / "light.jpg"
    Image.new("RGB", (9, 5), (10, 10, 10)).save(dark)
    Image.new("L", (4, 4), 250).save(light)
    found = list(predict.predict(model, [dark, light]))
    assert [(path, name) for path, name, _ in found] == [(dark, "dark"), (light, "light")]
    # (10 / 255 - 0.5) / 0.5 is 92 steps of 0.01 below 0; times 16 weights of 0.64.
    logit = np.clip(np.rint(0.92 * 16 * 0.64 / 0.1), -128, 127) * 0.1
    assert found[0][2] == pytest.approx(1 / (1 + np.exp(-2 * logit)), rel=1e-6)
    assert list(predict.predict(package, [dark, light])) == found
    (tmp_path / "more" / "deeper").mkdir(parents=True)
    dark.rename(tmp_path / "more" / "deeper" / "dark.png")
    light.rename(tmp_path / "more" / "light.jpg")
    (tmp_path / "more" / "notes.txt").write_text("no image")
    shown = [(p.path.name, p.name) for p in predict.predict(model, [tmp_path / "more"])]
    assert shown == [("dark.png", "dark"), ("light.jpg", "light")]


def test_predict_makes_images_square_as_the_models_were(tmp_path):
    """White squares left and right of a dark one: what is light depends on how they are cut."""
    pixels = np.full((4, 12), 250, np.uint8)
    pixels[:, 4:8] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    names = {}
    for how in ("stretch", "crop", "pad", None):
        given = METADATA | ({"resize": how} if how else {})
        model = int8_network(tmp_path / f"{how}.onnx", given)
        names[how] = next(predict.predict(model, [tmp_path / "a.png"])).name
    assert names == {"stretch": "light", "crop": "dark", "pad": "dark", None: "dark"}


def test_predict_says_what_is_wrong(tmp_path):
    model = int8_network(tmp_path / "model.onnx")
    text = tmp_path / "text.png"
    text.write_text("no image")
    foreign = int8_network(tmp_path / "foreign.onnx", metadata=None)
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"garbage" * 10)
    for bad in (foreign, garbage):
        with pytest.raises(UserError, match=r"is no model\.onnx or model\.pqd written by pqd"):
            list(predict.predict(bad, [text]))
    with pytest.raises(UserError, match=r"cannot read .*missing\.onnx: No such file"):
        list(predict.predict(tmp_path / "missing.onnx", [text]))
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"none holds no image file \(\.png, "):
        list(predict.predict(model, [tmp_path / "none"]))


def test_predict_goes_on_after_a_bad_image(tmp_path):
    model, good = int8_network(tmp_path / "model.onnx"), tmp_path / "good.png"
    text, missing = tmp_path / "text.png", tmp_path / "missing.png"
    text.write_text("no image")
    Image.new("L", (4, 4), 250).save(good)
    first, second, third = predict.predict(model, [text, missing, good])
    assert str(first) == (f"{text} cannot be read as an image: cannot identify image file '{text}'")
    assert str(second) == f"{missing} cannot be read as an image: No such file or directory"
    assert (third.path, third.name) == (good, "light")


@pytest.mark.parametrize(
    ("key", "value", "accepted"),
    [
        ("classes", ["one"], "a list of names, one for each of the model's logits [batch, 2]"),
        ("classes", ["one", 2], "a list of names, one for each of the model's logits [batch, 2]"),
        (
            "classes",
            [None, "b"],
            "a list of names, one for each of the model's logits [batch, 2]",
        ),
        ("classes", "ab", "a list of names, one for each of the model's logits [batch, 2]"),
        ("mean", [0.5, 0.5, 0.5], "a list of 1 numbers from -1e+06 to 1e+06"),
        ("mean", 0.5, "a list of 1 numbers from -1e+06 to 1e+06"),
        ("mean", [10**400], "a list of 1 numbers from -1e+06 to 1e+06"),
        ("std", [0.0], "a list of 1 numbers from 1e-06 to 1e+06"),
        ("std", [float("nan")], "a list of 1 numbers from 1e-06 to 1e+06"),
        ("std", [float("inf")], "a list of 1 numbers from 1e-06 to 1e+06"),
        ("std", [True], "a list of 1 numbers from 1e-06 to 1e+06"),
        ("std", [], "a list of 1 numbers from 1e-06 to 1e+06"),
        ("image_size", 0, "the side, in pixels, of the model's input [batch, 1, 4, 4]"),
        ("image_size", "big", "the side, in pixels, of the model's input [batch, 1, 4, 4]"),
        ("image_size", 1000000, "the side, in pixels, of the model's input [batch, 1, 4, 4]"),
        ("image_size", 4.0, "the side, in pixels, of the model's input [batch, 1, 4, 4]"),
        ("resize", "squeeze", "one of stretch, crop, pad"),
        ("resize", ["crop"], "one of stretch, crop, pad"),
        ("channels", 3, "1 or 3, as the model's input [batch, 1, 4, 4] has"),
        ("channels", None, "1 or 3, as the model's input [batch, 1, 4, 4] has"),
    ],
)
def test_metadata_that_cannot_be_right_is_named(tmp_path, key, value, accepted):
    model = int8_network(tmp_path / "model.onnx", METADATA | {key: value})
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(UserError) as error:
        list(predict.predict(model, [tmp_path / "a.png"]))
    found = json.dumps(value)[:60]
    assert str(error.value) == f"{model}: pqd.{key} is {found}; accepted: {accepted}"


def test_metadata_too_deep_to_read_is_one_line(tmp_path):
    model = onnx.load(int8_network(tmp_path / "model.onnx"))
    model.metadata_props[0].value = "[" * 100_000
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(UserError, match="it does not say its classes"):
        list(predict.predict(tmp_path / "model.onnx", []))


def test_a_model_that_the_runtime_refuses_is_one_line(tmp_path):
    model = onnx.load(int8_network(tmp_path / "model.onnx"))
    model.graph.node[0].op_type = "Foo"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(UserError, match=r"model\.onnx cannot be run: .*Foo") as error:
        list(predict.predict(tmp_path / "model.onnx", []))
    assert "\n" not in str(error.value)


def test_a_model_that_gives_no_numbers_is_named(tmp_path):
    nodes = [
        helper.make_node("Flatten", ["input"], ["x"]),
        helper.make_node("Gemm", ["x", "w"], ["logits"]),
    ]
    weights = {"w": np.full((16, 2), np.nan, np.float32)}
    model = write(tmp_path / "a.onnx", nodes, weights, metadata=METADATA)
    Image.new("L", (4, 4), 250).save(tmp_path / "a.png")
    (found,) = predict.predict(model, [tmp_path / "a.png"])
    assert str(found) == f"{tmp_path}/a.png: the model gives logits that are not finite"
