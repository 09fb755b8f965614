"""Values of a swept setting, compared in pairs of a seed."""

import csv

import pytest

from pqd.report import build
from pqd.report.load import load
from pqd.report.swept import followers
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


def presets(folder, order="pqd"):
    """Two losses with what their presets set besides, six seeds."""
    for seed in range(6):
        for loss, alpha, gain in (("hinton", 0.9, 0.0), ("dkd", 0.5, 0.6)):
            data = result(order, seed, accuracy=80.0 + seed + gain, alpha=alpha)
            data.config["distill"]["loss"] = loss
            data.name += loss
            write(folder, data)


def test_settings_take_the_place_of_the_only_order(tmp_path):
    presets(tmp_path / "two")
    report = view(load([tmp_path / "two"]))
    assert (report.subject.order, report.orders) == ("pqd", ["loss=dkd", "loss=hinton"])
    assert report.subject.following == {"distill.loss": ["distill.alpha"]}
    (case,) = report.cases
    assert (case.case.label, report.settings) == ("resnet20 · digits · sparsity 80 %", [])
    (change,) = report.comparisons
    assert (change.order, change.corrected, change.verdict) == (
        "loss=dkd",
        2 / 64,
        "more accurate",
    )
    assert change.difference.mean == pytest.approx(0.6)
    assert report.verdict == (
        "loss=dkd is more accurate than loss=hinton, +0.60 points (95 % interval 0.60 to 0.60, "
        "6 pairs, corrected p = 0.031)."
    )
    assert len({look.colour for look in report.looks.values()}) == 3
    page = build([tmp_path / "two"], tmp_path / "out").read_text()
    text = (tmp_path / "out/report.md").read_text()
    for shown in (page, text):
        assert "which setting of pqd?" in shown
        assert "distill.alpha goes along with distill.loss." in shown
    assert "12 completed runs · 1 order · 2 settings · 6 seeds" in text
    assert "| loss=dkd | 6 | 83.10 |" in text
    assert "\nloss=dkd & 6 & 83.10" in (tmp_path / "out/table.tex").read_text()
    # points.csv says everything that was swept, and the order.
    (first, *_) = csv.DictReader((tmp_path / "out/points.csv").read_text().splitlines())
    assert (first["order"], first["variant"].split()[0]) == ("pqd", "distill.loss=dkd")


def test_of_several_orders_settings_are_cases(tmp_path):
    presets(tmp_path, "pqd")
    presets(tmp_path, "qpd")
    report = view(load([tmp_path]))
    assert (report.subject.order, report.orders) == (None, ["pqd", "qpd"])
    assert [view.case.variant for view in report.cases] == [
        {"distill.loss": "dkd"},
        {"distill.loss": "hinton"},
    ]
    ((change,),) = (setting.changes for setting in report.settings)
    assert (change.value, change.where) == ("dkd", "resnet20 · digits · sparsity 80 %")


def test_sizes_and_bits_of_one_order_share_a_frontier(tmp_path):
    for bits, kib, accuracy in ((4, None, 80.0), (10, None, 82.0), (10, 20, 81.0)):
        data = result("q", accuracy=accuracy)
        data.config["quantize"] |= {"weight_bits": bits, "size_kib": kib}
        data.name += f"{bits}{kib}"
        write(tmp_path, data)
    report = view(load([tmp_path]))
    assert report.orders == ["weight_bits=4", "weight_bits=10"]
    (family,) = report.families
    assert {(p.order, p.axes) for p in family.frontiers[0].points if p.order != "dense"} == {
        ("weight_bits=4", ()),
        ("weight_bits=10", ()),
        ("weight_bits=10", (("quantize.size_kib", 20.0),)),
    }


def test_other_images_are_no_setting(tmp_path):
    for root, digest in (("birds", "b" * 16), ("flowers", "f" * 16)):
        data = result("pqd", accuracy=80.0)
        data.config["dataset"]["root"] = root
        data.final.dataset = digest
        write(tmp_path / root, data)
    report = view(load([tmp_path]))
    assert report.subject.order is None
    assert report.comparisons == []


def test_what_goes_along_with_what():
    def of(**columns):
        rows = zip(*columns.values(), strict=True)
        return followers([(None, dict(zip(columns, row, strict=True))) for row in rows])

    assert of(a=("1", "1", "2", "2"), b=("1", "2", "1", "2")) == {}
    assert of(a=("1", "2", "3"), b=("1", "1", "2")) == {"b": "a"}
    assert of(a=("1", "1", "2"), b=("1", "2", "3"), c=("1", "2", "3")) == {"a": "b", "c": "b"}
    assert of(a=("1", "2"), word=("x", "y")) == {"a": "word"}
    assert of(a=("1", "2", "2"), b=("1", "2", "3"), c=("x", "y", "z")) == {"a": "c", "b": "c"}


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


def test_an_order_without_the_settings_stage_is_not_compared_with_itself(tmp_path):
    for seed in range(3):
        write(tmp_path, result("none", seed))
        for bits in (8, 4) if seed else (8,):
            data = result("q", seed, accuracy=80.0 + bits)
            data.config["quantize"]["weight_bits"] = bits
            data.name += f"_{bits}"
            write(tmp_path, data)
    (found,) = view(load([tmp_path])).settings
    assert (found.key, found.order) == ("quantize.weight_bits", "q")
    assert [(c.value, c.difference.mean, c.difference.n) for c in found.changes] == [("4", -4, 2)]


def test_what_changes_the_baseline_makes_cases_with_a_dense_network_each(tmp_path):
    for seed in range(2):
        for epochs, dense in ((12, 80.0), (40, 90.0)):
            data = result("pqd", seed, accuracy=dense - 1 + seed, dense_accuracy=dense + seed)
            data.config["baseline"]["epochs"] = epochs
            data.name += f"_{epochs}"
            write(tmp_path, data)
    report = view(load([tmp_path]))
    shown = {v.case.variant["baseline.epochs"]: v.rows for v in report.cases}
    assert {value: rows[0].accuracy.mean for value, rows in shown.items()} == {
        "12": 80.5,
        "40": 90.5,
    }
    assert {rows[1].change.mean for rows in shown.values()} == {-1.0}
    (setting,) = report.settings
    assert [(c.value, c.reference, c.difference.mean) for c in setting.changes] == [
        ("40", "12", 10.0)
    ]
