"""Budgets in time: what is measured decides the shape, and is written down."""

import copy

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import configs
from configs import settings
from pqd.backbones import build
from pqd.config import BackboneConfig, RuntimeConfig
from pqd.constraints import attach, describe
from pqd.constraints.mask import Masks
from pqd.constraints.quantization import FakeQuantization
from pqd.data import Batch
from pqd.errors import UserError
from pqd.graph.channels import channels
from pqd.identity import stage_keys
from pqd.measure import is_quantized, macs
from pqd.pruning import latency
from pqd.pruning.channels import narrowed
from pqd.pruning.cost import Shapes
from pqd.pruning.latency import Target, table
from pqd.pruning.layer_onnx import write_layer
from pqd.runtimes import get
from pqd.stages import STAGES, Context

OVERHEAD = 0.2  # ms that no layer's table knows of
PER_MAC = 1e-5  # ms


class Batches:
    """One batch of two images."""

    def __len__(self):
        return 4

    def epoch(self, seed):
        yield Batch(torch.zeros(2, 3, 8, 8), torch.zeros(2).long(), torch.arange(2))


def prune(runtime="onnxruntime", **given):
    usual = {"what": "channels", "sparsity": 0.0, "round_to": 1, "min_channels": 1, "updates": 1}
    config = configs.config(
        "p", prune=settings("prune", **usual | given), runtime=RuntimeConfig([runtime], [1], [1])
    )
    return STAGES["prune"](Context(config, None, Batches(), torch.device("cpu"), 2, 0, None))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build(BackboneConfig("resnet8", "resnet8"), 10, 3, 8)


@pytest.fixture
def machine(monkeypatch):
    """A machine that takes `OVERHEAD` and `PER_MAC`, and counts what it measures."""
    asked = []

    def write(network, narrowed, path, image, scheme):
        smaller = copy.deepcopy(network)
        if narrowed is not None:
            narrowed.attach(smaller)
        shapes = Shapes(smaller, channels(smaller, image))
        path.write_text(str(OVERHEAD + PER_MAC * shapes.macs(shapes.dense)))

    def times(self, files, image):
        asked.append(sorted(files))
        return {name: [np.array([float(path.read_text())])] * 6 for name, path in files.items()}

    def layer_table(target, found, shapes, round_to):
        return lambda units: 2 * PER_MAC * shapes.macs(units)  # a table is never exact

    monkeypatch.setattr(latency, "_MET", {})
    monkeypatch.setattr(latency, "_write", write)
    monkeypatch.setattr(Target, "times", times)
    monkeypatch.setattr("pqd.pruning.channels.table", layer_table)
    return asked


def shape(stage, model):
    stage.attach(model)
    for step in range(stage.context.steps):
        stage.before_step(model, step)
    return stage.finish(model)["shape"]


class TestVerdict:
    @pytest.mark.parametrize("speedup", [1.0, 1.5, 3.0])
    def test_a_speed_up_is_met_as_measured(self, model, machine, speedup):
        found = shape(prune(speedup=speedup), model)
        assert found["asked"] == {"speedup": speedup}
        measured = found["measured"]
        assert measured["dense_ms"] / measured["pruned_ms"] == pytest.approx(speedup, rel=0.05)
        own = Shapes(model, channels(model, (3, 8, 8)))
        assert measured["pruned_ms"] == pytest.approx(OVERHEAD + PER_MAC * own.macs(own.dense))
        assert (measured["runtime"], measured["threads"], measured["batch_size"]) == (
            "onnxruntime", 1, 1,
        )  # fmt: skip

    def test_a_speed_up_of_one_keeps_all_channels_whatever_is_measured(
        self, model, machine, monkeypatch
    ):
        drawn = iter(np.linspace(1.0, 3.0, 100))  # a machine that gets slower and slower

        def times(self, files, image):
            return {name: [np.array([next(drawn)])] * 6 for name in files}

        monkeypatch.setattr(Target, "times", times)
        found = shape(prune(speedup=1.0), model)
        assert found["macs"] == found["parameters"] == 1.0
        assert found["measured"]["dense_ms"] == found["measured"]["pruned_ms"] == 1.0

    def test_a_latency_is_met_as_measured(self, model, machine):
        found = shape(prune(latency_ms=0.5), model)
        assert found["measured"]["pruned_ms"] == pytest.approx(0.5, rel=0.05)
        assert found["asked"] == {"latency_ms": 0.5}

    @pytest.mark.parametrize("budget", [{"speedup": 2.0}, {"latency_ms": 0.5}])
    def test_what_met_a_budget_before_is_tried_first(self, model, machine, budget):
        first = shape(prune(**budget), copy.deepcopy(model))
        machine.clear()
        assert shape(prune(**budget), model)["measured"] == first["measured"]
        assert machine == [["dense", "pruned"]]

    def test_it_is_measured_before_the_first_step_only(self, model, machine):
        stage = prune(speedup=2.0)
        stage.attach(model)
        assert machine == []
        stage.before_step(model, 0)
        count = len(machine)
        assert count > 0
        stage.before_step(model, 1)
        assert len(machine) == count

    def test_a_resumed_stage_does_not_measure(self, model, machine):
        stage, again = prune(speedup=2.0), prune(speedup=2.0)
        stage.attach(model)
        stage.before_step(model, 0)
        again.attach(model)
        again.modules.load_state_dict(stage.modules.state_dict())
        machine.clear()
        again.before_step(model, 1)
        assert machine == []
        assert torch.equal(again.channels.ramp.final, stage.channels.ramp.final)

    def test_out_of_reach_names_the_smallest(self, model, machine):
        stage = prune(speedup=50.0)
        stage.attach(model)
        message = r"prune.speedup=50.0 is out of reach on this machine; .* measured [\d.]+$"
        with pytest.raises(UserError, match=message):
            stage.before_step(model, 0)

    def test_a_table_that_finds_the_first_cut_too_cheap_is_corrected(
        self, model, machine, monkeypatch
    ):
        def layer_table(target, found, shapes, round_to):
            whole = shapes.macs(shapes.dense)
            return lambda units: (1 if shapes.macs(units) == whole else 0.1) * shapes.macs(units)

        monkeypatch.setattr("pqd.pruning.channels.table", layer_table)
        measured = shape(prune(speedup=1.5), model)["measured"]
        assert measured["dense_ms"] / measured["pruned_ms"] == pytest.approx(1.5, rel=0.05)

    def test_where_time_jumps_the_faster_side_is_taken(self, model, machine, monkeypatch, caplog):
        def jump(ms):
            return 1.0 if ms > 0.5 else 0.2

        def times(self, files, image):
            ms = {name: jump(float(path.read_text())) for name, path in files.items()}
            return {name: [np.array([value])] * 6 for name, value in ms.items()}

        monkeypatch.setattr(Target, "times", times)
        found = shape(prune(speedup=2.0), model)
        assert found["measured"]["pruned_ms"] == 0.2
        assert "no shape is within 5 % of the budget" in caplog.text
        own = Shapes(model, channels(model, (3, 8, 8)))
        # The largest of the fast ones, nearly.
        assert 0.45 < OVERHEAD + PER_MAC * own.macs(own.dense) <= 0.5

    def test_a_runtime_of_float_networks_is_refused(self, model):
        with pytest.raises(UserError, match=r"runtime.names=\['torch'\].*INT8"):
            prune("torch", speedup=2.0).attach(model)


