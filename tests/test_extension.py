"""What an extension adds works everywhere, though nothing in `src/` or `conf/` names it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import configs
import toys
from pqd import pipeline, schema, trainer
from pqd.cache import file_digest
from pqd.config import CacheConfig, RuntimeConfig, TrainConfig
from pqd.constraints import describe
from pqd.errors import UserError
from pqd.networks import load_network
from tiny_runs import EPOCHS, of

ROOT = Path(__file__).parents[1]
COMMAND = (
    "experiment=demo",
    "order.name=pxqd",
    "dataset.train_limit=128",
    *(f"{stage}.epochs=2" for stage in ("baseline", "prune", "toy", "quantize", "distill")),
    "toy.layer=layer1.0.conv1",
    "distill.loss=toy_loss",
    "distill.toy_loss.power=1.5",
    "runtime.names=[toy_runtime]",
    "runtime.threads=[1]",
    "runtime.min_calls=2",
    "runtime.min_seconds=0",
    "runtime.blocks=2",
    "logger.mode=offline",
)
# What somebody's own script does: registers, then is train.py.
SCRIPT = """
import runpy, sys
sys.path[:0] = [{tests!r}, {root!r}]
import toys
toys.register()
runpy.run_path({root!r} + "/train.py", run_name="__main__")
"""


@pytest.fixture
def _toys():
    toys.register()
    yield
    toys.unregister()


def config(tmp_path, order="pxq", cache="cache", **changes):
    given = {
        "dataset": configs.config().dataset.__class__("digits", "", train_limit=128),
        "train": TrainConfig(batch_size=32),
        "runtime": RuntimeConfig(
            names=["toy_runtime"], threads=[1], min_calls=2, min_seconds=0.0, blocks=2
        ),
        "cache": CacheConfig(True, str(tmp_path / cache)),
    }
    for stage in EPOCHS:
        given |= of(stage)
    return configs.config(order, **given | changes)


@pytest.mark.usefixtures("_toys")
class TestStage:
    def test_is_trained_cached_exported_and_measured(self, tmp_path):
        found = pipeline.run(config(tmp_path), tmp_path / "run")
        assert [s.stage for s in found.stages] == ["baseline", "prune", "toy", "quantize"]
        assert found.name == "tiny_digits_pxq_s0.75_w7_seed0"
        assert found.final.agreement >= 99.5
        assert {row.runtime for row in found.final.latency} == {"toy_runtime"}
        assert set(found.final.accuracy_by_runtime) == {"toy_runtime"}
        assert "toy_loss" in found.stages[2].history[0]

        network = load_network(tmp_path / "run")
        assert [c["constraint"] for c in describe(network)] == ["mask", "bounded", "fake_quant"]
        kinds = [type(p).__name__ for p in network.conv2.parametrizations.weight]
        assert kinds == ["Bound", "Mask", "WeightFakeQuant"]
        own = load_file(tmp_path / "cache" / found.stages[2].key / trainer.MODULES)
        assert set(own) == {"projection.weight", "projection.bias"}
        torch.manual_seed(trainer.stage_seed(0, "toy"))
        assert not torch.equal(own["projection.weight"], torch.nn.Linear(10, 1).weight)

        again = pipeline.run(config(tmp_path), tmp_path / "again")
        assert all(stage.cached for stage in again.stages)
        changed = {"toy": configs.settings("toy", strength=0.5)}
        other = pipeline.run(config(tmp_path, **changed), tmp_path / "other")
        assert [s.cached for s in other.stages] == [True, True, False, False]
        assert other.name == "tiny_digits_pxq_s0.75_w7_x0.5_seed0"

    def test_interrupted_it_goes_on_bit_for_bit(self, tmp_path, monkeypatch):
        whole = pipeline.run(config(tmp_path, cache="whole"), tmp_path / "run")
        show, seen = trainer.StageProgress.epoch, 0

        def stop_sometimes(self, metrics):
            nonlocal seen
            show(self, metrics)
            seen += 1
            if seen % 2:
                raise KeyboardInterrupt

        monkeypatch.setattr(trainer.StageProgress, "epoch", stop_sometimes)
        for _ in range(4):
            with pytest.raises(KeyboardInterrupt):
                pipeline.run(config(tmp_path), tmp_path / "again")
        found = pipeline.run(config(tmp_path), tmp_path / "again")
        for stage, expected in zip(found.stages, whole.stages, strict=True):
            assert stage.key == expected.key
            files = [tmp_path / c / stage.key / "model.safetensors" for c in ("cache", "whole")]
            assert file_digest(files[0]) == file_digest(files[1])
        own = [tmp_path / c / found.stages[2].key / trainer.MODULES for c in ("cache", "whole")]
        assert file_digest(own[0]) == file_digest(own[1])

    def test_its_learned_bound_is_trained_and_not_decayed(self, tmp_path):
        decay = TrainConfig(batch_size=32, weight_decay=0.9)
        lr = {"toy": configs.settings("toy", lr=1e-9)}
        found = pipeline.run(config(tmp_path, "x", train=decay, **lr), tmp_path / "run")
        before, after = (load_network(tmp_path / "cache" / s.key) for s in found.stages)
        bound = after.conv2.parametrizations.weight[0].bound
        assert bound.item() == pytest.approx(before.conv2.weight.abs().max().item(), rel=1e-6)

    def test_its_options_are_checked(self, tmp_path):
        with pytest.raises(UserError, match=r"toy.lr=0 must be greater than 0 and finite"):
            schema.options.check(config(tmp_path, toy=configs.settings("toy", lr=0)))
        names = "hinton.*toy_loss"
        with pytest.raises(UserError, match=rf"distill.loss=toy is unknown.*{names}"):
            schema.options.check(config(tmp_path, **of("distill", loss="toy")))


def test_through_the_public_command(tmp_path):
    """The order with the new letter is swept beside pqd, reported and logged."""
    places = [f"cache.dir={tmp_path}/cache", f"hydra.sweep.dir={tmp_path}/sweep"]
    script = SCRIPT.format(tests=str(ROOT / "tests"), root=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-c", script, "-m", *COMMAND, *places, "order.name=pxqd,pqd"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = [json.loads(path.read_text()) for path in tmp_path.glob("sweep/*/result.json")]
    assert {tuple(result["order"]) for result in results} == {
        ("prune", "toy", "quantize", "distill"),
        ("prune", "quantize", "distill"),
    }
    points = (tmp_path / "sweep/points.csv").read_text()
    assert ",pxqd," in points
    report = (tmp_path / "sweep/report.md").read_text()
    assert "pxqd" in report
    assert "Toy Runtime" in report
    assert list(tmp_path.glob("sweep/*/wandb/offline-run-*"))
    assert "pxqd" in done.stdout
