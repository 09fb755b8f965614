"""Whole runs on a tiny network and a few real digits: orders, cache, resume, what goes wrong."""

import itertools
import json
import re
from dataclasses import asdict, replace
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import save_file
from torch import nn

import configs
from configs import settings
from nets import Residual
from pqd import artifact, measure, pipeline, trainer
from pqd.backbones.build import BUILDERS
from pqd.cache import file_digest
from pqd.config import (
    AugmentConfig,
    BackboneConfig,
    CacheConfig,
    DatasetConfig,
    RuntimeConfig,
    TargetConfig,
    TrainConfig,
)
from pqd.constraints.fake_quant import activation_fake_quants
from pqd.constraints.mask import masks, sparsity
from pqd.errors import UserError
from pqd.networks import load_network
from pqd.runtimes import REFERENCE, base
from pqd.stages import STAGES

NAMES = {"p": "prune", "q": "quantize", "d": "distill"}
SIX = ["".join(order) for order in itertools.permutations("pqd")]
PARTIAL = ["", *NAMES, *("".join(order) for order in itertools.permutations("pqd", 2))]


class Tiny(Residual):
    """The residual network for digits: one channel, ten classes."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.fc = nn.Linear(8, 10)


@pytest.fixture(autouse=True)
def _tiny_backbone(monkeypatch):
    monkeypatch.setitem(BUILDERS, "tiny", lambda classes, channels, image_size: Tiny())


@pytest.fixture
def unmeasured(monkeypatch):
    """Leaves export and measurement out."""
    monkeypatch.setattr(artifact, "make_dense", lambda subject, folder: _touch(folder))
    monkeypatch.setattr(artifact, "make", lambda subject, dense, folder: _touch(folder))
    monkeypatch.setattr(artifact, "figures", lambda subject, dense, made, runtime: {})
    monkeypatch.setattr(pipeline, "stage_table", lambda found: found.name)
    monkeypatch.setattr(pipeline, "ending", lambda found, folder, told: [])


def _touch(folder):
    (folder / artifact.DENSE_MODEL).write_text("")
    return {"dense_accuracy": 0.0, "accuracy": 0.0, "sparsity": 0.0}


EPOCHS = {"baseline": 2, "prune": 2, "quantize": 2, "distill": 2}
LR = {"baseline": 0.1, "prune": 0.05, "quantize": 0.02, "distill": 0.05}
OPTIONS = {
    "prune": {"sparsity": 0.75},
    "quantize": {"weight_bits": 7, "calibration_batches": 1},
}


def of(stage, **options):
    """Changes of one stage's settings."""
    given = {"epochs": EPOCHS[stage], "lr": LR[stage]} | OPTIONS.get(stage, {}) | options
    return {stage: settings(stage, **given)}


def config(tmp_path, order, **changes):
    given = {
        "backbone": BackboneConfig("tiny", "tiny"),
        "dataset": DatasetConfig("digits", "", train_limit=128),
        "train": TrainConfig(batch_size=32),
        "runtime": RuntimeConfig([REFERENCE], [1], min_calls=2, min_seconds=0.0, blocks=2),
        "cache": CacheConfig(True, str(tmp_path / "cache")),
    }
    for stage in EPOCHS:
        given |= of(stage)
    return configs.config(order or "none", **given | changes)


def run(tmp_path, order, name="run", **changes):
    """The result of a run, as it is in result.json."""
    return asdict(pipeline.run(config(tmp_path, order, **changes), tmp_path / name))


def networks(tmp_path, record):
    """The network after each stage of a run."""
    return [load_network(tmp_path / "cache" / stage["key"]) for stage in record["stages"]]


@pytest.mark.usefixtures("unmeasured")
class TestStopping:
    def test_a_run_stops_after_the_first_stage_that_is_not_good_enough(self, tmp_path):
        below = {"baseline": 0.0, "prune": 101.0, "distill": 101.0}
        record = run(tmp_path, "qpd", stop_below=below)
        assert [stage["stage"] for stage in record["stages"]] == ["baseline", "quantize", "prune"]
        assert (record["status"], record["final"]) == ("stopped", None)
        accuracy = record["stages"][-1]["validation_accuracy"]
        assert record["reason"] == (
            f"after prune the validation accuracy is {accuracy:.2f} %, below stop_below.prune=101"
        )
        # Its stages are kept.
        whole = run(tmp_path, "qpd", name="whole")
        cached = [stage["stage"] for stage in whole["stages"] if stage["cached"]]
        assert cached == ["baseline", "quantize", "prune"]

    def test_a_job_that_is_to_start_again_has_not_failed(self, tmp_path, monkeypatch):
        monkeypatch.setattr(trainer.training, "fit", Mock(side_effect=SystemExit(-1)))
        with pytest.raises(SystemExit):
            run(tmp_path, "p")
        record = json.loads((tmp_path / "run/result.json").read_text())
        assert record["status"] == "interrupted"
        assert record["reason"] == "stopped at its time limit, or preempted"

    def test_a_dry_run_trains_nothing_and_says_what_is_there(self, tmp_path, monkeypatch):
        run(tmp_path, "p", name="before")
        monkeypatch.setattr(trainer.Trainer, "train", None)
        record = run(tmp_path, "pq", dry_run=True)
        assert (record["status"], record["stages"]) == ("stopped", [])
        assert record["reason"] == "dry run: nothing is trained; in the cache: baseline, prune"


