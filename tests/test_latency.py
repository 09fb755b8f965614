import json
from itertools import pairwise

import numpy as np
import pytest
from torch import nn

from pqd import measure, runtimes
from pqd.config import RuntimeConfig
from pqd.measure import cpu, quiet, timings
from pqd.measure.protocol import (
    interleave,
    median,
    relative_width,
    speedup,
    summarize,
)
from tiny_onnx import float_network, int8_network

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


def test_latency_has_a_row_for_every_model_and_setting(tmp_path, monkeypatch):
    monkeypatch.setattr(timings, "int8_peak_gops", lambda threads: 100.0)
    dense, int8 = float_network(tmp_path / "a.onnx"), int8_network(tmp_path / "b.onnx")
    network = nn.Sequential(nn.Conv2d(1, 2, 4), nn.Flatten())
    settings = RuntimeConfig(
        names=["onnxruntime", "torch"],
        threads=[1, 1],
        batch_sizes=[1, 3],
        min_calls=4,
        min_seconds=0.0,
        blocks=2,
    )
    rows = measure.latency(
        {"dense": dense, "int8": int8}, settings, (1, 4, 4), {"dense": network, "int8": network}
    )
    seen = [(r["runtime"], r["model"], r["threads"], r["batch_size"]) for r in rows]
    assert seen == [
        ("onnxruntime", "dense", 1, 1),
        ("onnxruntime", "int8", 1, 1),
        ("onnxruntime", "dense", 1, 3),
        ("onnxruntime", "int8", 1, 3),
        ("torch", "dense", 1, 1),
        ("torch", "dense", 1, 3),
    ]
    assert [row["float_compute_nodes"] for row in rows] == [4, 0, 4, 0, None, None]
    assert [row["calls"] for row in rows] == [4] * 6
    assert [row["speedup"] for row in rows if row["model"] == "dense"] == [1.0] * 4
    for row in rows:
        low, high = row["p50_interval_ms"]
        assert low <= row["p50_ms"] <= high
        if row["model"] == "int8":
            gops = 2 * row["batch_size"] * 32 / (row["p50_ms"] * 1e6)
            assert row["int8_peak_share"] == pytest.approx(gops / 100.0)
        else:
            assert row["int8_peak_share"] is None
    assert rows.int8_peak_gops == 100.0
    json.dumps(rows)


class Toy(runtimes.Runtime):
    """A runtime of a test's own: multiplies images by a number and is timed like any other."""

    name, title, package = "toy", "Toy Runtime", "numpy"
    error = None

    def __init__(self):
        self.opened = []

    def open(self, model, threads):
        if self.error:
            raise self.error
        self.opened.append((model.name, threads))
        return self

    def bind(self, images):
        return lambda: self(images)

    def __call__(self, images):
        return images.reshape(len(images), -1)[:, :2] * 3

    def float_compute_nodes(self, model):
        return 7


def test_a_runtime_is_registered_from_outside(tmp_path, monkeypatch):
    monkeypatch.setattr(runtimes.base, "RUNTIMES", registry := dict(runtimes.RUNTIMES))
    runtimes.register(toy := Toy())
    assert registry["toy"] is runtimes.get("toy") is toy
    models = {"dense": float_network(tmp_path / "a.onnx"), "fp32": tmp_path / "a.onnx"}
    settings = RuntimeConfig(["toy"], [1], min_calls=6, min_seconds=0, blocks=3)
    rows = measure.latency(models, settings, (1, 4, 4))
    assert [(r["runtime"], r["model"]) for r in rows] == [("toy", "dense"), ("toy", "fp32")]
    assert {(r["version"], r["float_compute_nodes"]) for r in rows} == {(np.__version__, 7)}
    assert toy.opened == [("a.onnx", 1)] * 6  # anew in every block
    assert rows.int8_peak_gops is None
    images = np.array([[2, 1], [0, 1]], np.float32).reshape(2, 1, 1, 2)
    assert measure.predictions(models["dense"], [images], "toy").tolist() == [0, 1]


