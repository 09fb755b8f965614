"""How latencies are taken and summarized: interleaved blocks, and a bootstrap over the blocks.

Calls within a block are alike (one session's place in memory, one clock frequency, the same
neighbours on the machine), calls in different blocks less so; hence a block, not a call, is what
is resampled (cluster bootstrap), and two models are compared block by block.
"""

import random
import time
from collections.abc import Callable, Mapping
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pqd.config import RuntimeConfig

Call = Callable[[], object]
Blocks = list[NDArray[np.float64]]  # ms of every timed call, one array for each block

WINDOW_MS = 30.0  # a warm-up window lasts this long and at least two calls
WINDOWS = 40  # at most
STABLE = 0.98  # warm when a window's median is no longer below this share of the last one's
RESAMPLES = 1000
ENOUGH_BLOCKS = 6  # the range of n blocks holds the median with 1 - 2^(1 - n): 94 % of five


def interleave(
    sessions: Mapping[str, Callable[[], Call]],
    settings: RuntimeConfig,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, Blocks]:
    """Times calls in `settings.blocks` blocks, in each the sessions in a new random order.

    Every block opens its session anew and warms it up: two sessions of one model differ by some
    per cent in where their buffers lie, and no session waits (and spins) while another is timed.
    Each gets at least `settings.min_calls` timed calls and `settings.min_seconds` timed seconds
    over all blocks.

    Args:
        sessions: by name, what opens a session and returns the call to time.
        settings: the protocol's numbers.
        clock: returns nanoseconds.

    Returns:
        By name the milliseconds of the timed calls, one array for each block.
    """
    order = random.Random(settings.seed)
    times: dict[str, Blocks] = {name: [] for name in sessions}
    min_calls = ceil(settings.min_calls / settings.blocks)
    min_ms = 1000 * settings.min_seconds / settings.blocks
    for _ in range(settings.blocks):
        for name in order.sample(list(sessions), len(sessions)):
            call = sessions[name]()
            _warm_up(call, clock)
            times[name].append(_timed(call, min_calls, min_ms, clock))
    return times


def _timed(call: Call, min_calls: int, min_ms: float, clock: Callable[[], int]) -> NDArray[Any]:
    taken: list[int] = []
    total = 0
    while len(taken) < min_calls or total < min_ms * 1e6:
        start = clock()
        call()
        taken.append(clock() - start)
        total += taken[-1]
    return np.array(taken) / 1e6


def _warm_up(call: Call, clock: Callable[[], int]) -> None:
    before = np.inf
    for _ in range(WINDOWS):
        now = float(np.median(_timed(call, 2, WINDOW_MS, clock)))
        if now >= STABLE * before:
            return
        before = now


def summarize(
    times: Mapping[str, Blocks], settings: RuntimeConfig, base: str = "dense"
) -> dict[str, dict[str, Any]]:
    """The figures of every model, speed-ups against the one named `base`.

    Returns:
        By name: `p50_ms` (see `median`) and its 95 % interval `p50_interval_ms`, `p90_ms` and
        `p99_ms` over all calls, `calls`, `speedup` and `speedup_interval` (None without `base`),
        `noisy` (an interval is relatively wider than `settings.max_interval`, or there are too
        few blocks for one),
        `slower_than_dense` (the speed-up's whole interval is below 1).
    """
    rows = {}
    for name, blocks in times.items():
        p90, p99 = np.percentile(np.concatenate(blocks), [90, 99]).tolist()
        p50, interval = median(blocks, settings.seed)
        ratio, ratio_interval = (
            speedup(times[base], blocks, settings.seed) if base in times else (None, None)
        )
        widths = [relative_width(bounds) for bounds in (interval, ratio_interval) if bounds]
        rows[name] = {
            "p50_ms": p50,
            "p90_ms": p90,
            "p99_ms": p99,
            "p50_interval_ms": interval,
            "calls": sum(map(len, blocks)),
            "speedup": ratio,
            "speedup_interval": ratio_interval,
            "noisy": len(blocks) < ENOUGH_BLOCKS or max(widths) > settings.max_interval,
            "slower_than_dense": ratio_interval is not None and ratio_interval[1] < 1,
        }
    return rows


def median(blocks: Blocks, seed: int) -> tuple[float, list[float]]:
    """The median over the blocks of their medians, in ms, and its interval.

    Over all calls, fast blocks would count more: they hold more calls.

    Returns:
        The median and its 95 % percentile-bootstrap interval.
    """
    return _estimate(np.array([np.median(block) for block in blocks]), seed)


def speedup(base: Blocks, blocks: Blocks, seed: int) -> tuple[float, list[float]]:
    """How many times faster than `base`: the median over the blocks of the ratio of medians.

    Pairing by block keeps out what hits both models alike, such as the clock's frequency.

    Returns:
        The speed-up and its 95 % percentile-bootstrap interval.
    """
    pairs = zip(base, blocks, strict=True)
    return _estimate(
        np.array([np.median(theirs) / np.median(ours) for theirs, ours in pairs]), seed
    )


def relative_width(interval: list[float]) -> float:
    """The width of an interval as a share of its middle."""
    low, high = interval
    return 2 * (high - low) / (high + low)


def _estimate(values: NDArray[np.float64], seed: int) -> tuple[float, list[float]]:
    """Returns the median of values [blocks] and its bootstrap interval."""
    resamples = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    medians = np.median(values[resamples], axis=1)
    return float(np.median(values)), np.percentile(medians, [2.5, 97.5]).tolist()
