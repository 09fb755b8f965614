"""Latency of the networks of a run, in each of the runtimes asked for."""

import logging
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from pqd.config import RuntimeConfig
from pqd.measure.cpu import cores, pinned, thread_counts
from pqd.measure.graph import macs
from pqd.measure.peak import int8_peak_gops
from pqd.measure.protocol import Blocks, Call, interleave, summarize
from pqd.measure.quiet import Others, one_at_a_time
from pqd.runtimes import Array, Runtime, available, get

log = logging.getLogger(__name__)

MAX_OTHERS = 0.05  # of the cores' time: others take more than this, and a figure is noisy


class Latencies(list[dict[str, Any]]):
    """Rows as in `result.json`, `final.latency`, and the peak that INT8 rows are compared with.

    Attributes:
        int8_peak_gops: what `pqd.measure.peak.int8_peak_gops` measured on one thread beside INT8
            rows, the highest; None without such rows.
    """

    int8_peak_gops: float | None = None


def latency(
    models: Mapping[str, Path],
    runtime: RuntimeConfig,
    input_shape: tuple[int, int, int],
    modules: Mapping[str, Any] | None = None,
) -> Latencies:
    """Measures every model in every runtime, thread count and batch size.

    The models of one runtime, thread count and batch size are measured interleaved (see
    `pqd.measure.protocol`) on pinned threads and random images, and no other job of pqd measures
    on this machine meanwhile. A runtime that is not usable here, or that fails, is said so in the
    log and left out.

    Args:
        models: ONNX files by name; speed-ups are against the one named `dense`.
        runtime: what to measure in, and the protocol's numbers.
        input_shape: C, H, W.
        modules: the networks (`nn.Module`) by name, for the runtimes that run these. One named
            `int8` is passed over: they would run it in float, slower for its fake-quantizers.

    Returns:
        A row for every measured model and setting. `speedup` and its interval are None without a
        `dense` model. `others_share` is what others took of the cores meanwhile (see
        `pqd.measure.quiet.Others`); above `MAX_OTHERS` a row is `noisy`. `macs` are those of one
        image. `int8_peak_share` is the share of the INT8 peak, at as many threads, that the model
        named `int8` reaches; None for others.
    """
    networks = {model: module for model, module in (modules or {}).items() if model != "int8"}
    work = {name: macs(path) for name, path in models.items()}
    found = Latencies()
    for name in available(runtime.names):
        where = get(name)
        given: Mapping[str, Any] = networks if where.runs == "network" else models
        if not given:
            log.warning("runtime %s needs the networks themselves, not ONNX files; left out", name)
        try:
            _add_rows(found, where, given, work, runtime, input_shape)
        except Exception:  # nothing that was computed before is to be lost
            log.warning("runtime %s failed and is left out", name, exc_info=True)
    return found


def _add_rows(
    found: Latencies,
    where: Runtime,
    given: Mapping[str, Any],
    work: Mapping[str, int],
    runtime: RuntimeConfig,
    input_shape: tuple[int, int, int],
) -> None:
    """Measures in one runtime; `work` is the MACs of one image, by model."""
    nodes = {model: where.float_compute_nodes(source) for model, source in given.items()}
    for threads, batch_size in product(thread_counts(runtime.threads), runtime.batch_sizes):
        images = random_images((batch_size, *input_shape), runtime.seed)
        with one_at_a_time():
            times, others = measure(where, given, threads, images, runtime)
            peak = int8_peak_gops(threads) if "int8" in given else None
        if peak and threads == 1:
            found.int8_peak_gops = max(peak, found.int8_peak_gops or 0)
        for model, figures in summarize(times, runtime).items():
            gops = 2 * batch_size * work[model] / (figures["p50_ms"] * 1e6)
            row = {
                "runtime": where.name,
                "version": where.version(),
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
            found.append(row)


def measure(
    runtime: Runtime,
    sources: Mapping[str, Any],
    threads: int,
    images: Array,
    settings: RuntimeConfig,
) -> tuple[dict[str, Blocks], float | None]:
    """Times models side by side in one runtime; see `pqd.measure.protocol.interleave`.

    Returns:
        The times of each model, and the share of the cores' time that others took.
    """
    with pinned(threads), runtime.threads(threads):
        openers = {
            name: opener(runtime, source, threads, images) for name, source in sources.items()
        }
        others = Others(cores()[:threads])
        return interleave(openers, settings), others.share()


def opener(runtime: Runtime, source: Any, threads: int, images: Array) -> Callable[[], Call]:
    """Returns what opens a session of `source` and binds `images` to it.

    Where the runtime does not reopen, the session is opened once, here.
    """
    if runtime.reopens:
        return lambda: runtime.open(source, threads).bind(images)
    call = runtime.open(source, threads).bind(images)
    return lambda: call


def random_images(shape: tuple[int, ...], seed: int) -> Array:
    """Standard-normal images [B, C, H, W], as normalised images are."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
