"""Values of a swept setting, compared in pairs of a seed."""

import pytest

from pqd.report import build
from pqd.report.load import load
from pqd.report.view import view
from report_runs import result, write

GAINS = {"hinton": 0.0, "dkd": 0.6, "dist": -0.4}


@pytest.fixture
def folder(tmp_path):
    """Three losses at two widths of weights, six seeds."""
    for seed in range(6):
        for bits, lost in ((8, 0.0), (4, 3.0)):
            for loss, gain in GAINS.items():
                accuracy = 80.0 + seed - lost + gain + (0.01 * seed if loss != "hinton" else 0.0)
                data = result("pqd", seed, accuracy=accuracy)
                data.config["distill"]["loss"] = loss
                data.config["quantize"]["weight_bits"] = bits
                data.name += f"_{loss}_{bits}"
                write(tmp_path / "runs", data)
    return tmp_path / "runs"


def test_each_setting_is_compared_with_its_default_where_all_else_is_equal(folder):
    shown = {setting.key: setting for setting in view(load([folder])).settings}
    bits, loss = shown["quantize.weight_bits"], shown["distill.loss"]
    assert (loss.key, loss.order) == ("distill.loss", "pqd")
    found = {(c.value, c.where.split(" · ")[2]): c for c in loss.changes}
    assert set(found) == {
        (value, f"quantize.weight_bits={width}") for value in ("dkd", "dist") for width in (4, 8)
    }
    change = found["dkd", "quantize.weight_bits=4"]
    assert change.reference == "hinton"
    assert change.difference.mean == pytest.approx(0.625)
    assert (change.difference.n, change.p, change.corrected) == (6, 2 / 64, 4 * 2 / 64)
    assert change.verdict == "could not be shown: with 6 pairs corrected p ≥ 0.125"
    assert {(c.value, c.reference) for c in bits.changes} == {("4", "8")}
    assert [round(c.difference.mean, 9) for c in bits.changes] == [-3.0] * 3
    assert {c.corrected for c in bits.changes} == {3 * 2 / 64}


def test_one_comparison_of_six_seeds_can_be_proven(folder, tmp_path):
    for seed in range(6):
        for loss, gain in (("hinton", 0.0), ("dkd", 0.6)):
            data = result("pqd", seed, accuracy=80.0 + seed + gain)
            data.config["distill"]["loss"] = loss
            data.name += loss
            write(tmp_path / "two", data)
    (loss,) = view(load([tmp_path / "two"])).settings
    (change,) = loss.changes
    assert (change.corrected, change.verdict) == (2 / 64, "more accurate")


def test_pages_show_it_where_something_was_swept(folder, tmp_path):
    page = build([folder], tmp_path / "out", figures=False).read_text()
    text = (tmp_path / "out/report.md").read_text()
    assert "## Setting distill.loss, in pqd" in text
    case = "resnet20 · digits · quantize.weight_bits=4 · sparsity 80 %"
    assert f"| dkd | hinton | {case} | +0.62 |" in text
    assert "<h3>Setting quantize.weight_bits, in pqd</h3>" in page
    write(tmp_path / "plain", result("pqd"))
    build([tmp_path / "plain"], tmp_path / "other", figures=False)
    assert "## Setting" not in (tmp_path / "other/report.md").read_text()
