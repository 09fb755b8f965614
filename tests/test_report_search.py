"""Reports of searches: trials instead of cases, what is chosen is not chosen by test accuracy."""

import json
import random

import pytest

from pqd.report import build
from pqd.report.load import load
from pqd.report.view import view
from report_runs import ORDERS, result, write, write_sweep

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
    assert text.count("\n| ") - 1 == len(search.chosen)
    tex = (tmp_path / "report" / "table.tex").read_text()
    assert tex.count(r"\\") >= len(search.chosen)
    assert json.loads(json.dumps(text))  # nothing that is no text


def test_other_runs_keep_their_cases(folder, tmp_path):
    write_sweep(tmp_path / "sweep", order=ORDERS, seed=range(3))
    report = view(load([folder, tmp_path / "sweep"]))
    assert len(report.searches[0].trials) == 20
    assert [len(v.case.runs) for v in report.cases] == [18]
    assert "pqd" in report.verdict
