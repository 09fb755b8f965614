"""How OpenMP's threads wait beside other work."""

import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from pqd import spinning


@pytest.mark.parametrize(
    ("others", "threads", "cores", "expected"),
    [(0.1, 2, 2, False), (0.7, 2, 2, True), (0.7, 1, 2, False), (5.0, 2, 8, False)],
)
def test_threads_are_crowded_where_others_take_their_cores(others, threads, cores, expected):
    assert spinning.crowded(others, threads, cores) == expected


def teams():
    """Counts the threads that hold a team."""
    return sum(thread.name.endswith("(_hold)") for thread in threading.enumerate())


def waits_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def other_work(monkeypatch):
    """A machine of two cores, of which other work takes as many as the list says."""
    cores = [0.0]
    # However many cores there are, and whatever this worker was left on.
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    share = property(lambda _: lambda: cores[0] / 2)
    monkeypatch.setattr(spinning.Others, "share", share)
    monkeypatch.setattr(spinning, "_INTERVAL_S", 0.001)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    return cores


def test_a_team_is_held_while_others_need_the_cores(other_work):
    with spinning.adapted():
        assert teams() == 0
        other_work[0] = 1.0
        waits_for(lambda: teams() == 1)
        other_work[0] = 0.0
        waits_for(lambda: teams() == 0)
        other_work[0] = 1.0
        waits_for(lambda: teams() == 1)
    waits_for(lambda: teams() == 0)


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_the_environment_has_the_last_word(other_work, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    before = threading.enumerate()
    with spinning.adapted():
        assert threading.enumerate() == before


WAITING = """
import os, time
import torch
from pqd import spinning
spinning._INTERVAL_S = 0.01
spinning.Others.share = lambda self: 1.0  # all cores
torch.set_num_threads(max(2, len(os.sched_getaffinity(0))))
x = torch.ones(2**20)
spent = []
with spinning.adapted():
    time.sleep(0.5)
    for _ in range(20):
        x + x
        start = time.process_time()
        time.sleep(0.03)
        spent.append(time.process_time() - start)
print(sorted(spent)[10] * 1000)
"""


@pytest.mark.skipif("openmp" not in torch.__config__.parallel_info().lower(), reason="no OpenMP")
def test_threads_do_not_spin_for_long_where_others_need_the_cores():
    usual = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run(
        [sys.executable, "-c", WAITING], env=usual, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 2  # ms of computing with nothing to do; of itself GNU's takes 7
