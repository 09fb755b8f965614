"""Latency of the networks of a run, in each of the runtimes asked for."""

import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from pqd.config import RuntimeConfig
from pqd.measure.cpu import pinned, thread_counts
from pqd.measure.graph import float_compute_nodes, macs
from pqd.measure.peak import int8_peak_gops
from pqd.measure.protocol import Call, interleave, summarise
from pqd.measure.runtimes import Array, available, open_session, torch_threads, version

log = logging.getLogger(__name__)


def latency(
    models: Mapping[str, Path],
    runtime: RuntimeConfig,
    input_shape: tuple[int, int, int],
    modules: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Measures every model in every runtime, thread count and batch size.

    The models of one runtime, thread count and batch size are measured interleaved (see
    `pqd.measure.protocol`) on pinned threads and random images. A runtime that is not usable here
    is said so in the log and left out.

    Args:
        models: ONNX files by name; speed-ups are against the one named `dense`.
        runtime: what to measure in, and the protocol's numbers.
        input_shape: C, H, W.
        modules: the networks (`nn.Module`) by name, for the torch runtimes. One named `int8` is
            passed over: torch would run it in float, slower for its fake-quantizers.

    Returns:
        Rows as in `result.json`, `final.latency`. `speedup` and its interval are None without a
        `dense` model. `int8_peak_share` is the share of `int8_peak_gops`, at as many threads, that
        the model named `int8` reaches; None for others.
    """
    networks = {model: module for model, module in (modules or {}).items() if model != "int8"}
    rows = []
    for name in available(runtime.names):
        given: Mapping[str, Any] = networks if name.startswith("torch") else models
        if not given:
            log.warning("runtime %s needs the networks themselves, not ONNX files; left out", name)
        nodes = {model: float_compute_nodes(source, name) for model, source in given.items()}
        for threads, batch_size in product(thread_counts(runtime.threads), runtime.batch_sizes):
            images = random_images((batch_size, *input_shape), runtime.seed)
            times = measure(name, given, threads, images, runtime)
            for model, figures in summarise(times, runtime).items():
                share = None
                if model == "int8":
                    gops = 2 * batch_size * macs(given[model]) / (figures["p50_ms"] * 1e6)
                    share = gops / int8_peak_gops(threads)
                row = {
                    "runtime": name,
                    "version": version(name),
                    "model": model,
                    "threads": threads,
                    "batch_size": batch_size,
                    **figures,
                    "float_compute_nodes": nodes[model],
                    "int8_peak_share": share,
                }
                rows.append(row)
    return rows


def measure(
    runtime: str,
    sources: Mapping[str, Any],
    threads: int,
    images: Array,
    settings: RuntimeConfig,
) -> dict[str, list[np.ndarray]]:
    """Times models side by side in one runtime; see `pqd.measure.protocol.interleave`."""
    with pinned(threads), torch_threads(threads) if runtime.startswith("torch") else nullcontext():
        openers = {
            name: opener(runtime, source, threads, images) for name, source in sources.items()
        }
        return interleave(openers, settings)


def opener(runtime: str, source: Any, threads: int, images: Array) -> Callable[[], Call]:
    """Returns what opens a session of `source` and binds `images` to it.

    Torch's is opened once, here: its weights are the caller's and compiling takes long.
    """
    if runtime.startswith("torch"):
        call = open_session(runtime, source, threads).bind(images)
        return lambda: call
    return lambda: open_session(runtime, source, threads).bind(images)


def random_images(shape: tuple[int, ...], seed: int) -> Array:
    """Standard-normal images [B, C, H, W], as normalised images are."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
