"""The constraint that the package of a quantized network has at most a size.

Weights of fewer bits are deployed as INT8, too. Only the package is smaller, as its coder sees
which codes occur.
"""

import logging
import math
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from pqd.constraints.base import CONSTRAINTS, Constraint, Write
from pqd.constraints.bits.allocation import WIDTHS, Choice, Floats, allocate, code_max_of
from pqd.constraints.bits.measured import Layers, packed
from pqd.constraints.fake_quant import WeightFakeQuant
from pqd.constraints.parametrization import find
from pqd.errors import UserError

log = logging.getLogger(__name__)

_NAMES = 64  # bytes by which packages of one network may differ: they name its order
_CHECKS = 4  # of a stage, evenly spaced, the first before its first step
_AIM, _LEAST, _MOST = 0.98, 0.95, 0.99  # of the size: what is aimed at, and what is left as it is
_ATTEMPTS = 3  # to aim


@CONSTRAINTS.register
class PackageSize(Constraint):
    """Chooses the bits of each layer's weights so that the package keeps a size.

    At the start of each stage and three times in it, bits are chosen anew where the package would
    come too near to its size, or leaves more than 5 % of it unused (after pruning, say). At the
    end of each stage the network is really packed, and layers lose bits until the package fits.
    What counts are the losses measured when the network was quantized. These, the bits and the
    rest of the package are part of the network's state, so that a stage can be resumed.
    """

    name = "package_size"
    in_float = False

    def __init__(self, kib: float, most_bits: int) -> None:
        """Takes the largest size, in KiB, and the most bits of a weight."""
        self.kib, self.most_bits = kib, most_bits
        self._new = True  # whether this is the stage that attaches it

    def attach(self, model: fx.GraphModule) -> None:
        """Starts with the bits that the fake-quantizers have; a state that is loaded says others.

        So they are in use before anything else is done with the network, in a resumed stage too.
        """
        widths = torch.from_numpy(Layers(model).widths)
        model.register_buffer("package_size_losses", torch.zeros(len(widths), len(WIDTHS)))
        model.register_buffer("package_size_widths", widths)
        model.register_buffer("package_size_rest", torch.zeros((), dtype=torch.int64))
        self._hook = model.register_load_state_dict_post_hook(_use_stored)

    def describe(self, model: fx.GraphModule) -> dict[str, Any]:
        """Names the size; the bits of each layer are the fake-quantizers'."""
        return {"kib": self.kib, "most_bits": self.most_bits}

    @classmethod
    def rebuild(cls, description: dict[str, Any]) -> "PackageSize":
        """Returns the constraint of a description."""
        found = cls(description["kib"], description["most_bits"])
        found._new = False
        return found

    def remove(self, model: fx.GraphModule) -> None:
        """Forgets what was measured."""
        self._hook.remove()
        for name in ("losses", "widths", "rest"):
            delattr(model, f"package_size_{name}")

    def learn(self, model: fx.GraphModule, losses: Floats) -> None:
        """Takes by how much the loss increases by layer and width, [L, W]."""
        model.get_buffer("package_size_losses").copy_(torch.from_numpy(losses))

    def before_step(self, model: fx.GraphModule, step: int, steps: int, write: Write) -> None:
        """Chooses bits anew where that is due.

        Raises:
            UserError: 2 bits everywhere may take more than the size.
        """
        if step not in _checks(steps):
            return
        layers = Layers(model)
        sizes = layers.bytes()
        if step == 0:
            self._pack(model, layers, sizes, write)
            if self._new:
                self._check(model, layers)
        self._balance(model, layers, sizes, write)

    def settle(self, model: fx.GraphModule, write: Write) -> dict[str, Any]:
        """Takes bits away until the package, really packed, fits; returns the `bits` of a stage."""
        layers, limit = Layers(model), self._limit
        trained = layers.widths
        while (size := packed(model, write)) > limit and layers.widths.any():
            sizes, now = layers.bytes(), layers.widths
            smaller = _total(sizes, now) - (size - limit)
            chosen = allocate(_losses(model), sizes, smaller, now)
            if (chosen == now).all():  # of widths that take as many bytes it keeps the widest
                chosen = np.maximum(now - 1, 0)
            self._use(model, layers, chosen)
        if size > limit:
            log.warning("quantize.size_kib=%g: 2 bits everywhere take %d bytes", self.kib, size)
        if (lowered := int((trained - layers.widths).sum())) > 0:
            log.info("quantize.size_kib=%g: %d bits fewer at the stage's end", self.kib, lowered)
        sizes = layers.bytes()
        shown = zip(layers.quantizers, layers.weights(), layers.widths, sizes, strict=True)
        found = {
            name: {"bits": WIDTHS[width], "weights": weight.numel(), "bytes": int(row[width])}
            for name, weight, width, row in shown
        }
        bound = int(1024 * self.kib)
        return {"bits": {"limit_bytes": bound, "package_bytes": size, "layers": found}}

    @property
    def _limit(self) -> int:
        return int(1024 * self.kib) - _NAMES

    def _balance(self, model: fx.GraphModule, layers: Layers, sizes: Floats, write: Write) -> None:
        """Chooses the bits that fit best, unless those that there are fit well."""
        most: Choice = np.full(len(sizes), WIDTHS.index(self.most_bits))
        for _ in range(_ATTEMPTS):
            rest = int(model.get_buffer("package_size_rest"))
            if _LEAST * self._limit <= rest + _total(sizes, layers.widths) <= _MOST * self._limit:
                return
            chosen = allocate(_losses(model), sizes, _AIM * self._limit - rest, most)
            if np.array_equal(chosen, layers.widths):
                return
            self._use(model, layers, chosen)
            self._pack(model, layers, sizes, write)

    def _use(self, model: fx.GraphModule, layers: Layers, widths: Choice) -> None:
        layers.use(widths)
        model.get_buffer("package_size_widths").copy_(torch.from_numpy(widths))

    def _pack(self, model: fx.GraphModule, layers: Layers, sizes: Floats, write: Write) -> None:
        """Finds out what the package holds besides weights, and how far `sizes` are off."""
        rest = packed(model, write) - int(_total(sizes, layers.widths))
        model.get_buffer("package_size_rest").fill_(rest)

    def _check(self, model: fx.GraphModule, layers: Layers) -> None:
        needed = int(model.get_buffer("package_size_rest")) + layers.worst()
        if needed > self._limit:
            least = math.ceil(10 * (needed / _AIM + _NAMES) / 1024) / 10
            raise UserError(
                f"quantize.size_kib={self.kib:g} is too small: with weights of 2 bits everywhere "
                f"the package can take {needed / 1024:.1f} KiB; at least {least:g} is accepted"
            )


def _use_stored(model: nn.Module, _keys: object) -> None:
    """Gives layers the bits of a state that was loaded; what else they learned is in it, too."""
    widths = model.get_buffer("package_size_widths").tolist()
    for quantizer, width in zip(find(model, WeightFakeQuant).values(), widths, strict=True):
        quantizer.code_max = code_max_of(WIDTHS[width])


def _checks(steps: int) -> set[int]:
    return {round(steps * check / _CHECKS) for check in range(_CHECKS)}


def _losses(model: fx.GraphModule) -> Floats:
    return model.get_buffer("package_size_losses").double().cpu().numpy()


def _total(sizes: Floats, widths: Choice) -> float:
    return float(sizes[np.arange(len(sizes)), widths].sum())
