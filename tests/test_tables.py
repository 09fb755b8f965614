"""What a run and a sweep say at their end."""

import copy
import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from pqd.progress import show
from pqd.result import Final, Latency, Result, StageResult
from pqd.tables import comparison_table, ending, stage_table


@pytest.fixture
def result():
    """A run of two stages."""
    baseline = StageResult("baseline", "a", 3.2, True, 12, 0.01, 98.9)
    prune = StageResult("prune", "b", 83.4, False, 6, 0.02, 97.5, sparsity=0.8)
    final = Final(dense_accuracy=98.6, accuracy=98.1, sparsity=0.8)
    final.sizes = {"fp32_onnx": 1_100_000, "int8_onnx": 290_000, "package": 50_000}
    final.latency = [
        Latency("onnxruntime", "dense", 1, 1, 1.0, version="1.31.1", speedup=1.0),
        Latency("onnxruntime", "int8", 1, 1, 0.5, version="1.31.1", speedup=2.0),
    ]
    order = ["prune", "quantize", "distill"]
    return Result(
        "resnet20_digits_pqd",
        "completed",
        {},
        order,
        stages=[baseline, prune],
        final=final,
        files={"model.onnx": {"bytes": 290_000}},
    )


@pytest.fixture
def failed(result):
    """A run that got through its first stage."""
    reason = "the loss became nan [epoch 3]"
    found = replace(result, name="other", status="failed", reason=reason, final=None)
    return replace(found, stages=found.stages[:1])


def shown(renderable, width=160):
    out = Console(file=io.StringIO(), highlight=False, width=width)
    show(renderable, out)
    return out.file.getvalue()


def last_line(result, folder=Path("run")):
    return ending(result, folder, None)[-1]


