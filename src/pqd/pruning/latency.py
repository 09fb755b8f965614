"""The shape that runs in a given time on this machine.

A table of measured layers says what each channel costs in ms (HALP, Shen et al. 2021, arXiv
2110.10811), so that important channels are kept where they are cheap. The table does not know what
is between the layers. So the whole smaller network is measured, and the table's budget is
corrected until the measurement meets what is asked for.
"""

import copy
import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import fx, nn

from pqd import runtimes
from pqd.config import RuntimeConfig
from pqd.constraints import attach
from pqd.constraints.channels import KeptChannels
from pqd.constraints.fake_quant import activation_fake_quants
from pqd.constraints.quantization import FakeQuantization
from pqd.errors import UserError
from pqd.export.onnx_file import write_onnx
from pqd.graph.channels import Channels
from pqd.measure.cpu import thread_counts
from pqd.measure.graph import Input
from pqd.measure.protocol import Blocks, median, speedup
from pqd.measure.quiet import one_at_a_time
from pqd.measure.timings import measure, random_images
from pqd.pruning.cost import Cost, Layer, Shapes, Units
from pqd.pruning.layer_onnx import write_layer
from pqd.scheme import Scheme

log = logging.getLogger(__name__)

TOLERANCE = 0.05  # how far the measurement may be from what is asked for
_CLOSE = 0.02  # no further correction; leaves room for the next measurement's noise
_ATTEMPTS = 12
_SHARES = (1, 0.75, 0.5, 0.25, 0.125)  # of rows and columns, in the table
_LAYERS: dict[Any, Callable[[int, int], float]] = {}  # that this process measured, for other stages
_MET: dict[Any, float] = {}  # the table's ms of the shape that met a budget, likewise


class Target:
    """Where latency counts: the first runtime, thread count and batch size of `runtime`."""

    def __init__(self, config: RuntimeConfig, scheme: Scheme = Scheme()) -> None:
        """Looks the runtime up.

        Args:
            config: where latency is measured, and how.
            scheme: how networks are quantized for it.

        Raises:
            UserError: there is none, it cannot be used here, or runs no INT8 file.
        """
        name, threads, self.batch_size = config.first("a budget in time")
        self.runtime = runtimes.usable(name)
        if self.runtime.runs != "onnx":
            raise UserError(
                f"runtime.names={config.names}: a budget in time needs a runtime of INT8 files "
                "first, onnxruntime or openvino"
            )
        self.config, self.scheme = config, scheme
        (self.threads,) = thread_counts([threads])
        self.place = self.runtime.name, self.threads, self.batch_size

    def times(self, models: Mapping[str, Path], image: tuple[int, int, int]) -> dict[str, Blocks]:
        """Measures files interleaved, on images (C, H, W)."""
        images = random_images(Input(image), self.batch_size, self.config.seed)
        with one_at_a_time():
            return measure(self.runtime, models, self.threads, images, self.config)[0]

    def layer_ms(self, path: Path, read: tuple[int, ...]) -> float:
        """Measures a file of `write_layer`, which reads [B, C, H, W] or [B, C]."""
        inputs: Any = np.ones(read, np.uint8)
        quick = replace(self.config, min_calls=20, min_seconds=0.02, blocks=2)
        times, _ = measure(self.runtime, {"layer": path}, self.threads, inputs, quick)
        return median(times["layer"], 0)[0]


