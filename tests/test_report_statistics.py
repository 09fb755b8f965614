"""The report's statistics and verdict on numbers worked out by hand."""

import math
from pathlib import Path

import pytest

from pqd.report.cases import cases
from pqd.report.compare import compare, verdict
from pqd.report.load import load
from pqd.report.statistics import (
    dominated,
    estimate,
    holm,
    hypervolume,
    pairs_needed,
    sign_flip,
)
from pqd.report.style import SYMBOLS, log_axis, looks
from pqd.report.view import view
from report_runs import ORDERS, result, write, write_orders

# --- statistics


def test_t_interval():
    e = estimate([1.0, 2.0, 3.0])
    half = 4.302652729911275 / math.sqrt(3)  # t quantile, 2 degrees of freedom, tabulated
    assert (e.mean, e.deviation, e.n) == (2.0, 1.0, 3)
    assert e.half == pytest.approx(half)
    assert (e.low, e.high) == pytest.approx((2 - half, 2 + half))


def test_one_value_has_no_interval_and_none_no_estimate():
    one = estimate([5.0])
    assert (one.mean, one.deviation, one.low, one.high, one.half) == (5.0, None, None, None, None)
    assert estimate([]) is None


def test_sign_flip_by_hand():
    assert sign_flip([1, 2, 3, 4, 5, 6]) == 2 / 64
    assert sign_flip([0.1] * 6) == 2 / 64  # equal sums in another order of addition
    assert sign_flip([1, -1]) == 1.0
    # |±3 ±2 ±1| is 6, 4, 2 and 0, twice each: four of eight reach the 4 observed.
    assert sign_flip([3, 2, -1]) == 4 / 8
    assert sign_flip([0.1, 0.2, -0.3]) == 1.0  # sums to 3e-17


@pytest.mark.parametrize("n", [6, 9])
def test_sign_flip_is_that_of_scipy(n):
    import numpy as np
    from scipy.stats import permutation_test

    d = np.random.default_rng(n).normal(0.3, 1, n)
    expected = permutation_test(
        (d,), np.mean, permutation_type="samples", n_resamples=2**n, vectorized=True
    )
    assert sign_flip(d) == pytest.approx(expected.pvalue)


def test_sign_flip_of_many_pairs_is_drawn_and_never_zero():
    assert sign_flip([1.0] * 40) == 1 / 2**16
    assert sign_flip([1.0, -1.0] * 20) == 1.0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_pairs_needed():
    assert pairs_needed(1) == 6  # 2 / 2**6 = 0.031
    assert pairs_needed(5) == 8  # 5 * 2 / 2**8 = 0.039, 5 * 2 / 2**7 = 0.078


def test_dominated_points():
    costs, accuracies = [1.0, 2.0, 3.0, 3.0, 1.0], [90.0, 92.0, 91.0, 92.0, 90.0]
    assert dominated(costs, accuracies) == [False, False, True, True, False]
    assert dominated([], []) == []


def test_hypervolume_by_hand():
    # Half the cost and half the error of the reference: a quarter of the rectangle.
    assert hypervolume([1.0], [95.0], cost=2.0, accuracy=90.0) == pytest.approx(25.0)
    assert hypervolume([1.0, 1.5], [95.0, 97.5], 2.0, 90.0) == pytest.approx(25 + 6.25)
    assert hypervolume([3.0], [95.0], 2.0, 90.0) == 0.0
    assert hypervolume([], [], 2.0, 90.0) == 0.0


@pytest.mark.parametrize(
    "values",
    [[2.5, 43.0], [0.24, 0.9], [3.0], [11.0, 11.4], [0.03, 900.0], [73.2, 73.3], [9.9, 10.1]],
)
def test_log_axis_shows_all_values_and_a_few_round_ticks(values):
    (low, high), ticks = log_axis(values)
    assert low < min(values) <= max(values) < high
    assert 3 <= len(ticks) <= 7
    assert all(low <= tick <= high for tick in ticks)


def test_every_order_has_its_own_marker():
    assert len(set(SYMBOLS.values())) == len(SYMBOLS)
    assert len({tuple(look.polygon) for look in looks(SYMBOLS).values()}) == len(SYMBOLS)


# --- comparison and verdict


def test_comparison_is_paired_by_seed(tmp_path):
    base = [80.0, 85.0, 90.0, 82.0, 84.0, 86.0]
    write_orders(tmp_path, {"pqd": base, "dpq": [b + 1 for b in base], "qdp": base[:3], "pq": base})
    found = compare(cases(load([tmp_path]).runs))
    assert [(c.order, c.full, c.difference.n, c.seeds) for c in found] == [
        ("qdp", True, 3, 3),
        ("dpq", True, 6, 6),
        ("pq", False, 6, 6),
    ]
    qdp, dpq, pq = found
    assert (pq.difference.mean, pq.p) == (0.0, 1.0)
    assert (qdp.difference.mean, qdp.p, qdp.corrected) == (0.0, None, None)
    assert dpq.difference.mean == pytest.approx(1.0)
    assert dpq.p == dpq.corrected == 2 / 64  # the only order with six seeds
    assert dpq.proven
    text = verdict(found, {})
    assert text == "No run has completed, so there is nothing to compare."


def test_sparsities_of_one_seed_are_one_pair(tmp_path):
    for sparsity, gain in ((0.8, 1.0), (0.9, 3.0)):
        write_orders(tmp_path, {"pqd": [80.0] * 2, "dpq": [80.0 + gain] * 2}, sparsity=sparsity)
    (c,) = compare(cases(load([tmp_path]).runs))
    assert (c.difference.n, c.difference.mean) == (2, 2.0)


def text_of(folder: Path) -> str:
    return view(load([folder])).verdict


