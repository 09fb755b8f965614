"""Runs that remove channels, through the public commands, from the training to the last tool."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import configs
from configs import settings
from pqd import pipeline
from pqd.config import BackboneConfig, CacheConfig, DatasetConfig, RuntimeConfig, TrainConfig
from pqd.constraints import describe
from pqd.measure import macs
from pqd.networks import load_network
from pqd.pruning import latency
from pqd.pruning.latency import Target

ROOT = Path(__file__).parents[1]
PQD = [sys.executable, "-c", "from pqd.cli import main; main()"]
TINY = [
    "backbone=resnet8",
    "dataset=digits",
    "dataset.train_limit=64",
    "quantize=int7",
    "logger=none",
    "train.batch_size=32",
    "train.device=cpu",
    "baseline.epochs=1",
    "prune.epochs=2",
    "quantize.epochs=1",
    "distill.epochs=1",
    "prune.round_to=4",
    "prune.min_channels=4",
    "quantize.calibration_batches=1",
    "runtime.threads=[1]",
    "runtime.min_calls=2",
    "runtime.min_seconds=0",
    "runtime.blocks=2",
]
ORDERS = ("pqd", "qpd", "dqp")
WHATS = ("channels", "channels_and_weights")


def call(line, **options):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(
        line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, **options
    )


def command(folder, *arguments, run="run"):
    places = [f"cache.dir={folder}/cache", f"hydra.run.dir={folder}/{run}"]
    return [sys.executable, "train.py", *TINY, *places, *arguments]


def record(folder):
    return json.loads((folder / "result.json").read_text())


def widths(network):
    """The output channels of every convolution."""
    modules = network.named_modules()
    return {name: m.out_channels for name, m in modules if isinstance(m, torch.nn.Conv2d)}


def epochs(output):
    """The epochs of pruning that an output reports, which are not all."""
    return [int(number) for number in re.findall(r"prune +epoch (\d+)/", output)]


def shape(result):
    return next(s["shape"] for s in result["stages"] if s["stage"] == "prune")


@pytest.mark.slow
class TestCommands:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        """A sweep of both ways to remove channels, in three orders."""
        folder = tmp_path_factory.mktemp("channels")
        arguments = ["-m", f"prune={','.join(WHATS)}", f"order={','.join(ORDERS)}"]
        places = [f"cache.dir={folder}/cache", f"hydra.sweep.dir={folder}/sweep"]
        line = [sys.executable, "train.py", *arguments, *TINY, "prune.macs=0.5", *places]
        done = call(line)
        assert done.returncode == 0, done.stderr
        assert "6 of 6 runs completed" in done.stdout
        return folder

    @pytest.fixture(scope="class")
    def runs(self, folder):
        """The folders of the runs, by what is removed and by order."""
        found = {}
        for path in (folder / "sweep").glob("*/result.json"):
            result = json.loads(path.read_text())
            found[result["config"]["prune"]["what"], result["config"]["order"]["name"]] = (
                path.parent
            )
        assert len(found) == 6
        return found

    @pytest.mark.parametrize("what", WHATS)
    @pytest.mark.parametrize("order", ORDERS)
    def test_the_network_is_smaller_and_says_so(self, runs, what, order):
        folder = runs[what, order]
        result = record(folder)
        assert result["status"] == "completed"
        found = shape(result)
        assert found["asked"] == {"macs": 0.5}
        assert 0.4 < found["macs"] <= 0.5
        network = load_network(folder)
        assert {name: after for name, (_, after) in found["channels"].items()} == {
            **widths(network),
            "fc": 10,
        }
        assert "channels" in [part["constraint"] for part in describe(network)]
        zeros = {"channels": 0.0, "channels_and_weights": 0.8}[what]
        assert result["final"]["sparsity"] == pytest.approx(zeros, abs=0.02)
        budget = {"channels": "macs0.5", "channels_and_weights": "s0.8_macs0.5"}[what]
        assert result["name"] == f"resnet8_digits_{order}_{budget}_w7_seed0_prune={what}"
        assert result["final"]["agreement"] >= 99.5
        deployed = [row for row in result["final"]["latency"] if row["model"] == "int8"]
        dense = [row for row in result["final"]["latency"] if row["model"] == "dense"]
        assert deployed[0]["macs"] / dense[0]["macs"] == pytest.approx(found["macs"], abs=1e-6)

    @pytest.mark.parametrize("what", WHATS)
    def test_it_predicts_packs_and_benches(self, folder, runs, what):
        run = runs[what, "qpd"]
        Image.new("L", (12, 9), 200).save(folder / "gray.png")
        predicted = {
            call([*PQD, "predict", run / name, folder / "gray.png"]).stdout
            for name in ("model.onnx", "model.pqd")
        }
        assert len(predicted) == 1
        assert predicted.pop().startswith(f"{folder}/gray.png: ")
        assert call([*PQD, "unpack", run / "model.pqd", folder / "m.onnx"]).returncode == 0
        assert (folder / "m.onnx").read_bytes() == (run / "model.onnx").read_bytes()
        assert call([*PQD, "pack", run / "model.onnx", folder / "m.pqd"]).returncode == 0
        assert (folder / "m.pqd").read_bytes() == (run / "model.pqd").read_bytes()
        benched = call([*PQD, "bench", run, "--threads", "1"])
        assert benched.returncode == 0, benched.stderr
        assert next(run.glob("bench-*.json"))

    def test_it_teaches_and_is_taught(self, folder, runs):
        teacher = runs["channels", "pqd"]
        done = call(
            command(
                folder, "order=partial/pd", "prune=channels", "prune.macs=0.3",
                f"distill.teacher='{teacher}'", run="taught",
            )
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        taught = record(folder / "taught")
        stage = taught["stages"][-1]
        assert stage["teacher_accuracy"] is not None
        assert shape(taught)["macs"] < shape(record(teacher))["macs"]
        dense = call(
            command(folder, "order=partial/d", f"distill.teacher='{teacher}'", run="dense")
        )
        assert dense.returncode == 0, dense.stderr
        full = record(folder / "dense")
        assert full["stages"][-1]["teacher_accuracy"] == stage["teacher_accuracy"]
        assert widths(load_network(folder / "dense"))["layer3.0.conv1"] == 64

    def test_killed_in_the_middle_of_pruning_it_goes_on(self, tmp_path):
        arguments = ["order=partial/p", "prune=channels", "prune.macs=0.4", "prune.epochs=60"]
        whole = call(command(tmp_path / "whole", *arguments))
        assert whole.returncode == 0, whole.stderr
        place = tmp_path / "killed"
        line = command(place, *arguments)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
        with (tmp_path / "output").open("w") as output:
            process = subprocess.Popen(line, cwd=ROOT, env=environment, stdout=output)
        log = place / "run/train.log"
        while not (log.exists() and (before := epochs(log.read_text()))):
            assert process.poll() is None, (tmp_path / "output").read_text()
            time.sleep(0.01)
        process.kill()
        process.wait()
        assert record(place / "run")["status"] == "running"
        again = call(line)
        assert again.returncode == 0, again.stderr
        assert before[-1] < epochs(again.stdout)[0]
        ends = record(tmp_path / "whole/run"), record(place / "run")
        assert shape(ends[0]) == shape(ends[1])
        one, two = (
            load_network(tmp_path / name / "run").state_dict() for name in ("whole", "killed")
        )
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)


class TestMistakes:
    """One line each, before anything is trained."""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("arguments", "line"),
        [
            (
                ["prune.macs=0.5", "prune.speedup=2"],
                "prune.macs=0.5 and prune.speedup=2.0: a network has one budget; give one of",
            ),
            (["prune.speedup=0.5"], "prune.speedup=0.5 is too small; at least 1 is accepted"),
            (
                ["prune.macs=0.5", "prune.round_to=100"],
                "prune.round_to=100 and prune.min_channels=4 leave no channels to remove; the "
                "widest layer has 64",
            ),
            (["prune.macs=0.001"], "prune.macs=0.001 is out of reach; the smallest that"),
        ],
    )
    def test_one_line(self, tmp_path, arguments, line):
        done = call(command(tmp_path, "order=partial/p", "prune=channels", *arguments))
        assert done.returncode == 1
        (told,) = done.stderr.strip().splitlines()
        assert line in told
        assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").glob("*/*.safe*"))


class Clock:
    """A machine that takes a time per MAC, whatever the runtime; tells what it was asked."""

    def __init__(self, monkeypatch, overhead):
        self.overhead, self.asked = overhead, 0
        monkeypatch.setattr(Target, "times", self.times)
        monkeypatch.setattr(Target, "layer_ms", self.layer_ms)
        monkeypatch.setattr(latency, "_LAYERS", {})

    def layer_ms(self, path, read):
        return 1e-6 * path.stat().st_size * np.prod(read[2:])

    def times(self, files, image):
        self.asked += 1
        ms = {name: self.overhead + 1e-6 * macs(path) for name, path in files.items()}
        return {name: [np.array([value])] * 6 for name, value in ms.items()}


def test_a_finished_stage_keeps_its_shape_whatever_is_measured_later(tmp_path, monkeypatch):
    def run(order, name):
        given = {
            "prune": settings(
                "prune", epochs=1, what="channels", sparsity=0.0, speedup=1.5, round_to=4,
                min_channels=4,
            ),
            "baseline": settings("baseline", epochs=1),
            "quantize": settings("quantize", epochs=1, calibration_batches=1),
        }  # fmt: skip
        config = configs.config(
            order,
            backbone=BackboneConfig("resnet8", "resnet8"),
            dataset=DatasetConfig("digits", "", train_limit=64),
            train=TrainConfig(batch_size=32, device="cpu"),
            runtime=RuntimeConfig(threads=[1], min_calls=2, min_seconds=0.0, blocks=2),
            cache=CacheConfig(True, str(tmp_path / "cache")),
            **given,
        )
        return asdict(pipeline.run(config, tmp_path / name))

    first = Clock(monkeypatch, overhead=0.0)
    one = run("p", "one")
    assert first.asked > 0
    assert shape(one)["measured"]["dense_ms"] / shape(one)["measured"]["pruned_ms"] > 1.4
    other = Clock(monkeypatch, overhead=0.1)  # where removing channels brings less
    two = run("pq", "two")
    assert other.asked == 0
    assert [s["cached"] for s in two["stages"]] == [True, True, False]
    assert shape(two) == shape(one)
    assert widths(load_network(tmp_path / "two")) == widths(load_network(tmp_path / "one"))
