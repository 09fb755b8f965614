"""Latency of the networks of a run, in each of the runtimes asked for."""

import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from pqd.config import RuntimeConfig
from pqd.measure.cpu import cores, pinned, thread_counts
from pqd.measure.graph import float_compute_nodes, macs
from pqd.measure.peak import int8_peak_gops
from pqd.measure.protocol import Blocks, Call, interleave, summarise
from pqd.measure.quiet import Others, one_at_a_time
from pqd.measure.runtimes import Array, available, open_session, torch_threads, version

log = logging.getLogger(__name__)

MAX_OTHERS = 0.05  # of the cores' time: others take more than this, and a figure is noisy


def latency(
    models: Mapping[str, Path],
    runtime: RuntimeConfig,
    input_shape: tuple[int, int, int],
    modules: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Measures every model in every runtime, thread count and batch size.

    The models of one runtime, thread count and batch size are measured interleaved (see
    `pqd.measure.protocol`) on pinned threads and random images, and no other job of pqd measures
    on this machine meanwhile. A runtime that is not usable here, or that fails, is said so in the
    log and left out.

    Args:
        models: ONNX files by name; speed-ups are against the one named `dense`.
        runtime: what to measure in, and the protocol's numbers.
        input_shape: C, H, W.
        modules: the networks (`nn.Module`) by name, for the torch runtimes. One named `int8` is
            passed over: torch would run it in float, slower for its fake-quantizers.

    Returns:
        Rows as in `result.json`, `final.latency`. `speedup` and its interval are None without a
        `dense` model. `others_share` is what others took of the cores meanwhile (see
        `pqd.measure.quiet.Others`); above `MAX_OTHERS` a row is `noisy`. `macs` are those of one
        image. `int8_peak_share` is the share of `int8_peak_gops`, at as many threads, that the
        model named `int8` reaches; None for others.
    """
    networks = {model: module for model, module in (modules or {}).items() if model != "int8"}
    work = {name: macs(path) for name, path in models.items()}
    rows = []
    for name in available(runtime.names):
        given: Mapping[str, Any] = networks if name.startswith("torch") else models
        if not given:
            log.warning("runtime %s needs the networks themselves, not ONNX files; left out", name)
        try:
            rows += _rows(name, given, work, runtime, input_shape)
        except Exception:  # nothing that was computed before is to be lost
            log.warning("runtime %s failed and is left out", name, exc_info=True)
    return rows


def _rows(
    name: str,
    given: Mapping[str, Any],
    work: Mapping[str, int],
    runtime: RuntimeConfig,
    input_shape: tuple[int, int, int],
) -> list[dict[str, Any]]:
    """Measures in one runtime; `work` is the MACs of one image, by model."""
    rows = []
    nodes = {model: float_compute_nodes(source, name) for model, source in given.items()}
    for threads, batch_size in product(thread_counts(runtime.threads), runtime.batch_sizes):
        images = random_images((batch_size, *input_shape), runtime.seed)
        with one_at_a_time():
            times, others = measure(name, given, threads, images, runtime)
            peak = int8_peak_gops(threads) if "int8" in given else None
        for model, figures in summarise(times, runtime).items():
            gops = 2 * batch_size * work[model] / (figures["p50_ms"] * 1e6)
            row = {
                "runtime": name,
                "version": version(name),
                "model": model,
                "threads": threads,
                "cpus": cores()[:threads],
                "batch_size": batch_size,
                **figures,
                "others_share": others,
                "macs": work[model],
                "float_compute_nodes": nodes[model],
                "int8_peak_share": gops / peak if peak and model == "int8" else None,
            }
            row["noisy"] |= others is not None and others > MAX_OTHERS
            rows.append(row)
    return rows


def measure(
    runtime: str,
    sources: Mapping[str, Any],
    threads: int,
    images: Array,
    settings: RuntimeConfig,
) -> tuple[dict[str, Blocks], float | None]:
    """Times models side by side in one runtime; see `pqd.measure.protocol.interleave`.

    Returns:
        The times of each model, and the share of the cores' time that others took.
    """
    with pinned(threads), torch_threads(threads) if runtime.startswith("torch") else nullcontext():
        openers = {
            name: opener(runtime, source, threads, images) for name, source in sources.items()
        }
        others = Others(cores()[:threads])
        return interleave(openers, settings), others.share()


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