def test_verdict_with_few_seeds_is_none(tmp_path):
    write_orders(tmp_path, {"pqd": [80.0, 81.0], "dpq": [81.0, 82.0]})
    assert text_of(tmp_path) == (
        "No verdict is possible with 2 seeds, at least 6 are needed: so far dpq has the highest "
        "mean accuracy, +1.00 points (95 % interval 1.00 to 1.00, 2 pairs) against pqd."
    )


def test_verdict_says_that_six_pairs_cannot_prove_one_of_five(tmp_path):
    better = {order: [81.0 + 0.01 * s for s in range(6)] for order in ORDERS[1:]}
    write_orders(tmp_path, {"pqd": [80.0] * 6} | better)
    text = text_of(tmp_path)
    assert text.startswith("No order is shown to differ from pqd")
    assert "corrected p = 0.156" in text
    assert "with 6 pairs and 5 comparisons" in text
    assert "8 pairs can" in text


def test_verdict_names_what_is_proven(tmp_path):
    wiggle = [0.0, 0.1, -0.1, 0.05, -0.05, 0.02, 0.03, -0.02, 0.01]
    shift = {"pqd": 0.0, "dpq": 0.5, "qdp": -0.7, "qpd": 0.001}
    write_orders(tmp_path, {o: [80 + d + w * (d != 0) for w in wiggle] for o, d in shift.items()})
    text = text_of(tmp_path)
    assert text.startswith("dpq is more accurate than pqd, +0.50 points (95 % interval 0.4")
    assert text.endswith("; less accurate is qdp (−0.70); no difference is shown for qpd.")


def test_verdict_where_only_worse_is_proven(tmp_path):
    write_orders(tmp_path, {"pqd": [80.0] * 6, "qdp": [79.0] * 6})
    assert text_of(tmp_path) == (
        "No order is shown to be more accurate than pqd; qdp is less accurate, −1.00 points "
        "(95 % interval −1.00 to −1.00, 6 pairs, corrected p = 0.031)."
    )


def test_verdict_without_anything_to_compare(tmp_path):
    write_orders(tmp_path / "one", {"dpq": [80.0]})
    write_orders(tmp_path / "two", {"dpq": [80.0], "qdp": [70.0]})
    assert text_of(tmp_path / "one") == (
        "Nothing to compare: the only order that has completed is dpq with 80.00 % (1 run)."
    )
    assert "No order can be compared with pqd" in text_of(tmp_path / "two")


def test_single_techniques_are_compared_too_and_say_nothing_of_full_orders(tmp_path):
    base = [80.0 + seed for seed in range(8)]
    write_orders(tmp_path, {"pqd": base, "d": [b + 2 + b / 100 for b in base]})
    report = view(load([tmp_path]))
    assert report.verdict.startswith("d is more accurate than pqd, +2.8")
    write_orders(tmp_path, {"pdq": [b - 1 for b in base]})
    report = view(load([tmp_path]))
    assert [(c.order, c.corrected) for c in report.comparisons] == [
        ("pdq", 2 / 256),
        ("d", 2 / 256),
    ]
    assert report.verdict.startswith("No order is shown to be more accurate than pqd; pdq is less")
    (case,) = report.cases
    assert (case.best.order, case.among) == ("pqd", " among full orders")


def test_nothing_is_averaged_over_settings(tmp_path):
    for alpha, accuracy in ((0.5, 80.0), (0.9, 90.0)):
        write_orders(tmp_path, {"dpq": [accuracy]}, alpha=alpha)
    assert text_of(tmp_path) == (
        "No verdict is possible with 1 seed, at least 6 are needed: so far alpha=0.9 has the "
        "highest mean accuracy, alpha=0.5 follows at −10.00 points (1 pair)."
    )
    write_orders(tmp_path, {"p": [91.0]})
    assert text_of(tmp_path) == (
        "No order can be compared with pqd, which was not run; the highest mean accuracy is that "
        "of p with 91.00 % (1 run, resnet20 · digits · distill.alpha=0.5 · sparsity 80 %)."
    )


def test_a_pair_shares_its_baseline(tmp_path):
    write_orders(tmp_path, {"pqd": [80.0], "pdq": [81.0]})
    other = result("pdq", accuracy=70.0)  # trained elsewhere, and so is its baseline
    other.config["train"]["device"] = "cuda"
    write(tmp_path / "other", other)
    (c,) = compare(cases(load([tmp_path]).runs))
    assert (c.difference.n, c.difference.mean) == (1, 1.0)
    assert view(load([tmp_path])).repeats == 0


def test_repetitions_of_a_seed_are_one_pair(tmp_path):
    for order, gain in (("pqd", 0.0), ("dpq", 1.0)):
        for seed in range(2):
            for mode, shift in (("auto", 0.0), ("true", 0.4)):
                data = result(order, seed, accuracy=80.0 + gain + shift + seed)
                data.config["train"]["compile"] = mode
                data.name += mode
                write(tmp_path, data)
    report = view(load([tmp_path]))
    (c,) = report.comparisons
    assert (c.difference.n, c.difference.mean) == (2, pytest.approx(1.0))
    (case,) = report.cases
    assert [row.accuracy.n for row in case.rows] == [2, 2, 2]  # the dense network's, too
    assert {volume.n for volume in report.families[0].frontiers[0].volumes.values()} == {2}


def test_an_order_that_lacks_a_setting_has_no_hypervolume(tmp_path):
    for sparsity in (0.5, 0.8, 0.9):
        write(tmp_path, result("pqd", sparsity=sparsity))
    write(tmp_path, result("pdq", sparsity=0.8))
    write(tmp_path, result("q"))
    (family,) = view(load([tmp_path])).families
    assert set(family.frontiers[0].volumes) == {"pqd", "q"}
