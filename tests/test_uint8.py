"""`export.uint8_input=true`: pixels in, the same logits out."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from PIL import Image

import tiny_onnx
from nets import Residual, traced
from pqd import pipeline
from pqd.config import ExportConfig, RuntimeConfig
from pqd.constraints import attach
from pqd.constraints.quantization import FakeQuantization
from pqd.data.batches import normalise
from pqd.errors import UserError
from pqd.export.onnx_file import take_pixels, write_onnx
from pqd.identity import stage_keys
from pqd.inspect.look import look
from pqd.measure import Input, predictions
from pqd.measure.bench import bench as measure
from pqd.measure.graph import input_of
from pqd.measure.predict import predict
from pqd.package import pack
from pqd.runtimes import available
from pqd.stages.quantize import calibrate
from tiny_runs import config, of

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CLASSES = ["cat", "dog", "frog", "ship"]
METADATA = {"classes": CLASSES, "mean": MEAN, "std": STD, "image_size": 8, "channels": 3}
README = Path(__file__).parents[1] / "README.md"


def pixels(count=256):
    """Images [count, 8, 8, 3] in which each value of a pixel is in each channel."""
    shift = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3))
    return ((np.arange(count).reshape(-1, 1, 1, 1) + shift) % 256).astype(np.uint8)


@pytest.fixture(scope="module", params=[False, True], ids=["float", "int8"])
def files(request, tmp_path_factory):
    """A network as a plain file, and as one that takes pixels."""
    folder, network = tmp_path_factory.mktemp("files"), traced(Residual)
    if request.param:
        attach(network, FakeQuantization(127))
        calibrate(network, [normalise(torch.from_numpy(pixels()), MEAN, STD)])
    write_onnx(network, folder / "plain.onnx", (3, 8, 8), METADATA)
    shutil.copyfile(folder / "plain.onnx", folder / "model.onnx")
    take_pixels(folder / "model.onnx", MEAN, STD)
    return folder


def logits(path, images):
    return ort.InferenceSession(path).run(None, {"input": images})[0]


def test_logits_are_those_of_the_plain_file_to_the_bit(files):
    images = normalise(torch.from_numpy(pixels()), MEAN, STD).contiguous().numpy()
    expected = logits(files / "plain.onnx", images)
    assert np.array_equal(logits(files / "model.onnx", pixels()), expected)
    assert len(np.unique(expected)) > 256


def test_openvino_classifies_alike(files):
    pytest.importorskip("openvino")
    images = normalise(torch.from_numpy(pixels()), MEAN, STD)
    expected = predictions(files / "plain.onnx", [images], "openvino")
    assert np.mean(predictions(files / "model.onnx", [pixels()], "openvino") == expected) >= 0.99


def test_the_file_says_what_it_takes(files):
    assert input_of(files / "plain.onnx") == Input((3, 8, 8))
    assert input_of(files / "model.onnx") == Input((3, 8, 8), uint8=True)
    assert Input((3, 8, 6), uint8=True).batch(2) == (2, 8, 6, 3)
    assert Input((3, 8, 6)).batch(2) == (2, 3, 8, 6)


def test_predict_reads_both_and_their_packages(files, tmp_path):
    Image.fromarray(pixels()[7]).save(tmp_path / "image.png")
    pack(files / "model.onnx", tmp_path / "model.pqd")
    plain, *others = (
        list(predict(model, [tmp_path / "image.png"]))
        for model in (files / "plain.onnx", files / "model.onnx", tmp_path / "model.pqd")
    )
    assert plain[0].name in CLASSES
    assert others == [plain, plain]


def test_bench_and_inspect_read_it(files, tmp_path):
    model = shutil.copyfile(files / "model.onnx", tmp_path / "model.onnx")
    names = available(["onnxruntime", "openvino"])
    runtime = RuntimeConfig(names=names, threads=[1], min_calls=4, min_seconds=0.0, blocks=2)
    (record,) = measure([model], runtime)
    assert [row["runtime"] for row in json.loads(record.read_text())["latency"]] == names
    found = look(model, float_=files / "model.onnx", images=[pixels(1)], seconds=0)
    assert [layer.name for layer in found.layers if layer.name] == ["conv1", "conv2", "fc"]
    assert found.left_out == []


def test_a_run_measures_what_it_deploys(tmp_path):
    finals = []
    for uint8 in (False, True):
        given = config(tmp_path, "q", export=ExportConfig(uint8))
        folder = tmp_path / f"run{uint8}"
        finals.append(pipeline.run(given, folder).final)
        taken = [input_of(folder / name).uint8 for name in ("dense.onnx", "model.onnx")]
        assert taken == [uint8, uint8]
    plain, own = finals
    assert (own.accuracy, own.dense_accuracy) == (plain.accuracy, plain.dense_accuracy)
    assert own.agreement == plain.agreement == 100
    errors = [[layer.output_error for layer in final.layers if layer.name] for final in finals]
    assert errors[0] == errors[1]
    assert all(own.sizes[name] > plain.sizes[name] for name in ("int8_onnx", "fp32_onnx"))


def test_a_size_is_that_of_the_form_that_ships(tmp_path):
    given = config(tmp_path, "q", export=ExportConfig(True), **of("quantize", size_kib=2.9))
    found = pipeline.run(given, tmp_path / "run")
    bits, shipped = found.stages[-1].bits, found.final.sizes["package"]
    assert abs(bits.package_bytes - shipped) < 64  # its order's name
    assert 0.9 * bits.limit_bytes < shipped <= bits.limit_bytes == int(2.9 * 1024)


def test_the_form_decides_a_stage_where_its_size_is_given(tmp_path):
    def changed(**options):
        forms = (config(tmp_path, "pqd", export=ExportConfig(f), **options) for f in (False, True))
        before, after = (stage_keys(form, {"images": ""}) for form in forms)
        return [name for name in before if before[name] != after[name]]

    assert changed() == []
    assert changed(**of("quantize", size_kib=40)) == ["quantize", "distill"]


def test_other_bytes_are_refused(tmp_path):
    path = tiny_onnx.float_network(tmp_path / "m.onnx")
    network = onnx.load(path)
    network.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    onnx.save(network, path)  # [B, 1, 4, 4]
    with pytest.raises(UserError, match=r"takes images of uint8; float \(32 bits\) is accepted"):
        input_of(path)


def test_the_snippet_in_the_readme(files, tmp_path, monkeypatch, capsys):
    Image.fromarray(pixels()[7]).save(tmp_path / "image.png")
    shutil.copyfile(files / "model.onnx", tmp_path / "model.onnx")
    text = README.read_text("utf-8").partition("### In an application")[2]
    (snippet, *_) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(snippet, {})
    (expected,) = predict(tmp_path / "model.onnx", [tmp_path / "image.png"])
    assert capsys.readouterr().out == f"{expected.name}\n"
