import copy
import io
import logging
from dataclasses import replace

import pytest
from rich.console import Console

from pqd.progress import (
    StageProgress,
    comparison_table,
    duration,
    make_console,
    show,
    stage_table,
)
from pqd.result import Final, Latency, Result, StageResult


@pytest.fixture
def result():
    """A run of two stages."""
    baseline = StageResult("baseline", "a", 3.2, True, 12, 0.01, 98.9, 0.0)
    prune = StageResult("prune", "b", 83.4, False, 6, 0.02, 97.5, 0.8)
    final = Final(dense_accuracy=98.6, accuracy=98.1, sparsity=0.8)
    final.sizes = {"fp32_onnx": 1_100_000, "int8_onnx": 290_000, "package": 50_000}
    final.latency = [
        Latency("onnxruntime", "dense", 1, 1, 1.0, version="1.31.1", speedup=1.0),
        Latency("onnxruntime", "int8", 1, 1, 0.5, version="1.31.1", speedup=2.0),
    ]
    order = ["prune", "quantize", "distill"]
    return Result(
        "resnet20_digits_pqd", "completed", {}, order, stages=[baseline, prune], final=final
    )


@pytest.fixture
def failed(result):
    """A run that got through its first stage."""
    reason = "the loss became nan [epoch 3]"
    found = replace(result, name="other", status="failed", reason=reason, final=None)
    return replace(found, stages=found.stages[:1])


def console(**kwargs):
    return Console(file=io.StringIO(), highlight=False, **kwargs)


def shown(renderable, width=160):
    out = console(width=width)
    out.print(renderable)
    return out.file.getvalue()


def cells(text):
    """The body rows of a rendered table as lists of strings."""
    return [[c.strip() for c in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]


def metrics(epoch, **changes):
    return {
        **{"epoch": epoch, "loss": 0.5, "train_accuracy": 60.0, "validation_accuracy": 61.25},
        **{"images_per_s": 1234.4, "seconds": 2.0, "eta_s": 75.0},
        **changes,
    }


def run(out, epochs, **changes):
    with StageProgress("prune", epochs, 10 * epochs, out) as progress:
        for epoch in range(1, epochs + 1):
            for step in range(10):
                progress.step(10 * (epoch - 1) + step)
            progress.epoch(metrics(epoch, **changes))
    return out.file.getvalue()


def test_without_a_terminal_one_line_per_epoch():
    assert run(console(width=40), 2) == (
        "prune     epoch 1/2  loss 0.5000  validation 61.25 %  1,234 images/s  1m 15s left\n"
        "prune     epoch 2/2  loss 0.5000  validation 61.25 %  1,234 images/s  done\n"
    )


@pytest.mark.parametrize(
    ("epochs", "lines"), [(1, 1), (2, 2), (19, 19), (20, 20), (21, 20), (200, 20), (1000, 20)]
)
def test_at_most_twenty_lines_with_the_first_and_the_last_epoch(epochs, lines):
    text = run(console(), epochs).splitlines()
    assert len(text) == lines
    assert f" 1/{epochs} " in text[0]
    assert f" {epochs}/{epochs} " in text[-1]


def test_without_validation_the_training_accuracy_is_shown():
    out = console()
    given = metrics(1)
    del given["validation_accuracy"]
    with StageProgress("baseline", 3, 30, out) as progress:
        progress.epoch(given)
    assert "train 60.00 %" in out.file.getvalue()


def test_on_a_terminal_a_bar_that_fits_eighty_columns():
    out = console(force_terminal=True, width=80, color_system=None)
    text = run(out, 4, images_per_s=12345.0)
    last = text.split("\x1b[2K")[-1].splitlines()[0].rstrip()
    assert "prune" in last
    assert "4/4 loss 0.5000  validation 61.25 %  12,345 images/s" in last
    assert last.endswith("00:00")
    assert len(last) <= 80


def test_an_interrupted_bar_stops_and_lets_the_interrupt_through():
    out = console(force_terminal=True, width=80)
    progress = StageProgress("prune", 4, 40, out)
    with pytest.raises(KeyboardInterrupt), progress:
        raise KeyboardInterrupt
    assert out.file.getvalue().endswith("\x1b[?25h")  # the cursor is back


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0.0s"), (9.94, "9.9s"), (9.96, "10s"), (59.4, "59s"), (59.6, "1m 00s")),
        *((184, "3m 04s"), (3599.6, "1h 00m"), (7500, "2h 05m"), (360000, "100h 00m")),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_stage_table_has_one_row_per_stage_and_a_line_on_the_model(result):
    text = shown(stage_table(result))
    assert cells(text) == [
        ["baseline", "12", "0.0100", "98.90", "0.0", "cached"],
        ["prune", "6", "0.0200", "97.50", "80.0", "1m 23s"],
    ]
    assert text.splitlines()[-1] == (
        "model.onnx: 98.10 % on the test split (dense 98.60 %), 80.0% zeros, 0.29 MB "
        "(dense 1.10 MB), 0.5 ms, 2.00x (onnxruntime 1.31.1, 1 thread(s), batch 1)"
    )


def test_a_speed_up_that_was_not_measured_is_left_out(result):
    result.final.latency = [replace(result.final.deployed, speedup=None)]
    assert "0.5 ms (onnxruntime" in shown(stage_table(result))
    assert cells(shown(comparison_table([result])))[0][-2:] == ["0.5", "-"]


def test_stage_table_of_a_failed_run_says_why(failed):
    text = shown(stage_table(failed))
    assert len(cells(text)) == 1
    assert text.splitlines()[-1] == "failed: the loss became nan [epoch 3]"


def test_a_latency_that_was_not_measured_is_said_to_be_missing(result):
    result.final.latency = []
    assert shown(stage_table(result)).splitlines()[-1].endswith("MB), latency not measured")


def test_comparison_table_has_one_row_per_run(result, failed):
    dense = copy.deepcopy(result)  # an order without quantization, never timed
    dense.name, dense.order = "[d]", ["distill"]
    dense.final.sizes, dense.final.latency = {"fp32_onnx": 1_100_000}, []
    text = shown(comparison_table([result, failed, dense]))
    assert cells(text) == [
        ["resnet20_digits_pqd", "pqd", "98.10", "-0.50", "80.0", "0.29", "0.05", "0.5", "2.00x"],
        ["other", "pqd", "failed", *"------"],
        ["[d]", "d", "98.10", "-0.50", "80.0", "1.10", "-", "-", "-"],
    ]
    assert "onnxruntime 1.31.1, 1 thread(s), batch 1" in text


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
    sizes = ["80.0", "0.29", "0.05", "0.5", "2.00x"]
    text = shown(comparison_table(runs))
    assert cells(text) == [
        ["r_pqd", "pqd", "7 of 7", "98.40", "-0.20", *sizes],
        ["r_dqp", "dqp", "6 of 7", "98.10", "-0.50", *sizes],
        ["r_dqp", "dqp", "0 of 1", "failed", *"------"],
    ]
    assert "means over seeds" in text


def test_where_there_is_no_terminal_the_console_is_wide_enough(result, monkeypatch, capsys):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    make_console().print(comparison_table([replace(result, name="n" * 60)]))
    assert "n" * 60 in capsys.readouterr().out


def test_what_is_shown_is_also_logged(result, caplog):
    """And so it is in a job's log file, whatever is markup elsewhere."""
    with caplog.at_level(logging.INFO, "pqd.progress"):
        show("[a] line", console())
        show(stage_table(result), console(width=40))
    line, table = (record.getMessage() for record in caplog.records)
    assert line == "[a] line"
    assert table == shown(stage_table(result)).rstrip()
