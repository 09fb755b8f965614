"""The report's figures: what stands at the margin, and other people's stages."""

import json

import pytest

import toys
from pqd.report import build, figures, style
from pqd.report.load import load
from pqd.report.view import view
from pqd.result import DENSE
from report_page import Links
from report_runs import write_orders


@pytest.fixture(params=[True, False], ids=["registered", "unknown"])
def letter(request):
    """The letter of a stage that pqd does not have; of an unknown stage it is its initial."""
    if request.param:
        toys.register()
    yield "x" if request.param else "t"
    if request.param:
        toys.unregister()


def test_orders_with_other_stages_are_in_tables_plots_and_verdicts(tmp_path, letter):
    better = [81.0 + 0.01 * seed for seed in range(8)]
    write_orders(tmp_path, {"pxq": better, "pqd": [80.0] * 8, "qdp": [79.0] * 8, "x": better})
    out = build([tmp_path], tmp_path / "out").parent
    other = f"p{letter}q"
    report = view(load([tmp_path]))
    assert report.orders == ["pqd", "qdp", other, letter]
    assert report.stages == ["baseline", "prune", "quantize", "distill", "toy"]
    assert report.verdict.startswith(f"{other} is more accurate than pqd, +1.04 points")
    page, text, table, points = (
        (out / name).read_text() for name in ("report.html", "report.md", "table.tex", "points.csv")
    )
    assert f"| {other} | 8 | 81.03 |" in text
    assert f"{letter} toy" in page
    assert f'data-order="{other}"' in page
    assert f"\n{other} & 8 & 81.03" in table
    assert ",toy_seconds," in points
    plots = json.loads(Links(page).scripts[0])["plots"]
    look = report.looks[other]
    for name in ("frontier-0-size", "differences-0", "stages-0"):
        drawn = {trace.get("meta"): trace for trace in plots[name]["data"]}
        assert drawn[other]["marker"]["color"] == look.colour
    assert look.colour not in {*style.COLOURS.values(), style.GREY}
    assert look.symbol not in style.SYMBOLS.values()
    assert len(look.polygon) >= 3


def test_what_costs_far_more_is_at_the_margin_and_does_not_stretch_the_axis(tmp_path):
    write_orders(tmp_path, {"pqd": [80.0], "pdq": [81.0]})
    report = view(load([tmp_path]))
    near = report.families[0].frontiers[0]
    figure = figures.frontier(near, report.looks)
    assert [[p.order for p in slot] for slot in near.apart] == [[DENSE]]
    assert "(KiB" in figure["layout"]["xaxis"]["title"]["text"]
    (dense,) = [trace for trace in figure["data"] if trace.get("meta") == DENSE]
    assert dense["customdata"] == ["1.05<br>MiB"]  # by which the page knows it
    costs = [x for trace in figure["data"] if "customdata" not in trace for x in trace["x"]]
    assert max(costs) < 1.2 * min(costs)
    # The orders that skip a stage cost more, too: those of about one cost share a place.
    write_orders(tmp_path, {"d": [85.0], "none": [90.0], "q": [89.0], "p": [88.0]})
    wide = view(load([tmp_path])).families[0].frontiers[0]
    assert [[p.order for p in slot] for slot in wide.apart] == [["p", "q"], ["none", "d"], [DENSE]]
    assert {p.order for p in wide.near} == {"pqd", "pdq"}
    assert wide.unit[0] == "KiB"


def test_single_techniques_alone_are_no_ones_margin(tmp_path):
    write_orders(tmp_path, {"d": [85.0], "p": [88.0]})
    (size, *_) = view(load([tmp_path])).families[0].frontiers
    assert size.apart == []


def test_one_seed_has_no_dash_for_an_interval(tmp_path):
    write_orders(tmp_path, {"pqd": [80.0]})
    report = view(load([tmp_path]))
    figure = figures.frontier(report.families[0].frontiers[0], report.looks)
    bars = [trace["error_y"] for trace in figure["data"] if "error_y" in trace]
    assert [(bar["array"], bar["width"]) for bar in bars] == [([0], 0)] * 2  # dense too
