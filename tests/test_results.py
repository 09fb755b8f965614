"""What `results/` and the README state is what the stored result.json files say."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from pqd.report import page
from pqd.report.load import load
from pqd.report.spreadsheet import rows, to_csv
from pqd.report.view import view

ROOT = Path(__file__).parents[1]
STUDIES = sorted(path.parent for path in (ROOT / "results").glob("*/points.csv"))
QUOTES = sorted(
    (path, name, text)
    for path in (ROOT / "README.md", *(study / "README.md" for study in STUDIES))
    for name, text in re.findall(
        r"<!-- from (\S+) -->\n(.*?)<!-- end -->", path.read_text(), flags=re.DOTALL
    )
)


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_points_and_report_are_those_of_the_stored_runs(study):
    loaded = load([study / "runs"])
    assert loaded.problems == []
    assert view(loaded).unfinished == []
    assert (study / "points.csv").read_text() == to_csv(rows(loaded))
    assert (study / "report.md").read_text() == page.markdown(view(loaded), figure=True)


@pytest.mark.parametrize(
    ("path", "name", "text"), QUOTES, ids=[f"{path.parent.name}:{name}" for path, name, _ in QUOTES]
)
def test_quoted_tables_are_in_the_report(path, name, text):
    assert text.strip()
    assert text.strip() in (path.parent / name).read_text()


def test_the_readme_quotes_a_study():
    assert any(path == ROOT / "README.md" for path, _, _ in QUOTES)


def test_results_hold_no_weights():
    kept = {path.suffix for path in (ROOT / "results").rglob("*") if path.is_file()}
    assert kept <= {".csv", ".html", ".json", ".md", ".png", ".svg", ".tex"}


def test_the_leaderboard_is_that_of_the_stored_studies():
    command = [sys.executable, ROOT / "benchmarks/leaderboard.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout in (ROOT / "results/README.md").read_text()


def test_the_search_is_compared_with_the_grid_by_their_stored_runs():
    script = runpy.run_path(str(ROOT / "benchmarks/search.py"))
    study = ROOT / "results/search"
    sides = [script["results"](study / "runs" / side) for side in ("search", "grid")]
    assert script["table"](*sides) in (study / "README.md").read_text()


def test_bits_of_each_layer_are_compared_by_the_stored_runs():
    study = ROOT / "results/bits"
    table = runpy.run_path(str(ROOT / "benchmarks/bits.py"))["table"](load([study / "runs"]).runs)
    assert table in (study / "README.md").read_text()