@pytest.mark.usefixtures("unmeasured")
class TestOrders:
    @pytest.mark.parametrize("order", [*SIX, *PARTIAL], ids=lambda order: order or "none")
    def test_constraints_hold_from_their_stage_on(self, tmp_path, order):
        record = run(tmp_path, order)
        assert record["status"] == "completed"
        assert [s["stage"] for s in record["stages"]] == ["baseline", *(NAMES[x] for x in order)]
        fixed = None
        for done, network in enumerate(networks(tmp_path, record)):
            pruned, quantized = "p" in order[:done], "q" in order[:done]
            assert bool(masks(network)) == pruned
            assert bool(activation_fake_quants(network)) == quantized
            found = {name: mask.mask for name, mask in masks(network).items()}
            if pruned:
                zeros = sum(int((~mask).sum()) for mask in found.values())
                total = sum(mask.numel() for mask in found.values())
                assert abs(zeros - 0.75 * total) <= 1
                assert record["stages"][done]["sparsity"] == sparsity(network)
                fixed = fixed or found
                assert all(torch.equal(mask, fixed[name]) for name, mask in found.items())

    def test_six_orders_share_their_prefixes(self, tmp_path):
        records = [run(tmp_path, order, order) for order in SIX]
        trained = [s["key"] for r in records for s in r["stages"] if not s["cached"]]
        assert len(trained) == len(set(trained)) == 1 + 15

    def test_without_the_cache_a_run_trains_everything_and_ends_the_same(self, tmp_path):
        record = run(tmp_path, "pqd")
        alone = run(tmp_path, "pqd", "alone", cache=CacheConfig(False, ""))
        assert [s["cached"] for s in alone["stages"]] == [False] * 4
        key = record["stages"][-1]["key"]
        assert key == alone["stages"][-1]["key"]
        file = f"{key}/model.safetensors"
        mine, other = tmp_path / "cache" / file, tmp_path / "alone/stages" / file
        assert file_digest(mine) == file_digest(other)

    def test_a_rerun_trains_nothing(self, tmp_path, monkeypatch):
        run(tmp_path, "qd")
        monkeypatch.setattr(trainer.training, "fit", None)
        again = run(tmp_path, "qd", "again")
        assert [s["cached"] for s in again["stages"]] == [True] * 3

    @pytest.mark.parametrize(
        ("changes", "retrained"),
        [
            ({"seed": 1}, ["baseline", "prune", "quantize"]),
            (of("prune", sparsity=0.5), ["prune", "quantize"]),
            (of("quantize", weight_bits=8), ["quantize"]),
            ({"target": TargetConfig(["openvino"])}, ["quantize"]),
            ({"runtime": RuntimeConfig()}, []),
        ],
        ids=["seed", "prune", "quantize", "target", "runtime"],
    )
    def test_a_changed_setting_retrains_what_depends_on_it(self, tmp_path, changes, retrained):
        run(tmp_path, "pq")
        again = run(tmp_path, "pq", "again", **changes)
        assert [s["stage"] for s in again["stages"] if not s["cached"]] == retrained

    def test_a_teacher_asked_once_teaches_the_same(self, tmp_path):
        base = config(tmp_path, "d")
        still = replace(base.dataset, augment=AugmentConfig(0, False))
        train = replace(base.train, precision="fp32")  # as the logits are asked for
        losses = []
        for known in (False, True):
            changes = {"dataset": still, "train": train} | of("distill", cache_logits=known)
            record = run(tmp_path, "d", f"known{known}", **changes)
            assert not record["stages"][-1]["cached"]
            losses.append([epoch["kd_loss"] for epoch in record["stages"][-1]["history"]])
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)

    def test_a_new_version_of_a_stage_retrains_it(self, tmp_path, monkeypatch):
        run(tmp_path, "pq")
        monkeypatch.setattr(STAGES["quantize"], "version", 99)
        again = run(tmp_path, "pq", "again")
        assert [s["cached"] for s in again["stages"]] == [True, True, False]


