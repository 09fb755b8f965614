"""pqd: prune, quantize and distill image classifiers in any order."""

__version__ = "0.1.0"
