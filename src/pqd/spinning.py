"""How long threads of a training wait awake for one another: long, unless others need the cores.

They wait some hundred times in a step. GNU's OpenMP, part of PyTorch's wheels for Linux, spins for
300,000 turns (7 ms) before a thread sleeps, which is best on an idle machine. Beside other work
those turns are spent waiting for a thread that has lost its core. In a process with more threads
than cores, OpenMP spins for 1,000 turns (25 us) only. So where others need the cores, an idle
thread of this process holds a team of OpenMP threads, which makes them more than the cores. No
result depends on it. Measured by `benchmarks/load.py`.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pqd.cores import Others

_INTERVAL_S = 0.5
_OTHERS = 0.25  # cores' worth of other work that is none


@contextmanager
def adapted() -> Iterator[None]:
    """Looks twice a second at what else runs, and has threads sleep sooner where that is needed.

    Does nothing where there is nothing to decide: one thread, no Linux, or an environment that
    says how to wait (OMP_WAIT_POLICY, GOMP_SPINCOUNT).
    """
    said = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys()
    threads = torch.get_num_threads()
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if said or threads == 1 or Others(cores).share() is None:
        yield
        return
    done = threading.Event()
    watch = threading.Thread(target=_watch, args=(done, threads, cores), daemon=True)
    watch.start()
    try:
        yield
    finally:
        done.set()
        watch.join()


def crowded(others: float, threads: int, cores: int) -> bool:
    """Says whether threads lose their cores to others.

    Args:
        others: cores' worth of work of other processes.
        threads: of this one.
        cores: that it may use.
    """
    return others + threads > cores + _OTHERS


def _watch(done: threading.Event, threads: int, cores: set[int]) -> None:
    others = Others(cores)
    team: threading.Event | None = None
    while not done.wait(_INTERVAL_S):
        taken = len(cores) * (others.share() or 0.0)
        others = Others(cores)
        if crowded(taken, threads, len(cores)) == (team is not None):
            continue
        if team is None:
            team = threading.Event()
            threading.Thread(target=_hold, args=(team,), daemon=True).start()
        else:
            team.set()
            team = None
    if team is not None:
        team.set()


def _hold(until: threading.Event) -> None:
    """Makes this thread the master of a team, which lives as long as it does."""
    torch.ones(1 << 20).sqrt()  # large enough for all threads
    until.wait()
