"""What the report makes of killed jobs, of noise, and of what was measured twice or elsewhere."""

import os
from dataclasses import replace

import pytest

from pqd.report import build, words
from pqd.report.cases import distinct
from pqd.report.disturbance import disturbances
from pqd.report.load import load
from pqd.report.view import view
from report_runs import (
    latency,
    provenance,
    result,
    unfinished,
    write,
    write_bench,
    write_orders,
    write_sweep,
)

EPYC = "AMD EPYC, 8 cores"


def trained(number: int, last: str, **changes):
    """A repeat of pqd, made on a day of March, whose last stage has this key."""
    data = result("pqd", runtimes=("onnxruntime",), threads=(1,), **changes)
    data.provenance.started = f"2026-03-{number:02d}T08:00:00+00:00"
    data.stages[-1].key = last
    return data


def elsewhere(data):
    """The same as measured on another machine."""
    data.provenance = replace(data.provenance, cpu="AMD EPYC", cores=8)
    return data


# --- repeats


def test_repeats_keep_what_only_they_measured(tmp_path):
    for number, runtime in enumerate(("onnxruntime", "openvino")):
        data = result("pqd", runtimes=(runtime,), threads=(1,))
        data.provenance.started = f"2026-03-0{number + 1}T08:00:00+00:00"
        for stage in data.stages:
            stage.key = stage.stage
        write(tmp_path / runtime, data)
    (run,), dropped = distinct(load([tmp_path]).runs)
    assert dropped == 1
    assert run.folder.is_relative_to(tmp_path / "openvino")
    assert [{row.runtime for row in m.latency} for m in run.measurements] == [
        {"onnxruntime", "openvino"}
    ]


def test_figures_from_the_cache_carry_the_conditions_they_were_measured_in(tmp_path):
    data = result("pqd", runtimes=("onnxruntime",), threads=(1,))
    data.final.measured = provenance("AMD EPYC", cores=8)
    write(tmp_path, data)
    (run,) = load([tmp_path]).runs
    assert [m.provenance.machine for m in run.measurements] == ["AMD EPYC, 8 cores"]
    assert run.result.provenance.cores == 2


def test_a_repeat_of_another_network_leaves_nothing(tmp_path):
    write(tmp_path / "old", elsewhere(trained(1, "one")))
    write(tmp_path / "new", trained(2, "two"))
    (run,), dropped = distinct(load([tmp_path]).runs)
    assert dropped == 1
    assert [m.provenance.machine for m in run.measurements] == [
        "Intel Xeon Platinum 8481C, 2 cores"
    ]


@pytest.mark.parametrize(("accuracy", "kept"), [(91.0, {"onnxruntime": 91.0}), (90.9, {})])
def test_a_repeat_elsewhere_keeps_its_latency_and_its_accuracy_if_it_is_the_same(
    tmp_path, accuracy, kept
):
    write(tmp_path / "old", elsewhere(trained(1, "one", accuracy=accuracy)))
    write(tmp_path / "new", trained(2, "one", accuracy=91.0))
    (run,), _ = distinct(load([tmp_path]).runs)
    other = next(m for m in run.measurements if m.provenance.machine == EPYC)
    assert len(other.latency) == 3
    assert other.accuracy_by_runtime == kept


def test_of_two_measurements_the_later_counts_whichever_run_it_belongs_to(tmp_path):
    old, new = trained(1, "one"), trained(5, "one")
    new.final.measured = old.provenance  # from the cache, like everything else of it
    for data in (old, new):
        folder = write(tmp_path / data.provenance.started[:10], data).parent
        if data is old:
            later = provenance(started="2026-03-04T08:00:00+00:00")
            write_bench(folder / "bench-cpu.json", later, latency("pqd", 1.0, p50_ms=7.0))
    (run,), _ = distinct(load([tmp_path]).runs)
    (measurement,) = run.measurements
    assert {row.p50_ms for row in measurement.latency} == {7.0}


@pytest.mark.parametrize(("dated", "counts"), [("", 7.0), ("2026-03-01", 5.0)])
def test_an_undated_bench_is_later_than_its_run_and_a_dated_one_when_it_says(
    tmp_path, dated, counts
):
    data = trained(2, "one")
    for row in data.final.latency:
        row.p50_ms = 5.0
    folder = write(tmp_path, data).parent
    rows = latency("pqd", 1.0, p50_ms=7.0)
    write_bench(folder / "bench-cpu.json", provenance(started=dated), rows)
    (run,) = load([tmp_path]).runs
    assert {row.p50_ms for row in run.measurements[0].latency} == {counts}


# --- reading while jobs run


