"""Measuring a deployed network: accuracy, latency, sizes, and the conditions these hold under."""

from pqd.measure.accuracy import predictions, top1
from pqd.measure.conditions import machine, provenance
from pqd.measure.cpu import has_vnni
from pqd.measure.files import sizes
from pqd.measure.graph import float_compute_nodes, is_quantized, macs
from pqd.measure.runtimes import available
from pqd.measure.timings import latency

__all__ = [
    "available",
    "float_compute_nodes",
    "has_vnni",
    "is_quantized",
    "latency",
    "machine",
    "macs",
    "predictions",
    "provenance",
    "sizes",
    "top1",
]
