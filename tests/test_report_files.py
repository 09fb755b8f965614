"""The report's files: the page, the tables and the points, and that they are whole."""

import base64
import csv
import gzip
import json
import re
from pathlib import Path

import pytest

from pqd.report import build
from pqd.result import Final, Layer, Provenance
from report_page import Links
from report_runs import ORDERS, result, unfinished, write, write_sweep


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
