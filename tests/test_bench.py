import errno
import json
import platform
import zipfile
from dataclasses import asdict, replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from pqd.config import BackboneConfig, DatasetConfig, RuntimeConfig
from pqd.constraints import attach
from pqd.constraints.mask import Masks, masks
from pqd.data import load_dataset
from pqd.errors import UserError
from pqd.measure import bench, images, predict, timings
from pqd.measure.table import advice, latency_table
from pqd.networks import Blueprint, save_network
from pqd.package import pack
from pqd.runtimes import REFERENCE
from tiny_onnx import METADATA, float_network, int8_network, write

QUICK = RuntimeConfig([REFERENCE], threads=[1], min_calls=4, min_seconds=0.0, blocks=2)


def test_bench_writes_a_record_beside_what_it_measures(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(timings, "int8_peak_gops", lambda threads: 100.0)
    monkeypatch.setattr(platform, "node", lambda: "edge box/1")
    run = tmp_path / "run"
    run.mkdir()
    int8_network(run / "model.onnx")
    float_network(run / "dense.onnx")
    pack(run / "model.onnx", tmp_path / "single.pqd")
    written = list(bench.bench([run, tmp_path / "single.pqd"], QUICK))
    assert written == [
        run / "bench-edge_box_1.json",
        tmp_path / "single.pqd.bench-edge_box_1.json",
    ]
    folder, single = (json.loads(path.read_text()) for path in written)
    assert set(folder) == {
        "schema",
        "provenance",
        "latency",
        "failed",
        "accuracy_by_runtime",
    }
    assert folder["failed"] == {}
    assert [row["model"] for row in folder["latency"]] == ["dense", "int8"]
    assert [row["model"] for row in single["latency"]] == ["int8"]
    assert single["latency"][0]["speedup"] is None
    assert folder["accuracy_by_runtime"] == {}
    assert folder["provenance"]["int8_peak_gops"] == 100.0  # the report reads it there
    assert folder["provenance"]["started"][:2] == "20"  # the later one counts in a report
    assert "accuracy is not measured" in caplog.text


def test_bench_measures_accuracy_where_the_data_set_is(tmp_path, caplog):
    config = asdict(DatasetConfig(name="digits", root=""))
    int8_network(tmp_path / "model.onnx")
    assert bench._accuracies(tmp_path, QUICK.names) == {}
    fingerprint = load_dataset(DatasetConfig(name="digits", root="")).fingerprint
    write(
        tmp_path / "model.onnx",
        [
            helper.make_node("Flatten", ["input"], ["x"]),
            helper.make_node("Gemm", ["x", "w"], ["logits"]),
        ],
        {"w": np.random.default_rng(0).standard_normal((64, 10)).astype(np.float32)},
        size=8,
        outputs=10,
    )
    record = {"config": {"dataset": config}, "final": {"dataset": fingerprint}}
    (tmp_path / "result.json").write_text(json.dumps(record))
    found = bench._accuracies(tmp_path, QUICK.names)
    assert list(found) == ["onnxruntime"]
    assert 0.0 < found["onnxruntime"] < 40.0  # random weights
    record["final"]["dataset"] = "0" * 16
    (tmp_path / "result.json").write_text(json.dumps(record))
    assert bench._accuracies(tmp_path, QUICK.names) == {}
    assert "the images found are not those of the run" in caplog.text


def test_bench_looks_for_images_where_this_machine_has_them(tmp_path, monkeypatch):
    given = asdict(DatasetConfig(name="cifar10", root="/data/of/another/machine"))
    monkeypatch.delenv("PQD_DATA", raising=False)
    with pytest.raises(UserError, match="there is no folder /data/of/another/machine"):
        images._config(given)  # and nothing is downloaded
    monkeypatch.setenv("PQD_DATA", str(tmp_path))
    assert images._config(given).root == str(tmp_path)


@pytest.mark.parametrize(("files", "name"), [(["pruned", "int8"], "pruned"), (["fp32"], "fp32")])
def test_torch_measures_the_dense_and_the_compressed_network(tmp_path, files, name):
    subject = bench.Subject(tmp_path, {file: tmp_path / file for file in ["dense", *files]})
    blueprint = Blueprint(BackboneConfig("resnet8", "resnet8"), 10, 1, 8)
    model = blueprint.build()
    save_network(model, blueprint, tmp_path)
    runtime = RuntimeConfig(names=["torch"])
    assert list(bench._modules(subject, runtime)) == ["dense"]
    attach(model, Masks(["conv1"]))
    masks(model)["conv1"].mask.zero_()
    save_network(model, blueprint, tmp_path)
    found = bench._modules(subject, runtime)
    assert list(found) == ["dense", name]
    assert not found[name].conv1.weight.any()
    assert found["dense"].conv1.weight.all()
    assert bench._modules(subject, QUICK) == {}


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


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        (
            RuntimeConfig(["onnxrt"]),
            "choose from: executorch, onnxruntime, openvino, torch, torch_compiled",
        ),
        (RuntimeConfig(threads=[-1]), "at least 0"),
        (RuntimeConfig(batch_sizes=[0]), "at least 1"),
    ],
)
def test_bench_checks_what_to_measure_in(tmp_path, runtime, message):
    with pytest.raises(UserError, match=message):
        list(bench.bench([int8_network(tmp_path / "a.onnx")], runtime))


