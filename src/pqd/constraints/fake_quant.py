"""INT8 fake quantization of weights and activations.

Both follow Jacob et al. 2018 (arXiv 1712.05877): real = scale * (code - zero_point), with the
straight-through estimator (Bengio et al. 2013, arXiv 1308.3432) as the gradient of rounding.
"""

from typing import Any

import torch
from torch import Tensor, nn

CODE_MAX = 255  # activations are UINT8
_TINY = 1e-12  # the scale of a range that is a single point


class WeightFakeQuant(nn.Module):
    """Parametrization of a weight: symmetric, per output channel, zero point 0.

    The scale follows the weight, so nothing has to be observed, and zero stays exactly zero.
    """

    def __init__(self, code_max: int) -> None:
        """Codes lie in [-code_max, code_max]: 127 for 8 bits, 63 for 7."""
        super().__init__()
        self.code_max = code_max

    def scale(self, weight: Tensor) -> Tensor:
        """Returns the scale of each output channel: `[K, C, R, S]` gives `[K, 1, 1, 1]`."""
        largest = weight.detach().abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True)
        return (largest / self.code_max).clamp_min(_TINY)

    def codes(self, weight: Tensor) -> Tensor:
        """Returns the integer codes of `weight` as INT8, same shape."""
        return torch.round(weight / self.scale(weight)).to(torch.int8)

    def forward(self, weight: Tensor) -> Tensor:
        """Returns `weight` rounded to its codes; same shape; the gradient passes unchanged."""
        rounded: Tensor = _Round.apply(weight, self.scale(weight))
        return rounded


class ActivationFakeQuant(nn.Module):
    """UINT8 affine fake-quantizer of one activation tensor, its range always containing 0.

    While `observing`, the input passes unchanged and its range is averaged over batches;
    `end_observation` turns the average into scale and zero point. A training step therefore
    never pays for an observer.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self) -> None:
        """Starts with the range [0, 1]."""
        super().__init__()
        self.register_buffer("scale", torch.tensor(1 / CODE_MAX))
        self.register_buffer("zero_point", torch.tensor(0.0))
        self.observing = False
        self._ranges: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantizes `x` of any shape; outside the range the gradient is zero."""
        if self.observing:
            self._ranges.append(torch.stack(torch.aminmax(x.detach())).float())
            return x
        quantized: Tensor = _FakeQuantize.apply(x, self.scale, self.zero_point)
        return quantized

    def end_observation(self) -> None:
        """Sets scale and zero point from the batches seen since `observing` was switched on."""
        self.observing = False
        low, high = torch.stack(self._ranges).mean(0)
        self._ranges = []
        low, high = low.clamp_max(0), high.clamp_min(0)
        self.scale.copy_(((high - low) / CODE_MAX).clamp_min(_TINY))
        self.zero_point.copy_(torch.round(-low / self.scale).clamp(0, CODE_MAX))


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor) -> Tensor:
        return torch.round(weight / scale).mul_(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        # Rounding first, as QuantizeLinear does: round(x / scale) + zero_point, then saturation.
        codes = torch.round(x / scale).add_(zero_point)
        ctx.save_for_backward((codes >= 0) & (codes <= CODE_MAX))
        return codes.clamp_(0, CODE_MAX).sub_(zero_point).mul_(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return grad * inside, None, None


def activation_fake_quants(model: nn.Module) -> dict[str, ActivationFakeQuant]:
    """Returns the activation fake-quantizers of a network by module name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, ActivationFakeQuant)}
