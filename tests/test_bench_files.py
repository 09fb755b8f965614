"""`pqd bench`: files of any kind are measured, or named in one line."""

import json
import platform
import zipfile
from dataclasses import replace

import onnx
import pytest
from onnx import TensorProto, helper

from pqd.errors import UserError
from pqd.measure import bench, timings
from pqd.package import pack
from tiny_onnx import QUICK, float_network, int8_network


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "not the folder of a completed run"),
        ("model.txt", "neither a run's folder nor an .onnx or .pqd file"),
        ("missing.onnx", "does not exist"),
    ],
)
def test_bench_refuses_before_it_measures(tmp_path, name, message):
    good = int8_network(tmp_path / "good.onnx")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        list(bench.bench([good, tmp_path / name], QUICK))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "good.onnx"]


def text(path):
    path.write_text("no model")


def zipped(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model.txt", "no model")


def empty(path):
    path.write_bytes(b"")


def truncated(path):
    content = float_network(path).read_bytes()
    path.write_bytes(content[: len(content) // 2])


def huge(path):
    with path.open("wb") as file:
        file.truncate(3 * 2**30)


def edited(edit):
    def make(path):
        model = onnx.load(float_network(path))
        edit(model)
        onnx.save(model, path)

    return make


@edited
def half_precision(model):
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16


@edited
def four_images(model):
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4


@edited
def external(model):
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="weights.bin")


@edited
def unknown_operator(model):
    model.graph.node[1].op_type = "Foo"


@edited
def two_inputs(model):
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (text, "{} is no ONNX file, or a damaged one"),
        (zipped, "{} is no ONNX file, or a damaged one"),
        (empty, "{} is no ONNX file, or a damaged one"),
        (truncated, "{} is no ONNX file, or a damaged one"),
        (huge, "{} is larger than 2 GiB, more than an ONNX file can be"),
        (
            half_precision,
            "{} takes images of float16; float (32 bits) is accepted, and uint8 [B, H, W, 1 or 3]",
        ),
        (four_images, "{} takes batches of 4 only; give --batch 4"),
        (two_inputs, "{} does not take images [batch, C, H, W] of a fixed size"),
    ],
)
@pytest.mark.parametrize("name", ["model.onnx", "dense.onnx"])
def test_bench_names_the_file_that_cannot_be_measured(tmp_path, make, message, name):
    good, run = int8_network(tmp_path / "good.onnx"), tmp_path / "run"
    run.mkdir()
    float_network(run / "model.onnx")
    make(run / name)
    with pytest.raises(UserError) as error:
        list(bench.bench([good, run], QUICK))
    assert str(error.value) == message.format(run / name)
    with pytest.raises(UserError) as error:
        list(bench.bench([good, run / name], QUICK))
    assert str(error.value) == message.format(run / name)
    assert not list(tmp_path.rglob("*.json"))


def test_bench_names_weights_that_are_missing(tmp_path):
    external(tmp_path / "a.onnx")
    with pytest.raises(UserError) as error:
        list(bench.bench([tmp_path / "a.onnx"], QUICK))
    assert str(error.value).startswith(f"cannot read {tmp_path}/a.onnx: ")
    assert "weights.bin" in str(error.value)


def test_bench_names_the_package_and_not_a_temporary_file(tmp_path):
    half_precision(tmp_path / "a.onnx")
    pack(tmp_path / "a.onnx", tmp_path / "a.pqd")
    with pytest.raises(UserError, match=r"a\.pqd takes images of float16") as error:
        list(bench.bench([tmp_path / "a.pqd"], QUICK))
    assert str(error.value).startswith(f"{tmp_path}/a.pqd ")


def test_bench_measures_a_fixed_batch_at_its_size(tmp_path):
    four_images(tmp_path / "a.onnx")
    (record,) = list(bench.bench([tmp_path / "a.onnx"], replace(QUICK, batch_sizes=[4])))
    (row,) = json.loads(record.read_text())["latency"]
    assert (row["batch_size"], row["float_compute_nodes"]) == (4, 4)
    assert row["macs"] == 16 * 8 * 9 + 16 * 8 * 8 * 9 + 2 * 128  # of one image


def test_bench_goes_on_after_a_model_that_no_runtime_opens(tmp_path, monkeypatch):
    unknown_operator(tmp_path / "a.onnx")
    good, rows = int8_network(tmp_path / "b.onnx"), {}
    monkeypatch.setattr(timings, "int8_peak_gops", lambda threads: 100.0)
    with pytest.raises(UserError) as error:
        list(bench.bench([tmp_path / "a.onnx", good], QUICK, rows.__setitem__))
    reason = str(error.value)
    start = f"{tmp_path}/a.onnx: nothing could be measured: runtime onnxruntime failed: "
    assert reason.startswith(start)
    assert "Foo" in reason
    assert "\n" not in reason
    assert list(rows) == [good]
    assert [path.name for path in tmp_path.glob("*.json")] == [
        f"b.onnx.bench-{platform.node()}.json"
    ]
