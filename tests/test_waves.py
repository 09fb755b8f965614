"""Waves: jobs are launched together where none waits for what another makes."""

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqd.sweep.waves import wanted, waves
from sweepers import demo

SIX = ["".join(order) for order in itertools.permutations("pqd")]


@pytest.mark.usefixtures("hydra")
def test_six_orders_take_three_waves():
    orders = ["pqd", "pdq", "qpd", "qdp", "dpq", "dqp"]
    names = [wanted(demo(order)) for order in orders]
    launched = [[orders[i] for i in wave] for wave in waves(names)]
    assert launched == [["pqd"], ["pdq", "qpd", "dpq"], ["qdp", "dqp"]]
    # A baseline and its export, 15 stages, six artifacts and the figures of each.
    assert len(set(itertools.chain(*names))) == 1 + 1 + 15 + 6 + 6


NAMES = st.sets(st.integers(0, 20).map(str), max_size=5)


@given(st.lists(NAMES, max_size=12), NAMES)
def test_in_a_wave_nobody_waits_for_another(names, there):
    launched = waves(names, there)
    assert sorted(itertools.chain(*launched)) == list(range(len(names)))
    made = set(there)
    for wave in launched:
        wishes = Counter(name for i in wave for name in names[i] if name not in made)
        assert set(wishes.values()) <= {1}
        made |= set(wishes)


@pytest.mark.usefixtures("hydra")
@pytest.mark.parametrize(
    ("key", "value", "stages_in_common"),
    [
        ("runtime.min_calls", 3, 4),
        ("train.eval_batch_size", 3, 4),
        ("distill.epochs", 3, 3),
        ("distill.temperature", 2, 3),
        ("quantize.calibration_batches", 3, 2),
        ("prune.lr", 0.3, 1),
        ("baseline.checkpoint", "x", 0),
        ("train.momentum", 0.3, 0),
        ("dataset.augment.flip", "true", 0),
        ("seed", 3, 0),
        ("cache.dir", "elsewhere", 0),
    ],
)
def test_a_setting_parts_the_stages_it_reaches(key, value, stages_in_common):
    plain, changed = wanted(demo("pqd")), wanted(demo("pqd", f"{key}={value}"))
    common = [a == b for a, b in zip(plain[:4], changed[:4], strict=True)]
    assert common == [i < stages_in_common for i in range(4)]
    assert len(waves([plain, changed])) == (2 if stages_in_common else 1)


@pytest.mark.usefixtures("hydra")
def test_without_a_cache_all_jobs_start_at_once():
    names = [wanted(demo(order, "cache.enabled=false")) for order in SIX]
    assert waves(names) == [[0, 1, 2, 3, 4, 5]]
