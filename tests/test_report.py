"""The report: what is read, how it is grouped, and what it counts."""

import csv
import json
import math
from dataclasses import asdict

import pytest

from pqd.errors import UserError
from pqd.report import build, points
from pqd.report.load import load
from pqd.report.view import view
from pqd.result import DENSE
from report_runs import latency, provenance, result, unfinished, write, write_bench, write_orders


def test_no_result_and_no_folder_are_mistakes_of_the_user(tmp_path):
    with pytest.raises(UserError, match=r"no result\.json below"):
        points([tmp_path])
    with pytest.raises(UserError, match="is not a folder"):
        points([tmp_path / "missing"])


def test_a_run_that_is_not_what_was_trained_is_named_and_not_counted(tmp_path):
    """Its figures are kept in its result, for diagnosis."""
    reason = (
        "model.onnx in ONNX Runtime classifies 90.00 % of the test images as the network does; the "
        "files are kept, but this is not the network trained"
    )
    wrong = result("pdq")
    wrong.status, wrong.reason = "failed", reason
    write(tmp_path, wrong)
    write(tmp_path, result("pqd"))
    build([tmp_path], tmp_path, figures=False)
    assert f"- {wrong.name}: failed, {reason}\n" in (tmp_path / "report.md").read_text()
    assert f"<li>{wrong.name}: failed, {reason}</li>" in (tmp_path / "report.html").read_text()
    assert [row["order"] for row in points([tmp_path])] == ["pqd"]


def test_class_balanced_accuracies_are_shown_where_they_differ(tmp_path):
    for seed in (0, 1):
        run = result("pqd", seed, accuracy=95.0, dense_accuracy=96.0)
        run.final.balanced_accuracy, run.final.dense_balanced_accuracy = 95.05, 96.01
        write(tmp_path, run)
    build([tmp_path], tmp_path, figures=False)
    texts = [(tmp_path / name).read_text() for name in ("report.md", "report.html")]
    assert not any("class-balanced" in text for text in texts)
    for seed, balanced in ((0, 80.0), (1, 81.0)):
        run = result("pqd", seed, accuracy=95.0, dense_accuracy=96.0)
        run.final.balanced_accuracy, run.final.dense_balanced_accuracy = balanced, 90.0
        write(tmp_path, run)
    build([tmp_path], tmp_path, figures=False)
    markdown, page = ((tmp_path / name).read_text() for name in ("report.md", "report.html"))
    head, rule, dense, pqd = markdown[markdown.index("| order | seeds") :].splitlines()[:4]
    assert len({line.count("|") for line in (head, rule, dense, pqd)}) == 1
    assert head.split(" | ")[6] == "class-balanced accuracy, %"
    assert [line.split(" | ")[6] for line in (dense, pqd)] == ["90.00", "80.50"]
    assert '<td class="wide">80.50</td>' in page
    row = next(csv.DictReader((tmp_path / "points.csv").read_text().splitlines()))
    assert (row["balanced_accuracy"], row["dense_balanced_accuracy"]) == ("80.0", "90.0")


def test_what_to_know_before_trusting_figures_is_in_the_report(tmp_path):
    for order, warnings in (("pqd", ["no VNNI", "<96 % alike"]), ("pdq", ["no VNNI"])):
        run = result(order)
        run.warnings = warnings
        write(tmp_path, run)
    build([tmp_path], tmp_path, figures=False)
    name = result("pdq").name, result("pqd").name
    lines = [f"{name[0]} and 1 other run: no VNNI", f"{name[1]}: <96 % alike"]
    heading = "To know before trusting the figures"
    text = (tmp_path / "report.md").read_text()
    assert f"## {heading}\n\n- {lines[0]}\n- {lines[1]}\n\n" in text
    page = (tmp_path / "report.html").read_text()
    items = f"<ul><li>{lines[0]}</li><li>{lines[1].replace('<', '&lt;')}</li></ul>"
    assert f"<h3>{heading}</h3>\n{items}" in page


