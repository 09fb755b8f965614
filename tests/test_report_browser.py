"""What a reader sees of the report: nothing cut, nothing over another, nothing empty."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from pqd.report import build
from pqd.result import Layer
from report_browser import COMMAND, READY, browser
from report_runs import (
    ORDERS,
    latency,
    provenance,
    result,
    unfinished,
    write,
    write_bench,
    write_sweep,
)

pytestmark = pytest.mark.skipif(
    not shutil.which(COMMAND), reason=f"needs the command {COMMAND} (Debian: apt install chromium)"
)

WIDTHS = (1440, 400)
STUDY = Path(__file__).parents[1] / "results" / "cpu" / "runs"

PROBLEMS = (Path(__file__).parent / "report_problems.js").read_text()
OPEN_ALL = "document.querySelectorAll('details').forEach((d) => { d.open = true; })"
LAST_OF_ALL = """document.querySelectorAll("select").forEach((select) => {
  select.selectedIndex = select.options.length - 1;
  select.dispatchEvent(new Event("change"));
})"""


@pytest.fixture(scope="module")
def page():
    with browser() as page:
        yield page


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Two built reports: a wide one with everything there is, and that of a stored study."""
    folder = tmp_path_factory.mktemp("reports")
    runs = write_sweep(
        folder / "sweep", order=(*ORDERS, "q", "d", "none"), seed=range(2), sparsity=(0.8, 0.95)
    )
    runs += write_sweep(folder / "sweep", order=ORDERS, seed=range(2), backbone=["vgg16_bn"])
    for run in runs[:20]:
        record = json.loads(run.read_text())
        times = {"onnxruntime": 0.3, "openvino": 0.1}
        layer = Layer(
            "features.conv1", "Conv", [64, 3, 3, 3], [64, 8, 8], 9, 0.5, 8, 99, times, 0.1
        )
        record["final"]["layers"] = [asdict(layer), asdict(Layer("", "QLinearAdd", time=times))]
        run.write_text(json.dumps(record))
    for run in runs:
        rows = latency("pqd", 1.0, noisy=True, others_share=0.3)
        where = provenance("AMD EPYC 7763 64-Core Processor", cores=64)
        write_bench(run.parent / "bench-other.json", where, rows)
    reason = "out of memory: " + 200 * "x"
    write(folder / "sweep", unfinished(result("pqd", 9), "failed", reason))
    build([folder / "sweep"], folder / "wide", figures=False)
    build([STUDY], folder / "study", figures=False)
    return folder


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["wide", "study"])
def test_nothing_is_cut_over_another_or_empty_and_no_network_is_used(page, reports, name, width):
    path = reports / name / "report.html"
    page.open(path, width)
    page.run(READY)
    assert page.run("innerWidth") == width
    assert page.run(PROBLEMS) == []
    page.run(OPEN_ALL)
    assert page.run(PROBLEMS) == []
    page.run(LAST_OF_ALL)
    assert page.run(PROBLEMS) == []
    assert page.requests == [path.as_uri()]


def orders(page):
    return page.run(
        "[...document.querySelectorAll('.orders tbody td:first-child')]"
        ".filter((cell) => cell.offsetWidth).map((cell) => cell.innerText)"
    )


def test_a_click_on_a_header_sorts(page, reports):
    page.open(reports / "study" / "report.html", 1440)
    page.run(READY)
    before = orders(page)
    click = (
        "[...document.querySelectorAll('.orders th')].find((th) => th.innerText === '{}').click()"
    )
    page.run(click.format("mean"))
    assert orders(page)[:3] == ["p", "qdp", "dqp"]
    page.run(click.format("mean"))
    assert orders(page)[:3] == ["q", "dense", "d"]
    page.run(click.format("size"))
    assert orders(page)[:3] == ["dqp", "qdp", "dpq"]  # of equal ones the more accurate
    assert sorted(orders(page)) == sorted(before)