@pytest.mark.usefixtures("unmeasured")
class TestResume:
    @pytest.mark.parametrize("order", ["pqd", "qpd", "dqp"])
    def test_an_interrupted_run_goes_on_bit_for_bit(self, tmp_path, order, monkeypatch):
        whole = run(tmp_path, order, cache=CacheConfig(True, str(tmp_path / "whole")))
        epochs = 0
        show = trainer.StageProgress.epoch

        def stop_sometimes(self, metrics):
            nonlocal epochs
            show(self, metrics)
            epochs += 1
            if epochs % 2:  # after the first epoch of every stage, and of every stage's second try
                raise KeyboardInterrupt

        monkeypatch.setattr(trainer.StageProgress, "epoch", stop_sometimes)
        statuses = []
        while "completed" not in statuses:
            try:
                record = run(tmp_path, order)
            except KeyboardInterrupt:
                record = json.loads((tmp_path / "run/result.json").read_text())
            statuses.append(record["status"])
        assert statuses == ["interrupted"] * 4 + ["completed"]
        for stage, expected in zip(record["stages"], whole["stages"], strict=True):
            assert stage["key"] == expected["key"]
            # The costs of every try count, not only the last one's.
            assert stage["seconds"] == round(sum(epoch["seconds"] for epoch in stage["history"]), 2)
            assert [epoch["epoch"] for epoch in stage["history"]] == [1, 2]
            file = f"{stage['key']}/model.safetensors"
            assert file_digest(tmp_path / "cache" / file) == file_digest(tmp_path / "whole" / file)
        assert not list((tmp_path / "cache").glob("*.checkpoint"))

    def test_a_damaged_entry_is_made_again(self, tmp_path, caplog):
        record = run(tmp_path, "q")
        file = tmp_path / "cache" / record["stages"][1]["key"] / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        again = run(tmp_path, "q", "again")
        assert [s["cached"] for s in again["stages"]] == [True, False]
        assert "is damaged; it is made again" in caplog.text
        assert file.read_bytes() != content


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


@pytest.mark.usefixtures("unmeasured")
class TestFolder:
    """What a run's folder holds at which time, and that no other run takes it."""

    def test_from_the_start_there_is_a_record(self, tmp_path, monkeypatch):
        there = []

        def look(self, *_):
            there.append(json.loads((tmp_path / "run/result.json").read_text()))

        monkeypatch.setattr(trainer.StageProgress, "epoch", look)
        record = run(tmp_path, "")
        assert [(r["status"], r["reason"], r["stages"]) for r in there] == [
            ("running", None, [])
        ] * 2
        assert there[0]["config_hash"] == record["config_hash"]
        assert json.loads((tmp_path / "run/result.json").read_text())["status"] == "completed"

    @pytest.mark.parametrize("status", ["completed", "running"])
    def test_another_runs_results_are_not_replaced(self, tmp_path, monkeypatch, status):
        record = run(tmp_path, "p")
        path = tmp_path / "run/result.json"
        path.write_text(json.dumps(record | {"status": status}))
        before = path.read_bytes()
        with pytest.raises(UserError) as caught:
            run(tmp_path, "p", **of("prune", sparsity=0.5))
        assert str(caught.value) == (
            f"{tmp_path}/run holds another configuration's results (tiny_digits_p_s0.75_seed0, "
            f"{status}), which would be lost; choose another folder or remove this one"
        )
        assert path.read_bytes() == before

    @pytest.mark.parametrize("status", ["failed", "interrupted"])
    def test_a_failed_one_is_replaced(self, tmp_path, status):
        record = run(tmp_path, "p")
        path = tmp_path / "run/result.json"
        path.write_text(json.dumps(record | {"status": status}))
        assert run(tmp_path, "", "run")["name"] == "tiny_digits_none_seed0"

    def test_the_same_run_goes_on_wherever_it_keeps_its_stages(self, tmp_path):
        run(tmp_path, "")
        elsewhere = CacheConfig(True, str(tmp_path / "elsewhere"))
        assert run(tmp_path, "", cache=elsewhere)["status"] == "completed"


