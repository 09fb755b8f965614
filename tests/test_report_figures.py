"""The report's figures: what stands at the margin, what has one latency, other people's stages."""

import json

import pytest

import toys
from pqd.report import build, figures, style
from pqd.report.load import load
from pqd.report.view import view
from pqd.result import DENSE
from report_page import Links
from report_runs import result, write, write_orders


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


def test_orders_of_one_shape_are_not_ranked_by_latency(tmp_path):
    for order, ms in {"pqd": 1.0, "pdq": 2.0, "d": 5.0}.items():
        data = result(order, runtimes=("onnxruntime",), threads=(1,), accuracy=80.0 + ms)
        for row in data.final.latency:
            row.p50_ms = 7.0 if row.model == "dense" else ms
        write(tmp_path, data)
    build([tmp_path], tmp_path / "out", figures=False)
    text = (tmp_path / "out" / "report.md").read_text()
    assert "(the same MACs in the same graph) are deployed by pqd and pdq. What differs" in text
    frontier = view(load([tmp_path])).families[0].frontiers[1]
    assert frontier.shared == [["pqd", "pdq"]]
    assert {p.order: (p.cost, p.dominated) for p in frontier.points} == {
        "dense": (7.0, False),
        "pqd": (1.5, True),
        "pdq": (1.5, False),
        "d": (5.0, False),
    }
    other = result("pdq", runtimes=("onnxruntime",), threads=(1,), accuracy=80.0)
    for row in other.final.latency:
        row.float_compute_nodes = 3  # another graph
    write(tmp_path, other)
    assert view(load([tmp_path])).families[0].frontiers[1].shared == []


def test_quantizers_for_another_engine_are_another_graph(tmp_path):
    for target, ms in {"onnxruntime": 1.0, "openvino": 2.0}.items():
        for seed in range(2):
            data = result("q", seed, runtimes=("onnxruntime",), threads=(1,))
            data.config["target"] = {"names": [target]}
            data.name += target
            for row in data.final.latency:
                row.p50_ms = ms + seed
            write(tmp_path, data)
    frontier = view(load([tmp_path])).families[0].frontiers[1]
    assert frontier.shared == []
    assert {p.order: p.cost for p in frontier.points if p.order != "dense"} == {
        "target=onnxruntime": 1.5,
        "target=openvino": 2.5,
    }