def test_cells_sort_by_what_they_say(page, reports):
    page.open(reports / "study" / "report.html", 1440)
    page.run(READY)
    ascending = ["−0.50", "< 0.001", "0.001", "0.906 to 0.999", "432", "2,304", "36,864 of 40,000"]
    ascending += ["78.0 k", "41.2 M", "1.20 G", "–"]
    cells = "[...document.querySelector('.orders tbody').rows].map((row) => row.cells[1])"
    page.run(f"{cells}.forEach((cell, i) => cell.innerText = {ascending[::-1]}[i])")
    page.run("document.querySelectorAll('.orders th')[1].click()")
    assert page.run(f"{cells}.map((cell) => cell.innerText)") == ascending


def test_size_and_latency_are_on_the_screen_of_a_phone(page, reports):
    page.open(reports / "study" / "report.html", 400)
    page.run(READY)
    last = "[...document.querySelectorAll('.orders tbody tr')].flatMap((row) => [...row.cells])"
    right = page.run(f"Math.max(...{last}.map((cell) => cell.getBoundingClientRect().right))")
    frame = "document.querySelector('.orders').parentElement.getBoundingClientRect().right"
    assert right <= page.run(frame) <= 400
    shown = page.run(
        "[...document.querySelectorAll('.orders thead th')]"
        ".filter((th) => th.offsetWidth).map((th) => th.innerText.replace(/\\s+/g, ' '))"
    )
    assert shown == ["Order", "Accuracy", "size", "ONNX Runtime INT8 ms"]


def test_what_a_filter_leaves_has_ticks(page, reports):
    page.open(reports / "study" / "report.html", 1440)
    page.run(READY)
    page.run(
        "document.querySelectorAll('button.chip').forEach((chip) => {"
        " if (!['pqd', 'pdq', 'qpd'].includes(chip.dataset.order)) chip.click(); })"
    )
    assert page.run("document.querySelector('.plot').layout.xaxis.tickvals.length") >= 3


PLOT = "document.querySelector('.plot')"
TICKS = f"{PLOT}.layout.xaxis.ticktext"
PLACES = (
    f"Object.fromEntries({PLOT}.data.filter((t) => t.visible && t.meta).map((t) => [t.meta, t.x]))"
)


def test_what_costs_far_more_stands_at_the_margin_whatever_is_hidden(page, reports):
    page.open(reports / "study" / "report.html", 1440)
    page.run(READY)
    places = page.run(PLACES)
    assert page.run(TICKS)[-3:] == ["220<br>KiB", "247<br>KiB", "≥990<br>KiB"]
    assert places["d"] == places["none"] == places["dense"]
    assert max(places["pqd"]) < page.run(f"{PLOT}.layout.shapes[0].x0") < min(places["q"])
    hide = "document.querySelector('button.chip[data-order={}]').click()"
    page.run(hide.format("q"))
    assert page.run(TICKS)[-2:] == ["247<br>KiB", "≥990<br>KiB"]
    zoomed = page.run(
        f"Plotly.relayout({PLOT}, {{'xaxis.range': [Math.log10(71), Math.log10(90)]}})"
        f".then(() => {TICKS})"
    )
    assert zoomed[-2:] == ["247<br>KiB", "≥990<br>KiB"]  # no cost is made up beyond the line
    for order in ("pqd", "pdq", "qpd", "qdp", "dpq", "dqp"):
        page.run(hide.format(order))
    assert page.run(f"{PLOT}.layout.shapes ?? null") is None  # what is left fills the axis


def test_problems_are_found(page, tmp_path):
    path = tmp_path / "bad.html"
    path.write_text(
        """<!doctype html><body style="width: 300px; font: 16px monospace">
        <p style="white-space: nowrap">off the page and so on and so on and so on</p>
        <p style="overflow: hidden; width: 80px; white-space: nowrap">cut and so on</p>
        <p style="position: absolute; top: 200px">one</p>
        <p style="position: absolute; top: 205px">two</p>
        <select style="width: 90px"><option>an option too long</option></select>
        <div class="plot" data-figure="a" style="height: 200px"></div>
        <div class="card" style="height: 9px"></div></body>"""
    )
    page.open(path, 400)
    assert page.run("new Promise((r) => setTimeout(r, 200)).then(() => innerWidth)") == 400
    assert page.run(PROBLEMS) == [
        "off the page: off the page and so on and so on and so on",
        "cut: cut and so on",
        "overlap: one and two",
        "cut: an option too long",
        "empty plot: a",
        "empty card",
        "the page scrolls sideways",
    ]
