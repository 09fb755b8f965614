"""Latency of the networks of a run, in each of the runtimes asked for."""

import logging
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from pqd.config import RuntimeConfig
from pqd.cores import Others
from pqd.errors import UserError, one_line
from pqd.measure.cpu import cores, pinned, siblings, thread_counts
from pqd.measure.graph import Input, macs
from pqd.measure.peak import int8_peak_gops
from pqd.measure.protocol import Blocks, Call, interleave, summarize
from pqd.measure.quiet import one_at_a_time
from pqd.runtimes import Array, Runtime, get

log = logging.getLogger(__name__)

MAX_OTHERS = 0.05  # of the cores' time: others take more than this, and a figure is noisy


class Latencies(list[dict[str, Any]]):
    """Rows as in `result.json`, `final.latency`, and what they do not say.

    Attributes:
        int8_peak_gops: what `pqd.measure.peak.int8_peak_gops` measured on one thread beside INT8
            rows, the highest; None without such rows.
        failed: by runtime, why its measurement failed, in one line. Some of its rows may be there.
            Measured again, it may succeed: what failed is not to be kept as final.
        left_out: by runtime, why it cannot be used here at all, in one line.
    """

    def __init__(self) -> None:
        """Starts without rows."""
        super().__init__()
        self.int8_peak_gops: float | None = None
        self.failed: dict[str, str] = {}
        self.left_out: dict[str, str] = {}


def latency(
    models: Mapping[str, Path],
    runtime: RuntimeConfig,
    input_shape: tuple[int, int, int],
    modules: Mapping[str, Any] | None = None,
    *,
    uint8: bool = False,
) -> Latencies:
    """Measures every model in every runtime, thread count and batch size.

    The models of one runtime, thread count and batch size are measured interleaved (see
    `pqd.measure.protocol`) on pinned threads and random images, and no other job of pqd measures
    on this machine meanwhile. Why a runtime is left out or fails stands in what is returned and in
    the log.

    Args:
        models: ONNX files by name, with the files of other runtimes beside them; speed-ups are
            against the one named `dense`.
        runtime: what to measure in, and the protocol's numbers.
        input_shape: C, H, W.
        modules: the networks (`nn.Module`) by name, for the runtimes that run these. One named
            `int8` is passed over: they would run it in float, slower for its fake-quantizers.
        uint8: whether the files take pixels, see `pqd.measure.graph.Input`.

    Returns:
        A row for every measured model and setting. `speedup` and its interval are None without a
        `dense` model. `others_share` is what others took of the cores meanwhile, all hardware
        threads of each (see `pqd.cores.Others`); above `MAX_OTHERS` a row is `noisy`. `macs` are
        those of one image, None where they cannot be counted. `int8_peak_share` is the share of the
        INT8 peak, at as many threads, that the model named `int8` reaches; None for others.
    """
    networks = {model: module for model, module in (modules or {}).items() if model != "int8"}
    work = {name: macs(path) for name, path in models.items()}
    found = Latencies()
    for name in dict.fromkeys(runtime.names):
        where = get(name)
        files = {m: file for m, path in models.items() if (file := where.file(path))}
        given: Mapping[str, Any] = networks if where.runs == "network" else files
        reason = where.unavailable()
        if not (reason or given):
            needs = "the networks themselves" if where.runs == "network" else f".{where.runs} files"
            reason = f"runtime {name} needs {needs}, not ONNX files"
        if reason:
            found.left_out[name] = reason
            log.warning("%s; left out", reason)
            continue
        try:
            _add_rows(found, where, given, work, runtime, Input(input_shape, uint8))
        except Exception as error:  # nothing that was computed before is to be lost
            found.failed[name] = one_line(error, named=not isinstance(error, UserError))
            log.warning("runtime %s failed: %s", name, found.failed[name])
            log.debug("runtime %s failed", name, exc_info=True)
    return found


def _add_rows(
    found: Latencies,
    where: Runtime,
    given: Mapping[str, Any],
    work: Mapping[str, int | None],
    runtime: RuntimeConfig,
    taken: Input,
) -> None:
    """Measures in one runtime; `work` is the MACs of one image, by model that has an ONNX file."""
    nodes = {model: where.float_compute_nodes(source) for model, source in given.items()}
    for threads, batch_size in product(thread_counts(runtime.threads), runtime.batch_sizes):
        images = random_images(taken.by(where), batch_size, runtime.seed)
        with one_at_a_time():
            times, others = measure(where, given, threads, images, runtime)
            peak = int8_peak_gops(threads) if "int8" in given else None
        if peak and threads == 1:
            found.int8_peak_gops = max(peak, found.int8_peak_gops or 0)
        for model, figures in summarize(times, runtime).items():
            gops = 2 * batch_size * (work.get(model) or 0) / (figures["p50_ms"] * 1e6)
            row = {
                "runtime": where.name,
                "version": where.version(),
                "model": model,
                "threads": threads,
                "cpus": cores()[:threads],
                "batch_size": batch_size,
                **figures,
                "others_share": others,
                "macs": work.get(model),
                "float_compute_nodes": nodes[model],
                "int8_peak_share": gops / peak if gops and peak and model == "int8" else None,
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
        The times of each model, and the share of the cores' time that others took, on all hardware
        threads of each.
    """
    with pinned(threads, runtime):
        openers = {
            name: opener(runtime, source, threads, images) for name, source in sources.items()
        }
        others = Others(siblings(cores()[:threads]))
        return interleave(openers, settings), others.share()


def opener(runtime: Runtime, source: Any, threads: int, images: Array) -> Callable[[], Call]:
    """Returns what opens a session of `source` and binds `images` to it.

    Where the runtime does not reopen, the session is opened once, here.
    """
    if runtime.reopens:
        return lambda: runtime.open(source, threads).bind(images)
    call = runtime.open(source, threads).bind(images)
    return lambda: call


def random_images(taken: Input, batch_size: int, seed: int) -> Array:
    """Returns a batch of standard-normal numbers, as normalised images are, or of pixels."""
    generator, shape = np.random.default_rng(seed), taken.batch(batch_size)
    if taken.uint8:
        return generator.integers(0, 256, shape, dtype=np.uint8)
    return generator.standard_normal(shape, dtype=np.float32)
