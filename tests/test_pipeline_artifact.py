"""What a run deploys: its files and figures, and what is doubtful in them."""

import json
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from pqd import artifact, measure
from pqd.cache import file_digest
from pqd.config import CacheConfig, DatasetConfig, RuntimeConfig, TargetConfig
from pqd.constraints.mask import masks
from pqd.errors import UserError
from pqd.networks import load_network
from pqd.runtimes import base
from tiny_runs import SIX, run


class TestArtifact:
    @pytest.fixture(scope="class")
    def cache(self, tmp_path_factory):
        return tmp_path_factory.mktemp("shared")

    @pytest.mark.parametrize("order", SIX)
    def test_zeros_and_files(self, tmp_path, order, cache):
        record = run(tmp_path, order, cache=CacheConfig(True, str(cache)))
        folder = tmp_path / "run"
        network = load_network(folder)
        graph = onnx.load(folder / "model.onnx").graph
        tensors = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        zeros = total = 0
        for name, mask in masks(network).items():
            codes = tensors[f"{name}.codes"]
            assert codes.dtype == np.int8
            assert not codes[~mask.mask.numpy()].any()
            zeros, total = zeros + int((~mask.mask).sum()), total + mask.mask.numel()
        assert abs(zeros - 0.75 * total) <= 1
        final = record["final"]
        assert final["sparsity"] == zeros / total
        assert final["agreement"] >= 99.5
        assert final["sizes"]["int8_onnx"] == (folder / "model.onnx").stat().st_size
        assert {row["model"] for row in final["latency"]} == {"dense", "pruned", "int8"}
        layers = {layer["name"]: layer for layer in final["layers"] if layer["name"]}
        assert list(layers) == ["conv1", "conv2", "fc"]
        assert sum(layer["macs"] for layer in layers.values()) == final["macs"]
        shares = [layer["time"]["onnxruntime"] for layer in final["layers"]]
        assert sum(shares) == pytest.approx(1)
        for error, most in (("weight_error", 0.02), ("output_error", 1.0)):
            values = [layer[error] for layer in layers.values()]
            assert 0 < min(values) <= max(values) < most
        expected = {"model.onnx", "model.pqd", "dense.onnx", "pruned.onnx", "model.safetensors"}
        assert set(record["files"]) == expected | {"recipe.json"}
        for name, file in record["files"].items():
            assert file_digest(folder / name) == file["sha256"]
        assert json.loads((folder / "result.json").read_text()) == record

    @pytest.mark.parametrize("order", ["", "p", "q"], ids=["none", "p", "q"])
    def test_partial_orders(self, tmp_path, order, cache):
        final = run(tmp_path, order, cache=CacheConfig(True, str(cache)))["final"]
        kind = "int8" if order == "q" else "fp32"
        assert {row["model"] for row in final["latency"]} == {"dense", kind}
        assert ("int8_onnx" in final["sizes"]) == (order == "q")
        errors = [layer["output_error"] is not None for layer in final["layers"] if layer["name"]]
        assert errors == [order == "q"] * 3  # against the network in FP32, which is made for it
        assert final["sparsity"] == pytest.approx(0.75 if order == "p" else 0, abs=1e-3)
        if not order:
            assert final["accuracy"] == final["dense_accuracy"]

    def test_model_onnx_says_how_its_images_are_made(self, tmp_path, cache):
        given = {"resize": "pad", "mean": [0.25], "std": [0.5]}
        dataset = DatasetConfig("digits", "", train_limit=128, **given)
        record = run(tmp_path, "", dataset=dataset, cache=CacheConfig(True, str(cache)))
        proto = onnx.load(tmp_path / "run" / "model.onnx")
        found = {p.key: json.loads(p.value) for p in proto.metadata_props}
        assert {key: found[f"pqd.{key}"] for key in given} == given
        final = record["final"]
        assert abs(final["balanced_accuracy"] - final["accuracy"]) < 5  # digits are nearly even
        assert final["dense_balanced_accuracy"] == final["balanced_accuracy"]

    def test_only_the_versions_of_runtimes_in_use_count(self, tmp_path, monkeypatch):
        subject = artifact.Subject(tmp_path, SimpleNamespace(fingerprint="digits"), "tiny", "q")
        before = [subject.identity(()), subject.identity(("onnxruntime", "openvino"))]
        found = measure.machine()
        newer = found | {"versions": found["versions"] | {"openvino": "next"}}
        monkeypatch.setattr(measure, "machine", lambda: newer)
        assert subject.identity(()) == before[0]
        assert subject.identity(("onnxruntime", "openvino")) != before[1]