@pytest.mark.usefixtures("unmeasured")
class TestMistakes:
    def test_a_diverging_stage_is_named_and_what_came_before_is_kept(self, tmp_path):
        with pytest.raises(UserError, match=r"^stage prune: the loss became nan in epoch 1 of 2"):
            run(tmp_path, "p", **of("prune", lr=1e30))
        record = json.loads((tmp_path / "run/result.json").read_text())
        assert record["status"] == "failed"
        assert record["reason"].startswith("stage prune: the loss became")
        assert [s["stage"] for s in record["stages"]] == ["baseline"]
        assert record["final"] is None

    def test_a_wrong_teacher(self, tmp_path):
        with pytest.raises(UserError, match=r"distill.teacher=.*none cannot be read: No such"):
            run(tmp_path, "d", **of("distill", teacher=str(tmp_path / "none")))

    def test_a_dense_checkpoint_of_ones_own(self, tmp_path):
        path = tmp_path / "mine.safetensors"
        torch.manual_seed(3)
        mine = Tiny()
        save_file(mine.state_dict(), path)
        record = run(tmp_path, "", **of("baseline", checkpoint=str(path)))
        (baseline,) = networks(tmp_path, record)
        assert record["stages"][0]["epochs"] == 0
        assert torch.equal(baseline.fc.weight, mine.fc.weight)

        save_file(Residual().state_dict(), path)
        with pytest.raises(UserError, match=r"stage baseline: checkpoint .* conv1.weight is"):
            run(tmp_path, "", **of("baseline", checkpoint=str(path)))
        with pytest.raises(UserError, match=r"baseline.checkpoint=.* cannot be read: No such"):
            run(tmp_path, "", **of("baseline", checkpoint=str(tmp_path / "none")))

    def test_constraints_are_tried_before_anything_is_trained(self, tmp_path, monkeypatch):
        class Reflecting(Tiny):
            def __init__(self):
                super().__init__()
                self.conv2.padding_mode = "reflect"

        monkeypatch.setitem(BUILDERS, "tiny", lambda *shape: Reflecting())
        run(tmp_path, "", "dense")  # so that the baseline is in the cache
        monkeypatch.setattr(trainer.training, "fit", None)
        with pytest.raises(UserError, match="stage quantize: backbone layer conv2 pads with"):
            run(tmp_path, "dq")

    def test_cuda_where_there_is_none(self, tmp_path):
        if torch.cuda.is_available():
            pytest.skip("this machine has CUDA")
        train = TrainConfig(device="cuda")
        with pytest.raises(UserError, match=r"train.device=cuda, but this machine has no CUDA"):
            run(tmp_path, "p", train=train)


class TestTold:
    """What a run says, line by line; without what rich draws and what depends on time."""

    def lines(self, capsys):
        return [line.rstrip() for line in capsys.readouterr().out.splitlines()]

    @pytest.mark.usefixtures("unmeasured")
    def test_what_was_trained_before_a_kill_is_not_forecast(self, tmp_path, monkeypatch, capsys):
        with monkeypatch.context() as killed:
            killed.setattr(STAGES["baseline"], "finish", Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path, "q")
        self.lines(capsys)
        run(tmp_path, "q")
        (line,) = [line for line in self.lines(capsys) if line.startswith("training takes about")]
        assert line.endswith(": 2 epochs of 4 steps")  # of the second stage alone

    def test_from_its_first_line_to_its_last(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        record = run(tmp_path, "q")
        lines = self.lines(capsys)
        assert lines[:2] == [
            "tiny_digits_q_w7_seed0: epochs: baseline 2, quantize 2",
            "writes model.onnx, model.pqd and result.json to run, finished stages to cache",
        ]
        steps = "this first epoch: 4 epochs of 4 steps"
        assert re.fullmatch(f"training takes about .*s if all is as fast as {steps}", lines[3])
        (first, *_) = [i for i, line in enumerate(lines) if line.startswith("dense ")]
        assert lines[first : first + 3] == [
            "dense     exporting dense.onnx and testing it on 449 images",
            "artifact  exporting model.onnx, packing it and testing it on 449 images",
            "figures   testing and timing in ONNX Runtime, 0 s or more per model, number of "
            "threads and batch size",
        ]
        assert lines[-3].startswith("folder: run (dense.onnx ")
        size = record["final"]["sizes"]["package"] / 1024
        assert f", model.pqd {size:.2f} KiB" in lines[-3]
        assert lines[-2] == "next: pqd predict run/model.onnx IMAGE; pqd bench run; pqd report run"
        assert lines[-1].startswith("model.onnx: ")
        assert "; 1 thread, batch 1: ONNX Runtime " in lines[-1]
        run(tmp_path, "q", "again")  # all of it is in the cache
        assert "exporting" not in " ".join(self.lines(capsys))

    def test_a_loaded_baseline_trains_no_epochs(self, tmp_path, capsys):
        path = tmp_path / "mine.safetensors"
        save_file(Tiny().state_dict(), path)
        run(tmp_path, "", **of("baseline", checkpoint=str(path)))
        assert self.lines(capsys)[0] == "tiny_digits_none_seed0: nothing to train"


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