def table(target: Target, channels: Channels, shapes: Shapes, round_to: int) -> Cost:
    """Measures the layers of a network at several widths.

    Returns:
        The sum over all layers of their ms, interpolated between the widths measured. A process
        measures a kind of layer once: its time does not depend on the weights.
    """
    rows, columns = shapes.size("out", shapes.dense), shapes.size("in", shapes.dense)
    least = np.ones_like(shapes.dense)
    narrow = shapes.size("out", least) < rows, shapes.size("in", least) < columns
    used: list[tuple[int, Callable[[int, int], float]]] = []
    known = len(_LAYERS)
    with one_at_a_time():
        for i, layer in enumerate(shapes.layers):
            if isinstance(layer.module, nn.BatchNorm2d):
                continue
            read = channels.read[layer.name]
            widths = [
                _widths(int(size[i]), round_to) if can[i] else [int(size[i])]
                for size, can in zip((rows, columns), narrow, strict=True)
            ]
            key = target.place, _kind(layer.module), read, *map(tuple, widths)
            if key not in _LAYERS:
                if len(_LAYERS) == known:
                    log.info("prune: measures single layers in %s", target.runtime.title)
                _LAYERS[key] = _interpolated(target, layer, read, widths)
            used.append((i, _LAYERS[key]))

    def cost(units: Units) -> float:
        out, read = shapes.size("out", units), shapes.size("in", units)
        return sum(ms(int(out[i]), int(read[i])) for i, ms in used)

    return cost


