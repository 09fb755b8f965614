"""What a quantized network's layers cost in the package, and lose, at each width."""

import copy
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from pqd.constraints.base import Write
from pqd.constraints.bits.allocation import WIDTHS, Choice, Floats, bits_of, code_max_of
from pqd.constraints.fake_quant import WeightFakeQuant
from pqd.constraints.mask import masks
from pqd.constraints.parametrization import find, value_before
from pqd.package import pack
from pqd.package.codec import encode
from pqd.package.cuts import KERNEL


class Layers:
    """The quantized layers of a network, in its order: L of them."""

    def __init__(self, model: nn.Module) -> None:
        """Finds them."""
        self.quantizers = find(model, WeightFakeQuant)
        self._layers = [model.get_submodule(name) for name in self.quantizers]
        self._masks = [masks(model).get(name) for name in self.quantizers]

    def weights(self) -> list[Tensor]:
        """Returns what is quantized, [K, ...] of each layer."""
        return [value_before(layer, WeightFakeQuant).detach() for layer in self._layers]

    @property
    def widths(self) -> Choice:
        """The width of each layer, as an index of `WIDTHS`."""
        bits = [bits_of(quantizer.code_max) for quantizer in self.quantizers.values()]
        return np.array([WIDTHS.index(b) for b in bits], np.int64)

    def use(self, widths: Choice) -> None:
        """Gives layers other widths, in place; those that keep theirs stay as they are."""
        changes = zip(self.quantizers.values(), self.weights(), widths, self.widths, strict=True)
        for quantizer, weight, width, now in changes:
            if width != now:
                quantizer.use(code_max_of(WIDTHS[width]), weight)

    def bytes(self) -> Floats:
        """Returns the bytes of each layer's weights in the entropy coder at each width, [L, W]."""
        sizes = np.empty((len(self.quantizers), len(WIDTHS)))
        pairs = zip(self.quantizers.values(), self.weights(), strict=True)
        for row, (quantizer, weight) in zip(sizes, pairs, strict=True):
            for width, bits in enumerate(WIDTHS):
                other = quantizer
                if quantizer.code_max != code_max_of(bits):
                    other = copy.deepcopy(quantizer)
                    other.use(code_max_of(bits), weight)
                row[width] = _coded(other.codes(weight).cpu().numpy())
        return sizes

    def worst(self) -> int:
        """Returns the bytes that 2 bits everywhere take at most, whatever the weights become.

        What is pruned stays 0. The others take codes that are hardest to code: -1, 0 and 1 with
        odds that make the whole layer's as even as they can be.
        """
        random = np.random.default_rng(0)
        size = 0
        for weight, mask in zip(self.weights(), self._masks, strict=True):
            kept = np.ones(tuple(weight.shape), bool) if mask is None else mask.mask.cpu().numpy()
            zero = max(0.0, 1 - 2 / 3 / max(kept.mean(), 1e-9))
            codes = random.choice(
                [-1, 0, 1], weight.shape, p=[(1 - zero) / 2, zero, (1 - zero) / 2]
            )
            size += _coded((codes * kept).astype(np.int8))
        return size


@torch.no_grad()
def loss_increases(model: nn.Module, loss: Callable[[nn.Module], float]) -> Floats:
    """Returns by how much the loss increases where one layer alone gets fewer bits, [L, W].

    Args:
        model: with fake-quantizers that are calibrated and not trained yet; left as it was.
        loss: of the network.
    """
    layers = Layers(model)
    now, usual = layers.widths, loss(model)
    found = np.zeros((len(now), len(WIDTHS)))
    for layer, most in enumerate(now):
        for width in range(most):
            tried = now.copy()
            tried[layer] = width
            layers.use(tried)
            found[layer, width] = loss(model) - usual
        layers.use(now)
    return found


def packed(model: fx.GraphModule, write: Write) -> int:
    """Returns the bytes of a network's package, by really packing it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.onnx")
        write(model, file)
        return pack(file, Path(folder, "model.pqd"))


def _coded(codes: NDArray[np.int8]) -> int:
    """Returns the bytes of INT8 codes, [K, C, kH, kW] or [K, C], in the entropy coder."""
    rows, columns, *kernel = codes.shape
    if math.prod(kernel) > KERNEL:
        columns, kernel = columns * math.prod(kernel), []
    return len(encode([codes.reshape(rows, columns, *(kernel or (1, 1)))]))
