"""Whole runs on a tiny network and a few real digits: orders, cache, resume."""

import itertools
import json
from dataclasses import replace
from functools import partial
from unittest.mock import Mock

import pytest
import torch
from torch import nn

import nets
from pqd import trainer
from pqd.cache import Cache, file_digest
from pqd.config import AugmentConfig, BackboneConfig, CacheConfig, RuntimeConfig, TargetConfig
from pqd.constraints.fake_quant import activation_fake_quants
from pqd.constraints.mask import masks, sparsity
from pqd.identity import wanted
from pqd.stages import STAGES
from tiny_runs import SIX, config, networks, of, run

NAMES = {"p": "prune", "q": "quantize", "d": "distill"}
PARTIAL = ["", *NAMES, *("".join(order) for order in itertools.permutations("pqd", 2))]


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
        known = {name for order in SIX for name in wanted(config(tmp_path, order)).values()}
        assert Cache(tmp_path / "cache").names() == known

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

    def test_another_network_of_ones_own_of_the_same_name_is_trained(self, tmp_path, monkeypatch):
        own = {"backbone": BackboneConfig("nets.tiny", "mine")}
        cached = []
        for activation in (nn.ReLU(), nn.ReLU(), nn.ReLU6()):
            monkeypatch.setattr(nets, "tiny", partial(nets.tiny, activation=activation))
            record = run(tmp_path, "q", f"run{len(cached)}", **own)
            cached.append([stage["cached"] for stage in record["stages"]])
        assert cached == [[False] * 2, [True] * 2, [False] * 2]

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