def fit(
    target: Target,
    wanted: Mapping[str, float],
    dense: fx.GraphModule,
    narrowed: Callable[[fx.GraphModule, Units], KeptChannels],
    choose: Callable[[float], Units],
    cost: Cost,
    image: tuple[int, int, int],
) -> tuple[Units, tuple[float, float]]:
    """Finds the shape that meets a budget in time, as measured.

    Args:
        target: where it is measured.
        wanted: the budget: `speedup` or `latency_ms`.
        dense: the network with all its channels.
        narrowed: returns a constraint that leaves a network with a shape.
        choose: returns the best shape of a cost.
        cost: of a shape, by the table.
        image: shape of an image, (C, H, W).

    Returns:
        The shape, and the ms of the dense network and of that shape's.

    Raises:
        UserError: no shape is fast enough.
    """
    every = choose(np.inf)
    found: dict[tuple[int, ...], tuple[float, Units, tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = {"dense": Path(folder, "dense.onnx"), "pruned": Path(folder, "pruned.onnx")}
        _write(dense, None, files["dense"], image, target.scheme)
        # A sweep asks the same of the same network for each order: what met it then is near.
        asked = target.place, *wanted.items(), image, cost(every)
        budget = _MET.get(asked, cost(every) / wanted.get("speedup", 1.0))
        fast_enough, too_slow = 0.0, np.inf  # budgets known to be
        for _ in range(_ATTEMPTS):
            units = choose(budget)
            if tuple(units) not in found:
                if tuple(units) == tuple(every):  # as fast as itself, whatever is measured
                    times = target.times({"dense": files["dense"]}, image)
                    times["pruned"] = times["dense"]
                else:
                    _write(dense, narrowed(dense, units), files["pruned"], image, target.scheme)
                    times = target.times(files, image)
                slow, ms = _verdict(times, wanted)
                found[tuple(units)] = slow, units, ms
                log.info("prune: a shape takes %.3f ms, the dense network %.3f ms", ms[1], ms[0])
            elif found[tuple(units)][0] > 1:
                break  # there is none smaller
            slow = found[tuple(units)][0]
            if abs(slow - 1) <= _CLOSE:
                break
            if slow > 1:  # and so is all that the table finds dearer, however cheap it finds this
                too_slow = budget = min(budget, cost(units))
            else:
                fast_enough = budget
            # Time jumps where weights fit a cache and where channels fill a vector: so halve.
            between = fast_enough > 0 and too_slow < np.inf
            if between and too_slow <= (1 + _CLOSE) * fast_enough:
                break  # what is left between is noise
            budget = np.sqrt(fast_enough * too_slow) if between else budget / slow
    slow, units, ms = min(found.values(), key=lambda each: _rank(each[0], cost(each[1])))
    if slow > 1 + TOLERANCE:
        name, value = next(iter(wanted.items()))
        reached = f"{value / slow:.2f}" if name == "speedup" else f"{ms[1]:.3f}"
        raise UserError(
            f"prune.{name}={value} is out of reach on this machine; the best of the shapes tried, "
            f"as prune.round_to and prune.min_channels allow, measured {reached}"
        )
    _MET[asked] = cost(units)
    if slow < 1 - TOLERANCE:
        log.warning(
            "prune: no shape is within %.0f %% of the budget; the one chosen is faster, by %.2f",
            100 * TOLERANCE,
            1 / slow,
        )
    return units, ms


def _rank(slow: float, cost: float) -> tuple[int, float]:
    """Ranks shapes: the nearest to the budget, else the largest that keeps it, else the fastest."""
    if abs(slow - 1) <= TOLERANCE:
        return 0, abs(slow - 1)
    return (1, -cost) if slow < 1 else (2, slow)


def _verdict(
    times: Mapping[str, Blocks], wanted: Mapping[str, float]
) -> tuple[float, tuple[float, float]]:
    """Returns by which factor a network is too slow, and the ms of the dense one and its own."""
    dense, pruned = median(times["dense"], 0)[0], median(times["pruned"], 0)[0]
    if "speedup" in wanted:
        return wanted["speedup"] / speedup(times["dense"], times["pruned"], 0)[0], (dense, pruned)
    return pruned / wanted["latency_ms"], (dense, pruned)


def _write(
    model: fx.GraphModule,
    channels: KeptChannels | None,
    path: Path,
    image: tuple[int, int, int],
    scheme: Scheme = Scheme(),
) -> None:
    """Writes a network in INT8, quantized for the purpose where it is not yet."""
    network = copy.deepcopy(model).cpu()
    if channels is not None:
        attach(network, channels)
    if not activation_fake_quants(network):
        attach(network, FakeQuantization(127, scheme))
    write_onnx(network, path, image, {})


def _widths(size: int, round_to: int) -> list[int]:
    """Returns the sizes to measure, ascending."""
    rounded = {max(round_to, round(share * size / round_to) * round_to) for share in _SHARES[1:]}
    return sorted({size} | {width for width in rounded if width < size})


def _kind(layer: nn.Module) -> tuple[Any, ...]:
    """Returns what, besides its sizes, a layer's time depends on."""
    names = ("kernel_size", "stride", "padding", "dilation")
    return type(layer).__name__, *(getattr(layer, name, None) for name in names), _width(layer)


def _width(layer: nn.Module) -> int:
    """Returns the columns of one group of a grouped convolution; 0 for others."""
    if not isinstance(layer, nn.Conv2d) or layer.groups == 1:
        return 0
    return layer.in_channels // layer.groups


def _interpolated(
    target: Target, layer: Layer, read: tuple[int, ...], widths: list[list[int]]
) -> Callable[[int, int], float]:
    from scipy.interpolate import RegularGridInterpolator

    module, of_group = layer.module, _width(layer.module)
    assert isinstance(module, nn.Conv2d | nn.Linear)
    ratio = module.weight.shape[0] / read[0] if of_group else 0.0
    if of_group:  # rows and columns go together
        widths = [[0], [width for width in widths[1] if width % of_group == 0]]
    ms = np.empty((len(widths[0]), len(widths[1])))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "layer.onnx")
        for index in np.ndindex(ms.shape):
            rows, columns = (side[at] for side, at in zip(widths, index, strict=True))
            sizes = (
                (round(columns * ratio), columns, columns // of_group)
                if of_group
                else (rows, columns, 1)
            )
            write_layer(module, sizes, path)
            ms[index] = target.layer_ms(path, _inputs(module, target.batch_size, read, columns))
    sides = [i for i, side in enumerate(widths) if len(side) > 1]
    if not sides:
        return lambda rows, columns: float(ms.flat[0])
    grid = [np.array(widths[i], float) for i in sides]
    # Below the smallest width measured the line goes on.
    between = RegularGridInterpolator(grid, ms.squeeze(), bounds_error=False, fill_value=None)
    return cache(lambda rows, columns: float(between([(rows, columns)[i] for i in sides])[0]))


def _inputs(
    layer: nn.Module, batch_size: int, read: tuple[int, ...], columns: int
) -> tuple[int, ...]:
    """Returns the shape of the inputs of a layer with other columns."""
    if isinstance(layer, nn.Conv2d):
        return batch_size, columns, *read[1:]
    return batch_size * int(np.prod(read[:-1])), columns
