"""The protocol of latencies: interleaved blocks, warm sessions, medians and their intervals."""

from itertools import pairwise

import numpy as np
import pytest

from pqd.config import RuntimeConfig
from pqd.measure.protocol import interleave, median, relative_width, speedup, summarize

MS = 1_000_000


class Machine:
    """A fake machine: sessions whose calls take a given time on a fake clock."""

    def __init__(self):
        self.now = 0
        self.opened = []  # names, in the order in which sessions were opened
        self.calls = []  # (name, session number within the name)

    def clock(self):
        return self.now

    def session(self, name, milliseconds):
        """`milliseconds(n)` is what the n-th call of a session takes."""

        def open_():
            self.opened.append(name)
            number, count = self.opened.count(name), iter(range(10**9))

            def call():
                self.calls.append((name, number))
                self.now += round(milliseconds(next(count)) * MS)

            return call

        return open_


def test_blocks_are_interleaved_in_random_order_and_open_their_sessions_anew():
    machine = Machine()
    sessions = {name: machine.session(name, lambda n: 1.0) for name in "abc"}
    settings = RuntimeConfig(blocks=6, min_calls=60, min_seconds=0.0)
    times = interleave(sessions, settings, machine.clock)
    rounds = [tuple(machine.opened[i : i + 3]) for i in range(0, 18, 3)]
    assert [sorted(order) for order in rounds] == [list("abc")] * 6
    assert len(set(rounds)) > 1
    changes = [after for before, after in pairwise(machine.calls) if before != after]
    assert len(changes) == 17  # every session is used in one piece
    assert {name: [len(block) for block in blocks] for name, blocks in times.items()} == {
        name: [10] * 6 for name in "abc"
    }
    again = Machine()
    sessions = {name: again.session(name, lambda n: 1.0) for name in "abc"}
    interleave(sessions, settings, again.clock)
    assert again.opened == machine.opened  # the order comes from the seed


def test_calls_and_seconds_are_both_reached():
    machine = Machine()
    settings = RuntimeConfig(blocks=2, min_calls=8, min_seconds=0.1)
    sessions = {
        "fast": machine.session("fast", lambda n: 2.0),
        "slow": machine.session("slow", lambda n: 40.0),
    }
    times = interleave(sessions, settings, machine.clock)
    assert [len(block) for block in times["fast"]] == [25, 25]  # 50 ms in each block
    assert [len(block) for block in times["slow"]] == [4, 4]
    assert np.concatenate(times["slow"]).tolist() == [40.0] * 8


def test_calls_before_the_session_is_warm_are_not_timed():
    machine = Machine()
    cold = machine.session("a", lambda n: 10.0 if n < 9 else 5.0)
    settings = RuntimeConfig(blocks=1, min_calls=50, min_seconds=0.0)
    (block,) = interleave({"a": cold}, settings, machine.clock)["a"]
    # Windows of 30 ms: three of 3 calls at 10 ms would look stable after the second.
    assert len(block) == 50
    assert len(machine.calls) == 50 + 6
    falling = machine.session("b", lambda n: max(1.0, 32.0 - n))
    (block,) = interleave({"b": falling}, settings, machine.clock)["b"]
    assert block.tolist() == [1.0] * 50


def test_warm_up_ends_although_a_session_never_settles():
    machine = Machine()
    endless = machine.session("a", lambda n: 1000.0 * 0.98**n)
    settings = RuntimeConfig(blocks=1, min_calls=1, min_seconds=0.0)
    interleave({"a": endless}, settings, machine.clock)
    assert len(machine.calls) == 40 * 2 + 1


def test_constant_times_have_exact_figures():
    blocks = {"dense": [np.full(5, 6.0)] * 6, "int8": [np.full(9, 2.0)] * 6}
    rows = summarize(blocks, RuntimeConfig())
    assert rows["int8"] == {
        "p50_ms": 2.0,
        "p90_ms": 2.0,
        "p99_ms": 2.0,
        "p50_interval_ms": [2.0, 2.0],
        "calls": 54,
        "speedup": 3.0,
        "speedup_interval": [3.0, 3.0],
        "noisy": False,
        "slower_than_dense": False,
    }
    assert rows["dense"]["speedup"] == 1.0
    assert summarize({"int8": blocks["int8"]}, RuntimeConfig())["int8"]["speedup"] is None


def test_percentiles_are_of_all_calls_and_the_median_is_of_blocks():
    blocks = [np.arange(1.0, 51.0), np.arange(51.0, 102.0)]
    row = summarize({"dense": blocks}, RuntimeConfig())["dense"]
    assert (row["p90_ms"], row["p99_ms"]) == (91.0, 100.0)
    assert row["p50_ms"] == (25.5 + 76.0) / 2
    # A fast block holds more calls and counts no more for it.
    assert median([np.full(1000, 1.0), np.full(10, 2.0), np.full(10, 2.0)], 0)[0] == 2.0


def test_speed_up_is_paired_by_block():
    drift = np.array([1.0, 5.0, 0.5, 3.0, 2.0, 1.5])
    base = [np.full(7, 4.0 * d) for d in drift]
    ours = [np.full(7, 2.0 * d) for d in drift]
    assert speedup(base, ours, seed=0) == (2.0, [2.0, 2.0])
    middle, (low, high) = median(ours, seed=0)
    assert low < middle == 3.5 < high


def test_interval_of_the_median_covers_as_often_as_it_says():
    source = np.random.default_rng(0)
    covered = 0
    for seed in range(40):
        blocks = list(source.normal(10.0, 1.0, size=(20, 1)))
        _, (low, high) = median(blocks, seed)
        covered += low <= 10.0 <= high
    assert 34 <= covered <= 40  # 38 are expected


def test_noise_and_slowness_are_flagged():
    base = [np.full(3, 10.0) for _ in range(10)]
    unsure = [np.full(3, 7.0 + 7.0 * (i % 2)) for i in range(10)]
    slower = [np.full(3, 11.0) for _ in range(10)]
    equal = [np.full(3, 10.0 + 0.01 * (i % 2)) for i in range(10)]
    rows = summarize(
        {"dense": base, "unsure": unsure, "slower": slower, "equal": equal}, RuntimeConfig()
    )
    assert rows["unsure"]["noisy"]
    assert not rows["unsure"]["slower_than_dense"]  # its interval spans 1
    assert not rows["slower"]["noisy"]
    assert rows["slower"]["slower_than_dense"]
    assert not rows["equal"]["slower_than_dense"]
    assert not rows["equal"]["noisy"]
    assert rows["slower"]["speedup"] == pytest.approx(10 / 11)


def test_few_blocks_give_no_interval_to_trust():
    rows = [summarize({"dense": [np.full(9, 2.0)] * n}, RuntimeConfig())["dense"] for n in (5, 6)]
    assert [row["noisy"] for row in rows] == [True, False]


def test_relative_width_is_a_share_of_the_middle():
    assert relative_width([0.95, 1.05]) == pytest.approx(0.1)
