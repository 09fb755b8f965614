"""The report: what is read, how it is grouped, and what the files say."""

import base64
import csv
import gzip
import json
import math
import re
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import pytest

import toys
from pqd.errors import UserError
from pqd.report import build, figures, points, style
from pqd.report.load import load
from pqd.report.view import view
from pqd.result import DENSE, Final, Layer, Provenance
from report_runs import (
    ORDERS,
    latency,
    provenance,
    result,
    unfinished,
    write,
    write_bench,
    write_orders,
    write_sweep,
)

# --- reading


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


# --- numbers of the report


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


# --- stages of other people's


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
    for name in ("frontier-0-size", "differences-0", "stages-0"):
        drawn = {trace.get("meta"): trace for trace in plots[name]["data"]}
        assert drawn[other]["marker"]["color"] == style.colour(other)
    assert style.colour(other) not in {*style.COLOURS.values(), style.GREY}
    assert style.symbol(other) not in style.SYMBOLS.values()
    assert len(style.polygon(other)) >= 3


# --- figures


def test_what_costs_far_more_is_at_the_margin_and_does_not_stretch_the_axis(tmp_path):
    write_orders(tmp_path, {"pqd": [80.0], "pdq": [81.0]})
    near = view(load([tmp_path])).families[0].frontiers[0]
    figure = figures.frontier(near)
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
    figure = figures.frontier(view(load([tmp_path])).families[0].frontiers[0])
    bars = [trace["error_y"] for trace in figure["data"] if "error_y" in trace]
    assert [(bar["array"], bar["width"]) for bar in bars] == [([0], 0)] * 2  # dense too


# --- files


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    write_sweep(folder, order=(*ORDERS, "q"), seed=range(2), dataset=("digits", "cifar10"))
    write(folder, unfinished(result("pqd", 9), "failed", "</script><b>&"))
    build([folder], folder / "report")
    return folder / "report"


def test_all_files_are_written_and_nothing_is_left(built):
    assert sorted(path.name for path in built.iterdir()) == [
        "frontier.png",
        "frontier.svg",
        "points.csv",
        "report.html",
        "report.md",
        "table.tex",
    ]
    assert (built / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (built / "frontier.svg").read_text()


def test_same_results_same_files(built):
    before = {path.name: path.read_bytes() for path in built.iterdir()}
    assert build([built.parent], built) == built / "report.html"
    assert {path.name: path.read_bytes() for path in built.iterdir()} == before


class Links(HTMLParser):
    """Collects what a page loads, and the text of its scripts."""

    def __init__(self, page: str):
        super().__init__()
        self.loaded: list[str] = []
        self.linked: list[str] = []  # followed by a click alone
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.inside = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.inside = tag
        found = [v for k, v in attrs if k in ("src", "href", "srcset", "data", "action")]
        (self.linked if tag == "a" else self.loaded).extend(found)
        self.scripts += [""] if tag == "script" else []

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside == "style":
            self.styles.append(data)


def test_page_is_one_file_without_network(built):
    page = (built / "report.html").read_text()
    links = Links(page)
    assert links.loaded == []
    assert not re.search(r"@import|url\(", "".join(links.styles))
    data, plotly, own = links.scripts
    assert b"plotly.js v" in gzip.decompress(base64.b64decode(plotly))[:200]
    assert "http" not in own
    drawn = set(re.findall(r'data-figure="([^"]+)"', page))
    assert drawn == set(json.loads(data)["plots"])


def test_page_links_to_the_files_beside_it_and_to_every_run(built):
    linked = Links((built / "report.html").read_text()).linked
    assert linked[:5] == ["points.csv", "table.tex", "frontier.png", "frontier.svg", "report.md"]
    assert len(linked) == 5 + 28
    assert all((built / name).exists() for name in linked[:5])
    assert all((built / folder / "result.json").is_file() for folder in linked[5:])


def test_sections_with_nothing_to_compare_are_left_out(built, tmp_path):
    headings = ("<h2>Compared with pqd</h2>", "<h2>Hypervolume</h2>")
    assert all(heading in (built / "report.html").read_text() for heading in headings)
    write_sweep(tmp_path, seed=range(2))
    page = build([tmp_path], tmp_path / "out", figures=False).read_text()
    assert not any(heading in page for heading in headings)


def test_layers_of_each_orders_first_seed(built, tmp_path):
    assert "<summary>Layers</summary>" not in (built / "report.html").read_text()
    for seed, share in ((0, 0.25), (1, 0.5)):
        run = result("pqd", seed)
        run.final.layers = [Layer("conv1", "Conv", [8, 3, 3, 3], time={"onnxruntime": share})]
        write(tmp_path, run)
    page = build([tmp_path], tmp_path / "out", figures=False).read_text()
    assert '<td class="text">conv1</td><td class="text">Conv</td>' in page
    assert "What hurts most: conv1 takes 25.0 % of the time in ONNX Runtime." in page
    assert "50.0 % of the time" not in page


def test_page_escapes_what_runs_say(built):
    page = (built / "report.html").read_text()
    assert "&lt;/script&gt;&lt;b&gt;&amp;" in page
    assert "</script><b>&" not in page


def test_page_and_markdown_say_the_verdict(built):
    for name in ("report.html", "report.md"):
        assert "No verdict is possible with 2 seeds" in (built / name).read_text()


def test_points_csv(built):
    with (built / "points.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 28
    row = next(r for r in table if (r["order"], r["seed"], r["dataset"]) == ("pqd", "1", "digits"))
    expected = result("pqd", 1).final
    assert float(row["accuracy"]) == expected.accuracy
    assert int(row["package_bytes"]) == expected.sizes["package"]
    timing = next(t for t in expected.latency if t.model == "int8" and t.threads == 2)
    assert float(row["onnxruntime_t2_b1_int8_p50_ms"]) == timing.p50_ms
    unpruned = next(r for r in table if r["order"] == "q")
    assert unpruned["target_sparsity"] == unpruned["prune_seconds"] == ""


def test_latex_table(built):
    text = (built / "table.tex").read_text()
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1
    assert r"sparsity 80 \%" in text
    rows = [line for line in text.splitlines() if line.startswith("pqd &")]
    assert len(rows) == 2
    assert all(line.count("&") == 6 and line.endswith(r" \\") for line in rows)
    assert r"$\pm$" in rows[0]


@pytest.mark.parametrize("seeds", [1, 6])
def test_single_order_without_latencies(tmp_path, seeds):
    write_sweep(tmp_path, seed=range(seeds), runtimes=[()])
    page = build([tmp_path], tmp_path / "out").read_text()
    assert "Nothing to compare" in page
    assert "latency in" not in page
    assert "INT8 ms" not in (tmp_path / "out" / "table.tex").read_text()


def test_missing_sizes_and_parts_of_a_result(tmp_path):
    data = result("dq")
    data.final = Final(dense_accuracy=90.0, accuracy=91.0, sparsity=0.0)
    data.provenance = Provenance(started="2026-03-01T08:00:00+00:00")
    for entry in data.stages:
        entry.validation_accuracy = None
    write(tmp_path, data)
    page = build([tmp_path], tmp_path / "out").read_text()
    assert "not recorded" in page
    assert 'data-figure="' not in page
    assert not (tmp_path / "out" / "frontier.png").exists()


def test_only_failed_runs_still_make_a_report(tmp_path):
    write(tmp_path, unfinished(result(), "failed", "diverged"))
    page = build([tmp_path], tmp_path / "out").read_text()
    assert "No run has completed" in page
    assert (tmp_path / "out" / "points.csv").read_text() == ""
