"""Bits that a size in KiB decides, without packing anything."""

import numpy as np

from pqd.constraints.bits.measured import Layers


class Coded:
    """Stands for packing: `rest` bytes and the coded weights."""

    rest = 500

    def __call__(self, model, write):
        layers = Layers(model)
        return int(self.rest + layers.bytes()[np.arange(len(layers.widths)), layers.widths].sum())
