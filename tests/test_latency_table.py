"""The table of latencies, and the line that says what to deploy with."""

import pytest

from pqd.measure import timings
from pqd.measure.table import advice, latency_table


def row(runtime, model, threads, batch, ms, speedup=None, noisy=False):
    """A row as far as the table reads it; intervals are 10 % wide on either side."""
    return {
        "runtime": runtime,
        "model": model,
        "threads": threads,
        "batch_size": batch,
        "p50_ms": ms,
        "p50_interval_ms": [0.9 * ms, 1.1 * ms],
        "speedup": speedup,
        "speedup_interval": speedup and [0.9 * speedup, 1.1 * speedup],
        "noisy": noisy,
    }


def test_the_table_shows_the_fastest_first_and_what_is_missing():
    rows = timings.Latencies()
    rows += [
        row("onnxruntime", "dense", 1, 1, 8.0, 1.0),
        row("onnxruntime", "int8", 1, 1, 2.0, 4.0, noisy=True),
        row("openvino", "int8", 2, 1, 0.12345, 64.8),
        row("openvino", "int8", 2, 8, 1200.6),
    ]
    rows.failed["torch"] = "RuntimeError: no"
    rows.left_out["torch_compiled"] = "no compiler"
    table = latency_table("runs/[a]", rows)
    cells = list(zip(*(column.cells for column in table.columns), strict=True))
    assert str(table.title) == r"runs/\[a]"
    assert cells == [
        ("OpenVINO", "int8", "2", "1", "0.123", "0.111 to 0.136", "64.8×", "58.3 to 71.3", ""),
        ("ONNX Runtime", "int8", "1", "1", "2", "1.8 to 2.2", "4×", "3.6 to 4.4", "noisy"),
        ("ONNX Runtime", "dense", "1", "1", "8", "7.2 to 8.8", "1×", "0.9 to 1.1", ""),
        ("OpenVINO", "int8", "2", "8", "1201", "1081 to 1321", "", "", ""),
        ("PyTorch eager", "failed", *[""] * 7),
        ("PyTorch compiled", "not measured", *[""] * 7),
    ]


def test_what_to_deploy_with_is_the_fastest_of_the_deployable_model():
    rows = timings.Latencies()
    rows += [row("openvino", "dense", 1, 1, 0.1), row("onnxruntime", "int8", 2, 1, 2.0)]
    line = "deploy here with ONNX Runtime on 2 threads: int8 takes 2 ms for a batch of 1"
    assert advice(rows) == line
    rows.append(row("openvino", "int8", 1, 8, 0.5))
    assert advice(rows) == line  # another batch size does not compare
    rows.append(row("openvino", "int8", 1, 1, 0.5, noisy=True))
    assert advice(rows) == (
        "deploy here with OpenVINO on 1 thread: int8 takes 0.5 ms for a batch of 1 "
        "(noisy: measure again while nothing else runs)"
    )
    only = timings.Latencies()
    only.append(row("torch", "dense", 1, 1, 9.0, 1.0))
    line = "deploy here with PyTorch eager on 1 thread: dense takes 9 ms for a batch of 1"
    assert advice(only) == line


@pytest.mark.parametrize(
    ("speedup", "words"), [(2.0, "2.00× as fast as"), (0.8, "1.25× slower than")]
)
def test_a_factor_below_one_is_no_speed_up(speedup, words):
    rows = timings.Latencies()
    rows.append(row("openvino", "int8", 1, 1, 2.0, speedup))
    assert advice(rows).endswith(f"2 ms for a batch of 1, {words} dense FP32")
    assert "speed-up" not in [str(column.header) for column in latency_table("a", rows).columns]