def test_a_folder_that_vanishes_meanwhile_is_passed_over(tmp_path, monkeypatch):
    write_sweep(tmp_path, order=("pqd", "qpd"))
    scan = os.scandir

    def vanish(path):
        if "qpd" in str(path):
            raise FileNotFoundError(path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", vanish)
    assert [run.order for run in load([tmp_path]).runs] == ["pqd"]


# --- training cost


def test_a_stage_that_no_run_trained_was_trained_once(tmp_path):
    for order in ("pqd", "pdq"):
        data = result(order)
        for i, entry in enumerate(data.stages):
            entry.key, entry.cached, entry.seconds = f"{order}{i}", True, 2.0
        data.stages[0].key = "shared"
        write(tmp_path, data)
    saving = view(load([tmp_path])).saving
    assert (saving.stages, saving.trained, saving.spent, saving.saved) == (8, 7, 14.0, 2.0)


# --- noise


def test_noisy_and_slower_are_marked_in_every_file_with_a_footnote(tmp_path):
    data = result("pqd", runtimes=("onnxruntime",), threads=(1,))
    for row in data.final.latency:
        row.noisy = row.slower_than_dense = row.model == "int8"
        row.others_share, row.speedup, row.p50_ms = 0.21, 0.5, 2.0
    write(tmp_path, data)
    build([tmp_path], tmp_path / "out")
    page, text, table = (
        (tmp_path / "out" / name).read_text() for name in ("report.html", "report.md", "table.tex")
    )
    assert '<td class="wide" data-setup="0">0.500×†‡</td>' in page
    assert "<b>2.00† ms</b><span>2.00× slower than dense FP32†‡</span>" in page
    assert "| pqd | 2.00 | 2.00† | 0.500×†‡ |" in text
    assert r"2.00$^\dagger$ \\" in table
    for content in (page, text):
        assert "† noisy in at least one run" in content
        assert "(1 of 3 measurements in all)" in content
        assert "‡ slower than dense in at least one run (1 of 1 measurement in all)" in content
    for content in (page, text, table.replace("\\", "")):
        assert "other work took up to 21 % of the cores meanwhile" in content


def test_a_mark_that_no_cell_bears_is_not_explained(tmp_path):
    data = result("pqd", runtimes=("onnxruntime",), threads=(1,))
    for row in data.final.latency:
        row.slower_than_dense = row.model == "pruned"
    write(tmp_path, data)
    assert view(load([tmp_path])).cases[0].notes == []


def test_runs_beside_each_other_are_told_only_where_nothing_watched_the_cores(tmp_path):
    for seed, share in enumerate((None, 0.0, None)):
        data = result("pqd", seed, runtimes=("onnxruntime",), threads=(1,))
        started = f"2026-03-01T08:00:{5 * seed:02d}+00:00"
        data.provenance = replace(data.provenance, started=started, seconds=8.0)
        for row in data.final.latency:
            row.others_share = share
        write(tmp_path, data)
    runs = load([tmp_path]).runs
    machine = "Intel Xeon Platinum 8481C, 2 cores"
    assert disturbances(runs) == {
        machine: "up to 2 runs at once may have disturbed each other",
    }
    assert disturbances(run for run in runs if run.seed == 1) == {}


# --- per order


@pytest.mark.parametrize(
    ("seeds", "verdict"),
    [
        (5, "none possible: fewer than 6 seeds"),
        (6, "could not be shown: with 6 pairs corrected p ≥ 0.062"),
        (7, "more accurate"),
    ],
)
def test_verdict_of_a_row(tmp_path, seeds, verdict):
    better = [81.0 + 0.01 * seed for seed in range(seeds)]
    write_orders(tmp_path, {"pqd": [80.0] * seeds, "dpq": better, "qdp": better})
    report = view(load([tmp_path]))
    assert [c.verdict for c in report.comparisons] == [verdict] * 2


def test_markdown_marks_the_dominated_and_has_intervals_and_costs(tmp_path):
    write_orders(tmp_path, {"pqd": [80.0, 82.0], "q": [70.0, 71.0]}, runtimes=())
    build([tmp_path], tmp_path / "out", figures=False)
    lines = (tmp_path / "out" / "report.md").read_text().splitlines()
    size = view(load([tmp_path])).families[0].frontiers[0]
    flags = {p.order: p.dominated for p in size.points}
    assert flags == {"dense": False, "pqd": False, "q": True}
    for order, mark in (("dense", "●"), ("pqd", "●"), ("q", "○")):
        assert sum(line.startswith(f"| {order} |") and mark in line for line in lines) == 1
    volume = size.volumes["pqd"]
    assert f"| pqd | {volume.mean:.2f} ± {volume.half:.2f} |" in lines
    assert any(line.startswith("| pqd |") and "of 8 stages |" in line for line in lines)


def test_figures_of_many_families_go_to_several_files(tmp_path):
    write_sweep(tmp_path, order=("pqd", "pd"), alpha=[i / 10 for i in range(9)], runtimes=[()])
    build([tmp_path], tmp_path / "out")
    names = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert names == {"frontier", "frontier-2"}
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.index("(frontier.png)") < text.index("(frontier-2.png)")


# --- killed jobs


def test_a_run_that_was_killed_is_listed(tmp_path):
    write(tmp_path / "done", result("pqd"))
    write(tmp_path / "killed", unfinished(result("qpd"), "running"))
    (killed,) = load([tmp_path]).unfinished
    assert killed.status == "running"
    assert killed.reason == "not finished yet, or killed"
    assert "not finished yet, or killed" in build([tmp_path], tmp_path / "out").read_text()


def test_one_runtime_is_not_compared_with_itself(tmp_path):
    for seed, runtimes in enumerate([("onnxruntime",), ("onnxruntime", "openvino")]):
        data = result("pqd", seed, runtimes=runtimes, threads=(1,))
        data.final.accuracy_by_runtime["onnxruntime"] -= 0.04
        write(tmp_path, data)
        compared = view(load([tmp_path])).checks.get("runtimes")
        assert compared == ("at most 0.04 points apart in any run" if seed else None)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.998, "0.998"), (9.98, "9.98"), (99.8, "99.8"), (0.9996, "1.00"), (1234.5, "1234")],
)
def test_three_digits_are_shown(value, text):
    assert words.significant(value) == text


def test_a_hair_slower_is_not_said_to_be_slower():
    assert words.as_fast(0.998) == "0.998× as fast as dense FP32"
    assert words.as_fast(0.8) == "1.25× slower than dense FP32"
