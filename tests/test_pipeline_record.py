"""What a run writes down from its start on, what it says, and which mistakes it names."""

import json
import re
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import save_file

import nets
from nets import Residual, tiny
from pqd import trainer
from pqd.config import BackboneConfig, CacheConfig, TrainConfig
from pqd.errors import UserError
from pqd.stages import STAGES
from tiny_runs import networks, of, run


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
        mine = tiny(10, 1, 8)
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
        def reflecting(*shape):
            net = tiny(*shape)
            net.conv2.padding_mode = "reflect"
            return net

        monkeypatch.setattr(nets, "tiny", reflecting)
        run(tmp_path, "", "dense")  # so that the baseline is in the cache
        monkeypatch.setattr(trainer.training, "fit", None)
        with pytest.raises(UserError, match="stage quantize: backbone layer conv2 pads with"):
            run(tmp_path, "dq")

    def test_what_cannot_be_exported_is_refused_before_anything_is_trained(
        self, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(trainer.training, "fit", None)
        slopes = BackboneConfig("nets.random_slopes", "mine")
        with pytest.raises(UserError, match=r"mine cannot be exported to ONNX: .*aten.rrelu"):
            run(tmp_path, "p", backbone=slopes)

    def test_a_builder_of_ones_own_gets_all_its_arguments_back(self, tmp_path):
        given = BackboneConfig("nets.like_timms", "mine", {"pretrained": True})
        record = run(tmp_path, "p", backbone=given)
        assert [net.conv1.out_channels for net in networks(tmp_path, record)] == [6, 6]

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
        save_file(tiny(10, 1, 8).state_dict(), path)
        run(tmp_path, "", **of("baseline", checkpoint=str(path)))
        assert self.lines(capsys)[0] == "tiny_digits_none_seed0: nothing to train"
