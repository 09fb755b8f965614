"""Reports of runs that removed channels: curves over budgets, what is left, the same budget."""

import pytest

from pqd.report import build, figures, shapes
from pqd.report.load import load
from pqd.report.view import view
from pqd.tracking.records import record_result, record_sweep
from report_runs import ORDERS, Logged, result, write

DENSE = {"conv1": (16, 442368), "conv2": (32, 1179648), "fc": (10, 640)}
KEPT = {1.0: 1.0, 2.0: 0.5, 4.0: 0.25}


def pruned(order, seed, speedup, sparsity=0.0, accuracy=None):
    """A run whose layers but the last keep a share of their channels."""
    run = result(order, seed, sparsity=sparsity, accuracy=accuracy, dense_accuracy=90.0)
    run.config["prune"] |= {"what": "channels_and_weights", "speedup": speedup, "macs": None}
    run.name += f"_x{speedup:g}"
    share = KEPT[speedup]
    stage = next(entry for entry in run.stages if entry.stage == "prune")
    stage.shape = {
        "asked": {"speedup": speedup},
        "measured": {"dense_ms": 2.0 + seed, "pruned_ms": (2.0 + seed) / speedup},
        "macs": share**2,
        "parameters": share**2,
        "channels": {
            name: [width, width if name == "fc" else int(share * width) + seed * (share < 1)]
            for name, (width, _) in DENSE.items()
        },
        "layer_macs": {name: [macs, int(macs * share**2)] for name, (_, macs) in DENSE.items()},
        "layer_parameters": {name: [100, int(100 * share**2)] for name in DENSE},
    }
    for row in run.final.latency:
        if row.model == "int8":
            row.p50_ms /= speedup
            row.macs = int(row.macs * share**2) + seed
    return run


@pytest.fixture
def sweep(tmp_path):
    for order in ORDERS:
        for seed in range(2):
            for speedup in KEPT:
                for sparsity in (0.0, 0.8):
                    write(tmp_path / "sweep", pruned(order, seed, speedup, sparsity))
    return tmp_path / "sweep"


def test_a_curve_per_order_and_sparsity_goes_over_the_budgets(sweep):
    report = view(load([sweep]))
    (family,) = report.families
    assert len(report.cases) == 6
    for frontier in family.frontiers:
        curves = [curve for curve in frontier.curves if curve[0].order != "dense"]
        assert len(curves) == 12
        for curve in curves:
            assert len({p.order for p in curve}) == 1
            assert len({dict(p.axes)["prune.sparsity"] for p in curve}) == 1
            assert {dict(p.axes)["prune.speedup"] for p in curve} == set(KEPT)
            assert [p.cost for p in curve] == sorted(p.cost for p in curve)
        lines = [
            trace
            for trace in figures.frontier(frontier, report.looks)["data"]
            if trace.get("meta") == "pqd"
        ]
        assert [len(trace["x"]) for trace in lines] == [3, 3]


def test_what_is_left_is_shown_for_every_order_and_layer(sweep):
    report = view(load([sweep]))
    case = next(
        v for v in report.cases if v.case.axes == {"prune.sparsity": 0.0, "prune.speedup": 2.0}
    )
    assert [shape.order for shape in case.shapes] == list(ORDERS)
    shape = case.shapes[0]
    assert shape.shares["macs"].mean == 25.0
    runs = case.case.of("pqd")
    assert shape.left["macs"] == runs[0].final.macs / 4
    assert shape.left["parameters"] == runs[0].final.parameters  # which are those that are left
    assert shape.reached.mean == pytest.approx(2.0)
    layer = shape.layers[0]
    assert (layer.name, layer.dense["channels"], layer.kept["channels"].mean) == ("conv1", 16, 8.5)
    assert layer.share("channels") == pytest.approx(100 * 8.5 / 16)
    assert layer.share("macs") == 25.0
    drawn = shapes.figure(case.shapes, report.looks)["data"]
    assert [trace["meta"] for trace in drawn] == list(ORDERS)
    assert drawn[0]["x"] == ["conv1", "conv2", "fc"]
    assert drawn[0]["y"][2] == 100.0


def test_pages_hold_it_and_those_of_other_runs_do_not(sweep, tmp_path):
    build([sweep], tmp_path / "report", figures=False)
    html = (tmp_path / "report/report.html").read_text()
    text = (tmp_path / "report/report.md").read_text()
    assert html.count('data-figure="channels-') == 6
    assert '"channels-5"' in html
    assert "| conv1 | 16 | 8.5 | 8.5 |" in text
    assert "paired by backbone, data set, sparsity, speed-up and seed" in text
    write(tmp_path / "plain", result("pqd"))
    build([tmp_path / "plain"], tmp_path / "other", figures=False)
    assert "Channels kept" not in (tmp_path / "other/report.html").read_text()


def test_orders_are_compared_at_the_same_budget(tmp_path):
    """The order that was run at another budget only is compared with nothing there."""
    for seed in range(6):
        for speedup, base in ((1.0, 90.0), (4.0, 80.0)):
            write(tmp_path, pruned("pqd", seed, speedup, accuracy=base))
            write(tmp_path, pruned("qpd", seed, speedup, accuracy=base + 1))
        write(tmp_path, pruned("dqp", seed, 4.0, accuracy=82.0))
    report = view(load([tmp_path]))
    found = {c.order: c.difference.mean for c in report.comparisons}
    assert found == {"qpd": 1.0, "dqp": 2.0}  # and not 2 - 5, over both of pqd's budgets
    by_budget = {v.case.axes["prune.speedup"]: v for v in report.cases}
    assert by_budget[1.0].against("dqp") is None
    assert by_budget[4.0].against("dqp") == 2.0


def test_wandb_gets_the_layers_and_what_is_left(sweep, tmp_path):
    pytest.importorskip("wandb")
    run = Logged()
    record_sweep(run, tmp_path / "empty", view(load([sweep])))
    table = run.logged["channels"]
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.data]
    assert len(rows) == 6 * len(ORDERS) * len(DENSE)
    (row,) = [
        row
        for row in rows
        if (row["order"], row["layer"]) == ("pqd", "conv1")
        and row["case"] == "resnet20 · digits · sparsity 0 % · speed-up 4"
    ]
    assert (row["channels"], row["dense_channels"]) == (4.5, 16)
    assert (row["macs"], row["dense_macs"]) == (442368 / 16, 442368)
    assert [f"channels_kept/{i}" in run.logged for i in (1, 6, 7)] == [True, True, False]
    run = Logged()
    record_result(run, pruned("pqd", 0, 2.0), lambda stage, epoch: True)
    assert run.summary["prune/macs_left"] == run.summary["prune/parameters_left"] == 0.25
