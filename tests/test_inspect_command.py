"""`pqd inspect` of files, packages and runs, and the words for what it finds."""

import json
import sys
from dataclasses import asdict
from typing import ClassVar

import pytest
import torch
from onnx import helper

from pqd import cli
from pqd.config import BackboneConfig, DatasetConfig
from pqd.constraints import attach
from pqd.constraints.quantization import FakeQuantization
from pqd.data import eval_batches, load_dataset
from pqd.errors import UserError
from pqd.export.onnx_file import write_onnx
from pqd.inspect.look import look
from pqd.inspect.paths import inspect, layer_table
from pqd.inspect.words import columns, worst
from pqd.networks import Blueprint, save_network
from pqd.package import pack
from pqd.result import Layer
from pqd.stages.quantize import calibrate
from tiny_onnx import float_network, foreign_networks, int8_network, write


class TestWords:
    LAYERS: ClassVar = [
        Layer("conv1", "Conv", [8, 3, 3, 3], [8, 4, 4], 100, 0.5, 8, 300, {"onnxruntime": 0.2}),
        Layer(
            "fc", "Gemm", [10, 8], [10], 300, 0.25, 4, 100, {"onnxruntime": 0.3}, 0.01, 0.123
        ),
        Layer("", "QLinearAdd", time={"onnxruntime": 0.5}),
    ]  # fmt: skip

    def test_the_table(self):
        shown = columns(self.LAYERS)
        assert [column.title for column in shown] == [
            "layer", "kind", "weights", "output", "MACs, %", "ONNX Runtime time, %", "zeros, %",
            "bits", "package", "weight error, %", "output error, %",
        ]  # fmt: skip
        assert [[column.text(layer) for column in shown] for layer in self.LAYERS] == [
            ["conv1", "Conv", "8×3×3×3", "8×4×4", "25.0", "20.0", "50.0", "8", "300 B", "–", "–"],
            ["fc", "Gemm", "10×8", "10", "75.0", "30.0", "25.0", "4", "100 B", "1.00", "12.3"],
            ["(no weights)", "QLinearAdd", "–", "–", "–", "50.0", "–", "–", "–", "–", "–"],
        ]
        assert layer_table("x", self.LAYERS).row_count == 3
        assert [column.value(self.LAYERS[1]) for column in shown[4:8]] == [75, 30, 25, 4]

    def test_what_hurts_most(self):
        assert worst(self.LAYERS, 1000) == (
            "What hurts most: QLinearAdd, in all its places, takes 50.0 % of the time in ONNX "
            "Runtime; conv1 takes 30.0 % of the package; quantization changes the weights of fc "
            "most, by 1.00 %, and what fc puts out by 12.3 %."
        )
        assert worst(self.LAYERS[:2]) == (
            "What hurts most: fc takes 30.0 % of the time in ONNX Runtime for 75.0 % of the MACs; "
            "quantization changes the weights of fc most, by 1.00 %, and what fc puts out by "
            "12.3 %."
        )
        assert worst([]) == ""