def test_broken_and_unfinished_runs_are_named_and_not_counted(tmp_path):
    write(tmp_path, result("pqd"))
    write(tmp_path, unfinished(result("pdq"), "failed", "lr=9 diverged"))
    write(tmp_path, unfinished(result("qpd"), "interrupted"))
    good = asdict(result("dpq"))
    for name, change in {
        "cut": None,
        "list": [],
        "future": {"schema": 3},
        "odd": {"status": "done"},
        "empty": {"final": None},
        "nan": {"final": good["final"] | {"accuracy": math.nan}},
        "short": {"stages": []},
        "threads": {
            "final": good["final"] | {"latency": [good["final"]["latency"][0] | {"threads": "all"}]}
        },
        "seedless": {"config": {}},
    }.items():
        data = good | change | {"name": name} if isinstance(change, dict) else change
        path = tmp_path / name / "result.json"
        path.parent.mkdir()
        path.write_text('{"schema": 1,' if data is None else json.dumps(data))
    loaded = load([tmp_path, tmp_path])  # the same folder twice is read once
    assert [run.order for run in loaded.runs] == ["pqd"]
    assert [(u.status, u.reason) for u in loaded.unfinished] == [
        ("failed", "lr=9 diverged"),
        ("interrupted", "no reason recorded"),
    ]
    named = {line.split("/")[0]: line for line in loaded.problems}
    assert set(named) == {"cut", "list", "future", "odd", "empty", "nan", "short", "threads"} | {
        "seedless"
    }
    assert named["future"] == "future/result.json: schema is 3; this version reads 1 and 2"
    assert named["nan"].startswith("nan/result.json: final.accuracy is nan: ")
    assert named["threads"].startswith("threads/result.json: final.latency.0.threads is 'all': ")
    assert named["seedless"] == "seedless/result.json: config.seed is missing"
    page = build([tmp_path], tmp_path / "out").read_text()
    assert "lr=9 diverged" in page
    assert "schema is 3; this version reads 1" in page


def test_order_is_named_by_the_stages_it_ran(tmp_path):
    data = result("pq")
    data.config["order"]["name"] = "pqd"  # of schema 1: order=pqd order.stages=[prune,quantize]
    write(tmp_path, data)
    assert points([tmp_path])[0]["order"] == "pq"


def test_machines_are_joined_and_the_newest_measurement_counts(tmp_path):
    folder = write(tmp_path, result("pqd", runtimes=("onnxruntime",), threads=(1,))).parent
    new = provenance(started="2027-01-01T00:00:00+00:00")
    rows = [row for row in latency("pqd", 1.0, p50_ms=7.0) if row.model == "int8"]
    write_bench(folder / "bench-same.json", new, rows)
    write_bench(folder / "bench-other.json", provenance("AMD EPYC", cores=8), rows)
    (folder / "bench-broken.json").write_text("{")
    table = points([tmp_path])
    assert [row["machine"] for row in table] == [
        "Intel Xeon Platinum 8481C, 2 cores",
        "AMD EPYC, 8 cores",
    ]
    assert [row["onnxruntime_t1_b1_int8_p50_ms"] for row in table] == [7.0, 7.0]
    assert table[0]["onnxruntime_t1_b1_dense_p50_ms"] is not None
    assert table[1]["onnxruntime_t1_b1_dense_p50_ms"] is None
    assert any("bench-broken.json" in line for line in load([tmp_path]).problems)


def test_rows_costs_and_curves(tmp_path):
    write_orders(tmp_path, {"pqd": [80.0, 82.0], "q": [88.0, 89.0]})
    report = view(load([tmp_path]))
    (case,) = report.cases
    dense, pqd, q = case.rows
    assert [row.order for row in case.rows] == [DENSE, "pqd", "q"]
    assert (dense.accuracy.mean, dense.accuracy.n, dense.change) == (90.0, 2, None)
    assert (pqd.accuracy.mean, pqd.change.mean) == (81.0, -9.0)
    assert pqd.sparsity.mean == pytest.approx(79.8)
    assert {t.model for t in pqd.timings} == {"pruned", "int8"}
    assert {t.model for t in q.timings} == {"int8"}
    assert [curve.order for curve in case.curves] == ["pqd"]
    assert case.curves[0].stages == ["baseline", "prune", "quantize", "distill"]
    (family,) = report.families
    size = next(f for f in family.frontiers if f.condition is None)
    assert size.reference == (pytest.approx(1_100_000), 80.0)
    assert {p.order for p in size.points} == {DENSE, "pqd", "q"}
    assert len(report.conditions) == 4  # two runtimes, one or two threads


def test_saving_counts_a_cached_stage_at_the_time_its_training_took(tmp_path):
    for order, cached, seconds in (("pqd", False, 10.0), ("pdq", True, 0.1)):
        data = result(order)
        for i, entry in enumerate(data.stages):
            entry.key, entry.cached, entry.seconds = f"{order}{i}", False, 1.0
        first = data.stages[0]
        first.key, first.cached, first.seconds = "shared", cached, seconds
        write(tmp_path, data)
    report = view(load([tmp_path]))
    saving = report.saving
    assert (saving.stages, saving.trained, saving.spent, saving.seconds) == (8, 7, 16.0, 26.0)
    assert saving.saved == 10.0
    assert [(c.order, c.total, c.cached) for c in report.cases[0].costs] == [
        ("pqd", 13.0, 0),
        ("pdq", 13.0, 1),
    ]