def cells(text):
    """The body rows of a rendered table as lists of strings."""
    return [[c.strip() for c in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]


def test_stage_table_has_one_row_per_stage(result):
    text = shown(stage_table(result), 80)
    assert cells(text) == [
        ["baseline", "12", "0.0100", "98.90", "0.0", "cached"],
        ["prune", "6", "0.0200", "97.50", "80.0", "1m 23s"],
    ]


def test_the_last_line_is_on_the_model_in_every_runtime_the_fastest_first(result):
    result.final.latency += [
        Latency("openvino", "int8", 1, 1, 0.4, speedup=0.8, noisy=True, slower_than_dense=True),
        Latency("openvino", "int8", 2, 1, 0.3, speedup=2.0),  # another number of threads
    ]
    assert last_line(result) == (
        "model.onnx: 98.10 % on the test split (dense 98.60 %), 80.0% zeros, 283 KiB "
        "(dense 1.05 MiB), package 48.8 KiB; 1 thread, batch 1: OpenVINO 0.400 ms†, 1.25× slower "
        "than dense FP32‡; ONNX Runtime 0.500 ms, 2.00× as fast as dense FP32"
    )


def test_a_speed_up_that_was_not_measured_is_left_out(result):
    result.final.latency = [replace(result.final.deployed, speedup=None)]
    assert last_line(result).endswith("batch 1: ONNX Runtime 0.500 ms")
    assert cells(shown(comparison_table([result])))[0][-2:] == ["0.500", "-"]


def test_class_balanced_accuracy_is_shown_where_it_differs(result):
    final = result.final
    final.balanced_accuracy, final.dense_balanced_accuracy = 98.05, 98.55
    assert "class-balanced" not in last_line(result)
    final.balanced_accuracy = 90.0
    told = "(dense 98.60 %), class-balanced 90.00 % (dense 98.55 %), 80.0% zeros"
    assert told in last_line(result)


def test_stage_table_of_a_failed_run_says_why(failed):
    assert len(cells(shown(stage_table(failed)))) == 1
    assert last_line(failed) == "failed: the loss became nan [epoch 3]"


def test_a_latency_that_was_not_measured_is_said_to_be_missing(result):
    result.final.latency = []
    assert last_line(result).endswith("KiB, latency not measured")


def test_comparison_table_has_one_row_per_run(result, failed):
    dense = copy.deepcopy(result)  # an order without quantization, never timed
    dense.name, dense.order = "[d]", ["distill"]
    dense.final.sizes, dense.final.latency = {"fp32_onnx": 1_100_000}, []
    dense.files = {"model.onnx": {"bytes": 600_000}}  # with fewer channels than the dense one
    text = shown(comparison_table([result, failed, dense]))
    assert cells(text) == [
        [
            "resnet20_digits_pqd",
            "pqd",
            "98.10",
            "-0.50",
            "80.0",
            "283 KiB",
            "48.8 KiB",
            "0.500",
            "2.00",
        ],
        ["other", "pqd", "failed", *"------"],
        ["[d]", "d", "98.10", "-0.50", "80.0", "586 KiB", "-", "-", "-"],
    ]
    assert "ONNX Runtime 1.31.1, 1 thread, batch 1" in text


def test_comparison_table_has_every_runtime_the_fastest_first(result):
    for_one = copy.deepcopy(result)
    slow, fast = (Latency(name, "int8", 1, 1, ms) for name, ms in (("torch", 2), ("openvino", 0.4)))
    result.final.latency += [replace(slow, p50_ms=0.6), fast]
    rows = cells(shown(comparison_table([result, for_one]), 200))
    assert [row[-6:] for row in rows] == [
        ["0.400", "-", "0.500", "2.00", "0.600", "-"],
        ["-", "-", "0.500", "2.00", "-", "-"],
    ]
    text = " ".join(shown(comparison_table([result, for_one]), 200).split())
    assert text.index("OpenVINO ms") < text.index("ONNX Runtime ms") < text.index("PyTorch eager")


def test_of_many_runs_the_table_shows_means_over_seeds(result, failed):
    runs = []
    for order, stages in (("pqd", result.order), ("dqp", ["distill", "quantize", "prune"])):
        for seed in range(7):
            run = copy.deepcopy(result)
            run.name, run.order = f"r_{order}_seed{seed}", stages
            run.config = {"order": {"name": order}, "seed": seed}
            run.final.accuracy += seed / 10 if order == "pqd" else 0
            runs.append(run)
    runs[-1].status, runs[-1].final = "failed", None
    # The same name, and yet another configuration.
    other = {"order": {"name": "dqp"}, "T": 2}
    runs.append(replace(failed, name="r_dqp_seed0", order=runs[-1].order, config=other))
    sizes = ["80.0", "283 KiB", "48.8 KiB", "0.500", "2.00"]
    text = shown(comparison_table(runs))
    assert cells(text) == [
        ["r_pqd", "pqd", "7 of 7", "98.40", "-0.20", *sizes],
        ["r_dqp", "dqp", "6 of 7", "98.10", "-0.50", *sizes],
        ["r_dqp", "dqp", "0 of 1", "failed", *"------"],
    ]
    assert "means over seeds" in text


def test_noisy_and_slower_figures_are_marked(result):
    """A speed below the dense network's is called slower, and not a speed-up."""
    row = replace(result.final.deployed, noisy=True, speedup=0.8, slower_than_dense=True)
    result.final.latency = [row]
    assert last_line(result).endswith("Runtime 0.500 ms†, 1.25× slower than dense FP32‡")
    notes = ["† noisy: a wide interval, or other work on the cores", "‡ slower than dense"]
    assert shown(stage_table(result)).splitlines()[-2:] == notes
    text = shown(comparison_table([result]))
    assert cells(text)[0][-2:] == ["0.500†", "0.80‡"]
    assert text.splitlines()[-2:] == notes


def test_warnings_of_a_run_are_in_its_last_line(result):
    result.warnings = ["[one] of it", "another"]
    ends = "as fast as dense FP32; warning: [one] of it; warning: another"
    assert last_line(result).endswith(ends)


def test_warnings_are_below_a_sweeps_table_and_marked_in_it(result):
    doubted, again = (replace(result, name=name, warnings=["no VNNI"]) for name in ("a", "b"))
    again.warnings = ["no VNNI", "96.00 % alike"]
    text = shown(comparison_table([result, doubted, again]))
    assert [row[0] for row in cells(text)] == ["resnet20_digits_pqd", "a !", "b !"]
    assert text.splitlines()[-2:] == [
        "! a and 1 other run: no VNNI",
        "! b: 96.00 % alike",
    ]


def test_a_run_that_fails_for_its_figures_has_none_in_the_tables(result):
    reason = "model.onnx classifies 90.00 % of the test images as the network does"
    failed = replace(result, status="failed", reason=reason)
    assert last_line(failed) == f"failed: {reason}"
    assert cells(shown(comparison_table([failed]))) == [
        ["resnet20_digits_pqd", "pqd", "failed", *"----"]
    ]


def test_the_end_names_the_folder_where_wandb_has_it_and_what_to_do_next(
    result, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    result.files = {"model.onnx": {"bytes": 290_000}, "model.pqd": {"bytes": 50_000}}
    assert ending(result, tmp_path / "a run", "W&B: there")[:-1] == [
        "folder: 'a run' (model.onnx 283 KiB, model.pqd 48.8 KiB)",
        "W&B: there",
        "next: pqd predict 'a run/model.onnx' IMAGE; pqd bench 'a run'; pqd report 'a run'",
    ]
    monkeypatch.chdir("/")
    assert ending(result, tmp_path, None)[1:-1] == [
        f"next: pqd predict {str(tmp_path)[1:]}/model.onnx IMAGE; pqd bench {str(tmp_path)[1:]}; "
        f"pqd report {str(tmp_path)[1:]}",
    ]


def test_a_name_in_brackets_is_no_markup(result):
    title = shown(stage_table(replace(result, name="[d]"))).splitlines()[0]
    assert title.strip() == "[d]"