def test_a_network_without_an_onnx_file_is_measured(tmp_path):
    settings = RuntimeConfig(["torch"], [1], min_calls=2, min_seconds=0.0, blocks=2)
    networks = {"dense": nn.Sequential(nn.Conv2d(1, 2, 4), nn.Flatten())}
    rows = measure.latency(
        {"int8": int8_network(tmp_path / "a.onnx")}, settings, (1, 4, 4), networks
    )
    assert [(row["model"], row["macs"]) for row in rows] == [("dense", None)]
    assert rows.failed == {}


def test_torch_without_networks_is_left_out(tmp_path, caplog):
    models = {"dense": float_network(tmp_path / "a.onnx")}
    settings = RuntimeConfig(names=["torch"], threads=[1])
    rows = measure.latency(models, settings, (1, 4, 4))
    reason = "runtime torch needs the networks themselves, not ONNX files"
    assert (rows, rows.failed, rows.left_out) == ([], {}, {"torch": reason})
    assert caplog.messages == [f"{reason}; left out"]


def test_rows_measured_before_a_failure_are_kept(tmp_path, monkeypatch):
    class Small(Toy):
        def bind(self, images):
            if len(images) > 2:
                raise MemoryError("3 images are too many")
            return super().bind(images)

    monkeypatch.setitem(runtimes.RUNTIMES, "toy", Small())
    settings = RuntimeConfig(["toy"], [1], [2, 3], min_calls=2, min_seconds=0, blocks=1)
    rows = measure.latency({"dense": float_network(tmp_path / "a.onnx")}, settings, (1, 4, 4))
    assert [row["batch_size"] for row in rows] == [2]
    assert rows.failed == {"toy": "MemoryError: 3 images are too many"}


@pytest.mark.parametrize(
    ("seed", "folder", "reason"),
    [
        (-1, ".", "ValueError: expected non-negative integer"),
        (0, "a.onnx/x", "a.onnx/x cannot be locked: Not a directory"),
    ],
)
def test_what_fails_for_the_moment_is_told(tmp_path, monkeypatch, seed, folder, reason):
    monkeypatch.setattr(quiet.tempfile, "gettempdir", lambda: str(tmp_path / folder))
    settings = RuntimeConfig(["toy"], [1], min_calls=2, min_seconds=0, blocks=1, seed=seed)
    monkeypatch.setitem(runtimes.RUNTIMES, "toy", Toy())
    rows = measure.latency({"dense": float_network(tmp_path / "a.onnx")}, settings, (1, 4, 4))
    assert rows == []
    assert reason in rows.failed["toy"]


def test_a_runtime_that_fails_says_why(tmp_path, monkeypatch, caplog):
    toy = Toy()
    toy.error = RuntimeError("no such instruction")
    monkeypatch.setitem(runtimes.RUNTIMES, "toy", toy)
    models = {"dense": float_network(tmp_path / "a.onnx")}
    settings = RuntimeConfig(["toy", "onnxruntime"], [1], min_calls=2, min_seconds=0, blocks=1)
    rows = measure.latency(models, settings, (1, 4, 4))
    assert [row["runtime"] for row in rows] == ["onnxruntime"]
    reason = "RuntimeError: no such instruction"
    assert rows.failed == {"toy": reason}
    assert rows.left_out == {}
    assert caplog.messages == [f"runtime toy failed: {reason}"]


@pytest.mark.parametrize(("share", "noisy"), [(0.04, False), (0.06, True), (None, False)])
def test_rows_say_what_others_took(tmp_path, monkeypatch, share, noisy):
    monkeypatch.setattr(timings, "measure", lambda *_: ({"dense": [np.full(5, 2.0)] * 6}, share))
    models = {"dense": float_network(tmp_path / "a.onnx")}
    (row,) = measure.latency(models, RuntimeConfig(["onnxruntime"], [1]), (1, 4, 4))
    assert (row["others_share"], row["noisy"]) == (share, noisy)
    assert row["macs"] == measure.macs(models["dense"])
    assert row["cpus"] == cpu.cores()[:1]
