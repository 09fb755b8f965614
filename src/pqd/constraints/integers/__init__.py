"""The deployed form of a quantized network: INT8 weights, UINT8 activations, INT32 biases."""

from pqd.constraints.integers.convert import round_biases, to_integers

__all__ = ["round_biases", "to_integers"]
