"""The layers of a deployed network."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pqd.constraints.fake_quant import MIDDLE, ActivationFakeQuant
from pqd.constraints.integers.ops import dequantize, quantize_dequantize

# An INT32 bias needs headroom for the INT32 sum that is added to it.
_BIAS_MAX = 2.0**30
_SCALE_MIN = 1e-30  # below this, float32 products of two scales become denormal


class QuantizeDequantize(nn.Module):
    """The deployed form of an activation fake-quantizer."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, fake_quant: ActivationFakeQuant) -> None:
        """Takes scale and zero point over; of symmetric ones the codes are INT8."""
        super().__init__()
        self.symmetric, self.rounds = fake_quant.symmetric, fake_quant.rounds
        zero_point = fake_quant.zero_point
        if self.symmetric:
            codes = (zero_point - MIDDLE).to(torch.int8)
        else:
            codes = zero_point.to(torch.uint8)
        self.register_buffer("scale", fake_quant.scale.float().clone())
        self.register_buffer("zero_point", codes)

    def largest(self) -> float:
        """Returns the largest value of its grid."""
        largest = torch.iinfo(self.zero_point.dtype).max
        return self.scale.item() * (largest - self.zero_point.item())

    def forward(self, x: Tensor) -> Tensor:
        """Rounds `x` of any shape to its grid of 256 codes."""
        result: Tensor = quantize_dequantize(x, self.scale, self.zero_point)
        return result


class IntegerLayer(nn.Module):
    """A convolution or linear layer with INT8 weights [K, ...] and an INT32 bias [K].

    `codes * scale` is the weight after folding; the bias scale is input scale times `scale`, as
    integer kernels need it.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    bias_codes: Tensor
    bias_scale: Tensor
    bias_zero_point: Tensor

    def __init__(
        self, layer: nn.Module, codes: Tensor, scale: Tensor, bias: Tensor, input_scale: Tensor
    ) -> None:
        """Rounds the float bias [K] to INT32.

        Where a channel's scale is so small (a batch norm that learned to ignore its channel) that
        the bias would overflow, the scale grows until it fits and the codes are rounded anew.
        """
        super().__init__()
        enough = (bias.abs() / (_BIAS_MAX * input_scale)).clamp_min(_SCALE_MIN / input_scale)
        grown = torch.maximum(scale, enough)
        shrink = (scale / grown).view(-1, *[1] * (codes.ndim - 1))
        bias_scale = input_scale * grown
        self.register_buffer("codes", torch.round(codes * shrink).to(torch.int8))
        self.register_buffer("scale", grown)
        self.register_buffer("zero_point", torch.zeros_like(scale, dtype=torch.int8))
        self.register_buffer("bias_codes", torch.round(bias / bias_scale).to(torch.int32))
        self.register_buffer("bias_scale", bias_scale)
        self.register_buffer("bias_zero_point", torch.zeros_like(scale, dtype=torch.int32))
        self.convolution = (
            {n: getattr(layer, n) for n in ("stride", "padding", "dilation", "groups")}
            if isinstance(layer, nn.Conv2d)
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Computes the layer on `[B, C, H, W]` (convolution) or `[..., C]` (linear)."""
        weight = dequantize(self.codes, self.scale, self.zero_point)
        bias = dequantize(self.bias_codes, self.bias_scale, self.bias_zero_point)
        if self.convolution is None:
            return F.linear(x, weight, bias)
        return F.conv2d(x, weight, bias, **self.convolution)
