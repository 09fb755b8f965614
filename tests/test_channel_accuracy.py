"""The comparison of channel pruners: all end with the same MACs, and a stopped one goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINY = ["--dataset=digits", "--backbone=resnet8", "--train-limit=128", "--baseline=1", "--prune=1"]


def compare(folder, *more):
    command = [sys.executable, ROOT / "benchmarks/channel_accuracy.py", folder, *TINY, *more]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "COLUMNS": "120"}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_a_stopped_comparison_goes_on(tmp_path):
    pytest.importorskip("torch_pruning")
    first = compare(tmp_path, "--seeds", "1")
    assert first.returncode == 0, first.stderr
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    rows = {row["arm"]: row for row in map(json.loads, lines)}
    assert list(rows) == ["dense", "pqd", "torch_pruning", "width"]
    assert rows["dense"]["macs"] == 1
    assert 0.48 < rows["pqd"]["macs"] <= 0.5
    assert 0.45 < rows["torch_pruning"]["macs"] <= rows["pqd"]["macs"]
    assert rows["width"]["macs"] == pytest.approx(rows["pqd"]["macs"], abs=0.03)
    assert "+" in first.stdout

    (tmp_path / "results.jsonl").write_text("".join(f"{line}\n" for line in lines[:3]))
    again = compare(tmp_path, "--seeds", "1")
    assert again.returncode == 0, again.stderr
    after = (tmp_path / "results.jsonl").read_text().splitlines()
    assert after[:3] == lines[:3]
    assert len(after) == 4
    for name in ("accuracy", "macs", "parameters"):  # the same network comes out
        assert json.loads(after[3])[name] == rows["width"][name]

    other = compare(tmp_path, "--macs", "0.3")
    assert other.returncode == 2
    assert "Traceback" not in other.stderr
    assert "holds results of other settings" in other.stderr
