"""Reports of searches: trials instead of cases, what is chosen is not chosen by test accuracy."""

import json
import random

import pytest

from pqd.report import build
from pqd.report.load import load
from pqd.report.spreadsheet import rows as points
from pqd.report.view import view
from pqd.tracking.records import record_sweep
from report_runs import ORDERS, Logged, result, write, write_sweep

OBJECTIVES = ["validation_accuracy", "latency_ms", "package_bytes"]
SEARCHED = ["order", "prune.sparsity", "prune.lr"]


def trial(number):
    """A run with settings drawn at random, as a search's."""
    drawn = random.Random(number)
    run = result(drawn.choice(ORDERS), sparsity=round(drawn.uniform(0.3, 0.95), 2))
    run.config["prune"]["lr"] = drawn.uniform(0.01, 0.1)
    run.config |= {"searched": SEARCHED, "objectives": OBJECTIVES}
    run.name = f"{number}_trial"
    run.stages[-1].validation_accuracy = run.final.accuracy + drawn.gauss(0, 1)
    return run


@pytest.fixture
def trials():
    return [trial(number) for number in range(20)]


@pytest.fixture
def folder(trials, tmp_path):
    for run in trials:
        write(tmp_path / "search", run)
    return tmp_path / "search"


def figures_of(run):
    deployed = run.final.deployed
    return -run.stages[-1].validation_accuracy, deployed.p50_ms, run.final.sizes["package"]


def test_chosen_is_what_no_other_trial_betters_in_all_objectives(trials, folder):
    report = view(load([folder]))
    (search,) = report.searches
    assert not report.cases
    assert len(search.trials) == 20
    every = {run.name: figures_of(run) for run in trials}
    best = {
        name
        for name, own in every.items()
        if not any(o != own and all(map(float.__le__, map(float, o), own)) for o in every.values())
    }
    assert {t.run.result.name for t in search.chosen} == best
    assert 0 < len(best) < 20
    assert search.trials[: len(best)] == search.chosen
    assert report.verdict == (
        f"Of 20 trials of resnet20 · digits {len(best)} are chosen: no other is at least as good "
        "in validation accuracy, latency and package size."
    )


def test_trials_that_were_stopped_belong_to_their_search(trials, folder, tmp_path):
    for name, searched in (("of_search", SEARCHED), ("of_the_user", [])):
        run = trial(99)
        run.name, run.status, run.final, run.reason = name, "stopped", None, "below stop_below"
        run.config["searched"] = searched
        write(folder, run)
    report = view(load([folder]))
    (search,) = report.searches
    assert [run.name for run in search.stopped] == ["of_search"]
    assert [run.name for run in report.unfinished] == ["of_the_user"]
    assert report.verdict.endswith("package size. 1 more was stopped early.")
    page = build([folder], tmp_path / "report").read_text()
    assert "<li>of_search: below stop_below</li>" in page
    assert page.count("of_search: ") == 1


def test_figures_show_every_trial_for_itself(folder):
    report = view(load([folder]))
    (search,) = report.searches
    chosen = {(t.run.order, t.row.axes) for t in search.chosen}
    for frontier in search.frontiers:
        shown = [p for p in frontier.points if p.order != "dense"]
        assert len(shown) == 20
        assert {(p.order, p.axes) for p in shown if not p.dominated} == chosen
        assert all(len(curve) == 1 for curve in frontier.curves)
        assert not frontier.best


def test_pages_list_settings_and_files(folder, tmp_path):
    page = build([folder], tmp_path / "report").read_text()
    text = (tmp_path / "report" / "report.md").read_text()
    (search,) = view(load([folder])).searches
    for heading in ("prune.sparsity", "prune.lr", "Validation accuracy, %"):
        assert f"<th>{heading}</th>" in page
    assert page.count('data-figure="search-0-') == len(search.frontiers)
    for t in search.trials:
        assert t.run.folder.name in page
        assert f"{t.run.axes['prune.lr']:.3g}" in page
    assert text.count("\n| ") - 1 == len(search.chosen) + 1  # the dense network
    assert "| dense | – | – | – | " in text
    tex = (tmp_path / "report" / "table.tex").read_text()
    assert tex.count(r"\\") >= len(search.chosen)
    assert json.loads(json.dumps(text))  # nothing that is no text


def test_other_runs_keep_their_cases(folder, tmp_path):
    write_sweep(tmp_path / "sweep", order=ORDERS, seed=range(3))
    report = view(load([folder, tmp_path / "sweep"]))
    assert len(report.searches[0].trials) == 20
    assert [len(v.case.runs) for v in report.cases] == [18]
    assert "pqd" in report.verdict


