"""Layers in words: the columns of a table, and what hurts most."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pqd.report import words
from pqd.result import Layer

REST = "(no weights)"  # in the place of a name, of operations of one kind


@dataclass(frozen=True)
class Column:
    """One column of a table of layers.

    Attributes:
        title: with its unit.
        value: what it holds of a layer, as a number or a text; None where that is not known.
        form: how that is shown.
    """

    title: str
    value: Callable[[Layer], str | int | float | None]
    form: Callable[[Any], str] = str

    @property
    def textual(self) -> bool:
        """Whether it is aligned to the left."""
        return self.form is str

    def text(self, layer: Layer) -> str:
        """What it shows of a layer."""
        value = self.value(layer)
        return words.MISSING if value is None else self.form(value)


def columns(layers: Sequence[Layer]) -> list[Column]:
    """Returns the columns that hold anything of these layers; W&B gets titles and values."""
    runtimes = dict.fromkeys(runtime for layer in layers for runtime in layer.time)
    macs = sum(layer.macs or 0 for layer in layers)
    found = [
        Column("layer", lambda layer: layer.name or REST),
        Column("kind", lambda layer: layer.kind),
        Column("weights", lambda layer: _shape(layer.weight_shape)),
        Column("output", lambda layer: _shape(layer.output_shape)),
        Column("MACs, %", lambda layer: _percent(layer.macs and layer.macs / macs), _one),
        *(
            Column(f"{words.runtime(name)} time, %", _time(name), _one)  # of one image, one thread
            for name in runtimes
        ),
        Column("zeros, %", lambda layer: _percent(layer.zeros), _one),
        Column("bits", lambda layer: layer.bits, "{:d}".format),
        Column("package", lambda layer: layer.package_bytes, words.bytes_),
        Column("weight error, %", lambda layer: _percent(layer.weight_error), words.significant),
        Column("output error, %", lambda layer: _percent(layer.output_error), words.significant),
    ]
    return [column for column in found if any(column.value(layer) is not None for layer in layers)]


def worst(layers: Sequence[Layer], package: int | None = None) -> str:
    """Says in a sentence what hurts most: in time, in bytes and in accuracy.

    Args:
        layers: of a network.
        package: its bytes.
    """
    parts = []
    macs = sum(layer.macs or 0 for layer in layers)
    runtime = next((name for layer in layers for name in layer.time), None)
    if runtime is not None:
        slowest = max(layers, key=lambda layer: layer.time.get(runtime, 0))
        done = (
            f" for {words.percent(100 * slowest.macs / macs)} of the MACs" if slowest.macs else ""
        )
        share = words.percent(100 * slowest.time[runtime])
        parts.append(
            f"{_called(slowest)} takes {share} of the time in {words.runtime(runtime)}{done}"
        )
    if package and any(layer.package_bytes for layer in layers):
        largest = max(layers, key=lambda layer: layer.package_bytes or 0)
        share = words.percent(100 * (largest.package_bytes or 0) / package)
        parts.append(f"{_called(largest)} takes {share} of the package")
    if off := [layer for layer in layers if layer.weight_error is not None]:
        coarsest = max(off, key=lambda layer: layer.weight_error or 0)
        error = words.significant(100 * (coarsest.weight_error or 0))
        parts.append(f"quantization changes the weights of {_called(coarsest)} most, by {error} %")
        if off[-1].output_error is not None:  # with all layers before it
            error = words.significant(100 * off[-1].output_error)
            parts[-1] += f", and what {_called(off[-1])} puts out by {error} %"
    return f"What hurts most: {'; '.join(parts)}." if parts else ""


def _called(layer: Layer) -> str:
    return layer.name or f"{layer.kind}, in all its places,"


def _time(runtime: str) -> Callable[[Layer], float | None]:
    return lambda layer: _percent(layer.time.get(runtime))


def _shape(shape: list[int]) -> str | None:
    return "×".join(map(str, shape)) or None


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _one(value: float) -> str:
    return f"{value:.1f}"
