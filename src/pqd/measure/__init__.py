"""Measuring a deployed network: accuracy, latency, sizes, and the conditions these hold under."""

from pqd.measure.accuracy import balanced, predictions, top1
from pqd.measure.conditions import machine, provenance
from pqd.measure.cpu import has_vnni
from pqd.measure.files import sizes
from pqd.measure.graph import Input, is_quantized, macs
from pqd.measure.timings import latency
from pqd.runtimes import available

__all__ = [
    "Input",
    "available",
    "balanced",
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