def test_trials_that_differ_in_a_name_alone_are_two_points(tmp_path):
    for name, accuracy in (("abs_max", 90.0), ("lsq", 89.0)):
        run = result("pqd", accuracy=accuracy)
        run.config["quantize"]["quantizer"] = name
        run.config |= {"searched": ["quantize.quantizer"], "objectives": OBJECTIVES}
        run.name = f"trial_{name}"
        write(tmp_path, run)
    (search,) = view(load([tmp_path])).searches
    points = [p for p in search.frontiers[0].points if p.order == "pqd"]
    assert sorted(p.accuracy.mean for p in points) == [89.0, 90.0]


def test_what_breaks_a_limit_is_not_chosen(trials, tmp_path):
    sizes = sorted(run.final.sizes["package"] for run in trials)
    limit = sizes[len(sizes) // 2]
    for run in trials:
        run.config["limits"] = {"package_bytes": limit}
        write(tmp_path, run)
    (search,) = view(load([tmp_path])).searches
    assert search.chosen
    assert all(t.run.final.sizes["package"] <= limit for t in search.chosen)
    assert "no other within the limits is at least as good" in search.verdict


def test_points_name_every_setting_searched(folder):
    (row, *_) = points(load([folder]))
    assert {"target_sparsity", "target_prune.lr"} <= set(row)


def test_wandb_gets_the_points_of_a_search(folder, tmp_path):
    pytest.importorskip("wandb")
    report = view(load([folder]))
    run = Logged()
    record_sweep(run, tmp_path / "empty", report)
    table = run.logged["frontier"]
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.data]
    sized = [row for row in rows if row["unit"] == "bytes" and row["order"] != "dense"]
    assert len(sized) == 20
    assert all(row["prune.lr"] for row in sized)


def test_the_latest_limits_hold_for_all_trials(trials, tmp_path):
    sizes = sorted(run.final.sizes["package"] for run in trials)
    limits = [{}, {"package_bytes": sizes[0]}, {"package_bytes": sizes[9]}]
    for number, run in enumerate(trials):
        run.config["limits"] = limits[number * 3 // len(trials)]
        run.provenance.started = f"2026-03-01T08:{number:02d}:00+00:00"
        write(tmp_path, run)
    (search,) = view(load([tmp_path])).searches
    inside = [run for run in trials if run.final.sizes["package"] <= sizes[9]]
    best = max(run.stages[-1].validation_accuracy for run in inside)
    assert max(t.validation for t in search.chosen) == best
    assert all(t.run.final.sizes["package"] <= sizes[9] for t in search.chosen)


def test_other_objectives_are_another_search(trials, tmp_path):
    for number, run in enumerate(trials):
        run.config["objectives"] = OBJECTIVES[: 1 + number % 2]
        write(tmp_path, run)
    found = view(load([tmp_path])).searches
    assert [len(search.trials) for search in found] == [10, 10]
    assert {tuple(search.objectives) for search in found} == {
        ("validation accuracy",),
        ("validation accuracy", "latency"),
    }


@pytest.fixture
def of_groups(tmp_path):
    """A search over a config group, an axis and a setting that one's own network takes."""
    for number, (loss, weight) in enumerate((("hinton", 0.9), ("dkd", 0.5), ("dkd", 0.5))):
        run = result("pqd", sparsity=0.5 + number / 10)
        run.config["distill"] |= {"loss": loss, "alpha": weight}
        run.config["backbone"]["kwargs"] = {"width": number % 2}
        run.config["searched"] = ["distill", "prune.sparsity", "+backbone.kwargs.width"]
        run.config["objectives"] = OBJECTIVES
        run.name = f"trial_{number}"
        write(tmp_path, run)
    return view(load([tmp_path]))


def test_of_a_config_group_the_settings_are_shown_that_differ(of_groups):
    (search,) = of_groups.searches
    assert search.keys == ["distill.loss", "prune.sparsity", "backbone.kwargs.width"]
    assert {tuple(map(t.setting, search.keys)) for t in search.trials} == {
        ("hinton", "0.5", "0"),
        ("dkd", "0.6", "1"),
        ("dkd", "0.7", "0"),
    }


def test_wandb_gets_them_too(of_groups, tmp_path):
    pytest.importorskip("wandb")
    run = Logged()
    record_sweep(run, tmp_path / "empty", of_groups)
    table = run.logged["frontier"]
    names = ("distill.loss", "sparsity", "backbone.kwargs.width")
    columns = [table.columns.index(name) for name in names]
    assert {tuple(row[i] for i in columns) for row in table.data} == {
        ("hinton", 0.5, 0.0),
        ("dkd", 0.6, 1.0),
        ("dkd", 0.7, 0.0),
        (None, None, None),
    }