def test_without_one_of_the_runtimes_a_line_says_so_and_all_else_is_measured(
    tmp_path, monkeypatch, caplog
):
    find = base.util.find_spec
    monkeypatch.setattr(
        base.util, "find_spec", lambda name: None if name == "openvino" else find(name)
    )
    both = RuntimeConfig(threads=[1], min_calls=2, min_seconds=0.0, blocks=2)
    assert both.names == ["onnxruntime", "openvino"]
    record = run(tmp_path, "q", runtime=both, target=TargetConfig(["openvino"]))
    missing = [line for line in caplog.messages if "openvino" in line]
    assert missing == ["runtime openvino is not installed (pip install openvino); left out"]
    assert record["status"] == "completed"
    assert {row["runtime"] for row in record["final"]["latency"]} == {"onnxruntime"}
    assert set(record["final"]["agreement_by_runtime"]) == {"onnxruntime"}


class TestDoubts:
    """What is deployed is compared with what was trained, and a difference is not kept quiet."""

    def spoil(self, monkeypatch, share):
        """Makes every runtime misclassify a share of the test images."""
        right = artifact.Subject.predictions

        def predictions(self, model, runtime="onnxruntime"):
            classes = right(self, model, runtime)
            if model.name == artifact.MODEL:
                classes[: round(share * len(classes))] += 1
            return classes

        monkeypatch.setattr(artifact.Subject, "predictions", predictions)

    def test_a_small_one_is_a_warning_in_the_last_line(self, tmp_path, monkeypatch, capsys):
        self.spoil(monkeypatch, 0.03)
        record = run(tmp_path, "q")
        (warning,) = record["warnings"]
        share = f"{record['final']['agreement']:.2f} %"
        expected = f"classifies {share} of the test images as the network does"
        assert warning == f"model.onnx in ONNX Runtime {expected}"
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith("model.onnx: ")
        assert last.endswith(f"; warning: {warning}")
        assert record["status"] == "completed"

    def test_a_large_one_fails_the_run_and_keeps_all(self, tmp_path, monkeypatch):
        self.spoil(monkeypatch, 0.1)
        with pytest.raises(UserError, match="the files are kept, but this is not the network"):
            run(tmp_path, "q")
        record = json.loads((tmp_path / "run/result.json").read_text())
        assert record["status"] == "failed"
        assert record["final"]["agreement"] == pytest.approx(90, abs=0.5)
        assert (tmp_path / "run/model.onnx").exists()

    def test_what_could_not_be_measured_is_measured_by_the_next_run(self, tmp_path, monkeypatch):
        failing = measure.latency

        def fail(*arguments, **options):
            found = failing(*arguments, **options)
            found.clear()
            found.failed["onnxruntime"] = "no space"
            return found

        with monkeypatch.context() as patch:
            patch.setattr(measure, "latency", fail)
            record = run(tmp_path, "")
        assert record["final"]["latency"] == []
        assert record["warnings"] == ["not everything could be measured: onnxruntime: no space"]
        again = run(tmp_path, "", "again")
        assert again["warnings"] == []
        assert {row["model"] for row in again["final"]["latency"]} == {"dense", "fp32"}
        assert [stage["cached"] for stage in again["stages"]] == [True]