class TestCommand:
    def call(self, monkeypatch, capsys, *arguments):
        monkeypatch.setattr(sys, "argv", ["pqd", "inspect", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, error = capsys.readouterr()
        return ended.value.code, out, error

    def test_another_tools_file(self, tmp_path, monkeypatch, capsys):
        foreign = foreign_networks(tmp_path)
        code, out, error = self.call(
            monkeypatch, capsys, foreign / "QDQ.onnx", "--float", foreign / "float.onnx"
        )
        assert (code, error) == (None, "")
        *_, last = out.splitlines()
        assert last.startswith("What hurts most: ")
        assert "QuantizeLinear" in out
        assert "weight error, %" in out

    def test_a_package(self, tmp_path, monkeypatch, capsys):
        pack(int8_network(tmp_path / "model.onnx"), tmp_path / "model.pqd")
        code, out, _ = self.call(monkeypatch, capsys, tmp_path / "model.pqd")
        assert code is None
        assert "2×16" in out

    @pytest.mark.parametrize(
        ("name", "content", "line"),
        [
            ("a.onnx", b"nothing", "a.onnx is no ONNX file, or a damaged one"),
            ("a.txt", b"", "a.txt is neither a run's folder nor an .onnx or .pqd file"),
            ("a.pqd", b"nothing", "a.pqd: this is no pqd package"),
            ("b.onnx", None, "cannot read {folder}/b.onnx: No such file or directory"),
        ],
    )
    def test_files_that_are_none(self, tmp_path, monkeypatch, capsys, name, content, line):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        code, out, error = self.call(monkeypatch, capsys, tmp_path / name)
        assert (code, out) == (1, "")
        assert error.strip().endswith(line.format(folder=tmp_path))
        assert error.count("\n") == 1

    @pytest.fixture
    def run(self, tmp_path):
        """The folder of a run that quantizes, with its digits."""
        blueprint = Blueprint(BackboneConfig("resnet8", "resnet8"), 10, 1, 8)
        network = blueprint.build()
        attach(network, FakeQuantization(127))
        config = DatasetConfig(name="digits", root="")
        dataset = load_dataset(config)
        calibrate(
            network,
            [images for images, _ in eval_batches(dataset.test, dataset, 64, torch.device("cpu"))],
        )
        save_network(network, blueprint, tmp_path)
        write_onnx(network, tmp_path / "model.onnx", (1, 8, 8), {})
        pack(tmp_path / "model.onnx", tmp_path / "model.pqd")
        record = {"config": {"dataset": asdict(config)}, "final": {"dataset": dataset.fingerprint}}
        (tmp_path / "result.json").write_text(json.dumps(record))
        return tmp_path

    def test_a_run(self, run):
        found = inspect(run, ["onnxruntime"])
        named = [layer for layer in found.layers if layer.name]
        assert [layer.name for layer in named] == [
            *("conv1", "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "layer2.0.conv2"),
            *("layer2.0.downsample.0", "layer3.0.conv1", "layer3.0.conv2"),
            *("layer3.0.downsample.0", "fc"),
        ]
        assert all(0 < layer.weight_error < 0.01 for layer in named)
        assert all(layer.weight_error < layer.output_error < 0.5 for layer in named[1:])
        assert found.bytes == (run / "model.pqd").stat().st_size
        assert sum(layer.package_bytes for layer in named) < found.bytes

    def test_a_run_whose_images_are_elsewhere(self, run, caplog):
        (run / "result.json").unlink()
        named = [layer for layer in inspect(run, ["onnxruntime"]).layers if layer.name]
        assert all(layer.weight_error > 0 and layer.output_error is None for layer in named)
        assert "errors of outputs are left out, as its data set is not here" in caplog.text

    def test_a_folder_that_is_none(self, tmp_path):
        with pytest.raises(UserError, match="not the folder of a completed run"):
            inspect(tmp_path, ["onnxruntime"])

    def test_a_network_without_layers(self, tmp_path):
        path = write(
            tmp_path / "m.onnx", [helper.make_node("Flatten", ["input"], ["logits"])], {}, 1, 4, 16
        )
        with pytest.raises(UserError, match="no convolution or matrix product"):
            look(path)

    def test_a_package_is_named_and_not_a_temporary_file(self, tmp_path):
        nodes = [helper.make_node("Flatten", ["input"], ["logits"])]
        pack(write(tmp_path / "m.onnx", nodes, {}, 1, 4, 16), tmp_path / "none.pqd")
        network = float_network(tmp_path / "f.onnx")
        for given in ((tmp_path / "none.pqd", None), (network, tmp_path / "none.pqd")):
            with pytest.raises(UserError) as error:
                inspect(given[0], [], given[1])
            assert str(error.value) == (
                f"{tmp_path / 'none.pqd'} has no convolution or matrix product with weights of its "
                "own"
            )