@pytest.mark.parametrize("order", ["", "q", "m"])
def test_what_is_measured_is_a_smaller_int8_file(model, order, tmp_path):
    given = {"q": FakeQuantization(63), "m": Masks(["conv1", "fc"])}
    for letter in order:
        attach(model, given[letter])
    stage = prune(speedup=2.0)
    stage.attach(model)
    before = describe(model)
    half = stage.channels.shapes.dense // 2
    path = tmp_path / "pruned.onnx"
    latency._write(model, narrowed(model, stage.channels.groups, half), path, (3, 8, 8))
    assert is_quantized(path)
    assert macs(path) == stage.channels.shapes.macs(half)
    assert describe(model) == before


class TestIdentity:
    def test_where_time_is_measured_counts(self):
        def key(names, **given):
            pruned = settings("prune", what="channels", sparsity=0.0, **given)
            config = configs.config("p", prune=pruned, runtime=RuntimeConfig(names, [1], [1]))
            return stage_keys(config)["prune"]

        assert key(["onnxruntime"], speedup=2.0) != key(["openvino"], speedup=2.0)
        assert key(["onnxruntime"], speedup=2.0) == key(["onnxruntime", "torch"], speedup=2.0)
        assert key(["onnxruntime"], macs=0.5) == key(["openvino"], macs=0.5)


class TestTable:
    @pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
    @pytest.mark.parametrize(
        ("layer", "sizes", "read", "written"),
        [
            (nn.Conv2d(3, 8, 3, stride=2, padding=1), (16, 8, 1), (1, 8, 9, 9), (1, 16, 5, 5)),
            (nn.Conv2d(8, 8, 3, groups=8), (6, 6, 6), (2, 6, 5, 5), (2, 6, 3, 3)),
            (nn.Linear(8, 4), (4, 5, 1), (3, 5), (3, 4)),
        ],
    )
    def test_a_layer_runs_at_other_sizes(self, runtime, layer, sizes, read, written, tmp_path):
        if get(runtime).unavailable():
            pytest.skip(f"{runtime} is not installed")
        write_layer(layer, sizes, tmp_path / "layer.onnx")
        session = get(runtime).open(tmp_path / "layer.onnx", 1)
        assert session(np.ones(read, np.uint8)).shape == written
        session.bind(np.ones(read, np.uint8))()

    def test_interpolates_what_is_measured(self, model, monkeypatch):
        files = []

        def layer_ms(self, path, read):
            files.append(read)
            dims = next(t.dims for t in onnx.load(path).graph.initializer if t.name == "weight")
            return float(np.prod(dims) * np.prod(read[2:]))

        monkeypatch.setattr(Target, "layer_ms", layer_ms)
        monkeypatch.setattr(latency, "_LAYERS", {})
        found = channels(model, (3, 8, 8))
        shapes = Shapes(model, found)
        cost = table(Target(RuntimeConfig(["onnxruntime"], [1], [1])), found, shapes, 1)

        def expected(units):
            out, read = shapes.size("out", units), shapes.size("in", units)
            return sum(
                np.prod(getattr(layer.module, "kernel_size", 1))
                * out[i] * read[i] * np.prod(found.read[layer.name][1:])
                for i, layer in enumerate(shapes.layers)
                if layer.name in found.read
            )  # fmt: skip

        for units in (shapes.dense, shapes.dense * 3 // 4, np.full_like(shapes.dense, 9)):
            assert cost(units) == pytest.approx(expected(units))  # bilinear: exact here
        assert len(files) <= 25 * len(found.read)
        measured = len(files)
        target = Target(RuntimeConfig(["onnxruntime"], [1], [1]))
        assert table(target, found, shapes, 1)(shapes.dense) == cost(shapes.dense)
        assert len(files) == measured  # another stage of the process needs none
        table(Target(RuntimeConfig(["onnxruntime"], [2], [1])), found, shapes, 1)
        assert len(files) == 2 * measured
