"""W&B: names of figures, and epochs that are counted and there once."""

import pytest
import wandb

from pqd import tracking
from pqd.result import Final
from pqd.tracking.records import final_figures
from wandb_runs import FakeRun, completed, epochs, log


def test_epochs_are_counted_over_all_stages_too(wandb_config, tmp_path, monkeypatch):
    run = FakeRun()
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    log(wandb_config, tmp_path)
    stages = ("baseline", "prune", "quantize", "distill")
    assert [(row["epoch"], *list(row)[:1]) for row in run.logged] == [
        (2 * before + epoch, f"{stage}/epoch")
        for before, stage in enumerate(stages)
        for epoch in (1, 2)
    ]
    assert run.summary["epoch"] == 8


def test_figures_have_stable_names():
    figures = final_figures(completed().final)
    expected = {
        "final/accuracy": 98.0,
        "final/network_accuracy": 98.0,
        "final/agreement": 100.0,
        "final/dense_accuracy": 98.6,
        "final/sparsity": 0.9,
        "final/sparsity_percent": 90.0,
        "final/parameters": 272474,
        "final/macs": 40810000,
        "final/fp32_onnx_bytes": 900,
        "final/int8_onnx_bytes": 300,
        "final/package_bytes": 100,
        "final/floor_bytes": 80,
        "final/accuracy/onnxruntime": 98.0,
        "final/latency_ms_p50": 1.0,
        "final/latency_ms_p90": 1.1,
        "final/latency_ms_p99": 1.2,
        "final/dense_latency_ms_p50": 4.0,
        "final/runtime": "ONNX Runtime",
        "final/speedup": 4.0,
        "final/latency_ms_p50_low": 1.0,
        "final/latency_ms_p50_high": 1.0,
        "final/speedup_low": 1.0,
        "final/speedup_high": 2.0,
        "final/noisy": False,
        "final/slower_than_dense": False,
        "final/latency_ms_p50/dense_onnxruntime_threads1_batch1": 4.0,
        "final/latency_ms_p50/int8_onnxruntime_threads1_batch1": 1.0,
        "final/latency_ms_p50/int8_onnxruntime_threads0_batch1": 0.7,
    }
    assert figures == expected
    smallest = Final(dense_accuracy=98.5, accuracy=97.5, sparsity=0.0)
    assert final_figures(smallest) == {
        "final/dense_accuracy": 98.5,
        "final/accuracy": 97.5,
        "final/sparsity": 0.0,
        "final/sparsity_percent": 0.0,
    }


@pytest.mark.parametrize("resumed", [True, False], ids=["online", "offline"])
def test_a_stage_that_goes_on_is_whole_and_its_summary_is_its_last_epochs(
    wandb_config, tmp_path, monkeypatch, resumed
):
    """The run online has the baseline and an epoch of pruning; one offline begins anew."""
    run = FakeRun()
    run.resumed = resumed
    if resumed:
        run.summary |= {"baseline/epoch": 2, "prune/epoch": 1}
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    found = completed()
    found.stages[1].history = epochs([1, 2, 3])
    with tracking.start(wandb_config, tmp_path, "x") as tracker:
        tracker.epoch("prune", epochs([3])[0], 2)
        tracker.finish(found, [])
    logged = [(k, v) for row in run.logged for k, v in row.items() if k.endswith("/epoch")]
    earlier = [] if resumed else [("baseline/epoch", 1), ("baseline/epoch", 2), ("prune/epoch", 1)]
    assert sorted(logged) == sorted(
        [*earlier, ("prune/epoch", 2), ("prune/epoch", 3)]
        + [(f"{stage}/epoch", epoch) for stage in ("quantize", "distill") for epoch in (1, 2)]
    )
    assert (run.summary["prune/epoch"], run.summary["prune/loss"]) == (3, 1 / 3)