def row(runtime, model, threads, batch, ms, speedup=None, noisy=False):
    """A row as far as the table reads it; intervals are 10 % wide on either side."""
    return {
        "runtime": runtime,
        "model": model,
        "threads": threads,
        "batch_size": batch,
        "p50_ms": ms,
        "p50_interval_ms": [0.9 * ms, 1.1 * ms],
        "speedup": speedup,
        "speedup_interval": speedup and [0.9 * speedup, 1.1 * speedup],
        "noisy": noisy,
    }


def test_the_table_shows_the_fastest_first_and_what_is_missing():
    rows = timings.Latencies()
    rows += [
        row("onnxruntime", "dense", 1, 1, 8.0, 1.0),
        row("onnxruntime", "int8", 1, 1, 2.0, 4.0, noisy=True),
        row("openvino", "int8", 2, 1, 0.12345, 64.8),
        row("openvino", "int8", 2, 8, 1200.6),
    ]
    rows.failed["torch"] = "RuntimeError: no"
    rows.left_out["torch_compiled"] = "no compiler"
    table = latency_table("runs/[a]", rows)
    cells = list(zip(*(column.cells for column in table.columns), strict=True))
    assert str(table.title) == r"runs/\[a]"
    assert cells == [
        ("OpenVINO", "int8", "2", "1", "0.123", "0.111 to 0.136", "64.8×", "58.3 to 71.3", ""),
        ("ONNX Runtime", "int8", "1", "1", "2", "1.8 to 2.2", "4×", "3.6 to 4.4", "noisy"),
        ("ONNX Runtime", "dense", "1", "1", "8", "7.2 to 8.8", "1×", "0.9 to 1.1", ""),
        ("OpenVINO", "int8", "2", "8", "1201", "1081 to 1321", "", "", ""),
        ("PyTorch eager", "failed", *[""] * 7),
        ("PyTorch compiled", "not measured", *[""] * 7),
    ]


def test_what_to_deploy_with_is_the_fastest_of_the_deployable_model():
    rows = timings.Latencies()
    rows += [row("openvino", "dense", 1, 1, 0.1), row("onnxruntime", "int8", 2, 1, 2.0)]
    line = "deploy here with ONNX Runtime on 2 threads: int8 takes 2 ms for a batch of 1"
    assert advice(rows) == line
    rows.append(row("openvino", "int8", 1, 8, 0.5))
    assert advice(rows) == line  # another batch size does not compare
    rows.append(row("openvino", "int8", 1, 1, 0.5, noisy=True))
    assert advice(rows) == (
        "deploy here with OpenVINO on 1 thread: int8 takes 0.5 ms for a batch of 1 "
        "(noisy: measure again while nothing else runs)"
    )
    only = timings.Latencies()
    only.append(row("torch", "dense", 1, 1, 9.0, 1.0))
    line = "deploy here with PyTorch eager on 1 thread: dense takes 9 ms for a batch of 1"
    assert advice(only) == line


@pytest.mark.parametrize(
    ("speedup", "words"), [(2.0, "2.00× as fast as"), (0.8, "1.25× slower than")]
)
def test_a_factor_below_one_is_no_speed_up(speedup, words):
    rows = timings.Latencies()
    rows.append(row("openvino", "int8", 1, 1, 2.0, speedup))
    assert advice(rows).endswith(f"2 ms for a batch of 1, {words} dense FP32")
    assert "speed-up" not in [str(column.header) for column in latency_table("a", rows).columns]


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


def test_bench_shows_what_it_cannot_write(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bench, "write_json", full)
    monkeypatch.setattr(platform, "node", lambda: "here")
    shown = {}
    with pytest.raises(UserError) as error:
        list(bench.bench([float_network(tmp_path / "a.onnx")], QUICK, shown.__setitem__))
    record = tmp_path / "a.onnx.bench-here.json"
    assert str(error.value) == f"cannot write {record}: No space left on device"
    assert [row["runtime"] for row in shown[tmp_path / "a.onnx"]] == ["onnxruntime"]
