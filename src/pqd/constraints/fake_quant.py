"""INT8 fake quantization of weights and activations.

Both follow Jacob et al. 2018 (arXiv 1712.05877): real = scale * (code - zero_point), with the
straight-through estimator (Bengio et al. 2013, arXiv 1308.3432) as the gradient of rounding.
"""

from typing import Any

import torch
from torch import Tensor, nn

CODE_MAX = 255  # activations are UINT8
MIDDLE = 128  # the code of zero where they are symmetric: deployed less this, as INT8
TINY = 1e-12  # the scale of a range that is a single point


class WeightFakeQuant(nn.Module):
    """Parametrization of a weight: symmetric, per output channel, zero point 0.

    The scale follows the weight, so nothing has to be observed, and zero stays exactly zero.
    """

    def __init__(self, code_max: int) -> None:
        """Codes lie in [-code_max, code_max]: 127 for 8 bits, 63 for 7."""
        super().__init__()
        self.code_max = code_max

    def use(self, code_max: int, weight: Tensor) -> None:
        """Takes other codes from now on, for `weight` [K, ...]; what is learned starts anew."""
        self.code_max = code_max

    def scale(self, weight: Tensor) -> Tensor:
        """Returns the scale of each output channel: `[K, C, R, S]` gives `[K, 1, 1, 1]`."""
        largest = weight.detach().abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True)
        return (largest / self.code_max).clamp_min(TINY)

    def codes(self, weight: Tensor) -> Tensor:
        """Returns the integer codes of `weight` as INT8, same shape."""
        return torch.round(weight / self.scale(weight)).to(torch.int8)

    def forward(self, weight: Tensor) -> Tensor:
        """Returns `weight` rounded to its codes; same shape; the gradient passes unchanged."""
        rounded: Tensor = _Round.apply(weight, self.scale(weight))
        return rounded


class ActivationFakeQuant(nn.Module):
    """UINT8 affine fake-quantizer of one activation tensor, its range always containing 0.

    A symmetric one is deployed as INT8 with zero point 0; its codes here are those plus `MIDDLE`.
    One that does not round only clips to the range of its codes, as engines do that run a
    convolution, its quantizer and a sum as one operation.

    While `observing`, the input passes unchanged and its range is averaged over batches;
    `end_observation` turns the average into scale and zero point. A training step therefore
    never pays for an observer.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, calls: int = 1, symmetric: bool = False, rounds: bool = True) -> None:
        """Starts with the range [0, 1], or [-1, 1] where it is symmetric.

        Args:
            calls: at how many places of the network it is called; they share one range.
            symmetric: whether the zero point is fixed.
            rounds: whether values become codes, or are only clipped.
        """
        super().__init__()
        self.calls, self.symmetric, self.rounds = calls, symmetric, rounds
        zero_point = MIDDLE if symmetric else 0
        self.hold(torch.tensor(1 / (CODE_MAX - zero_point)))
        self.register_buffer("zero_point", torch.tensor(float(zero_point)))
        self.observing = False
        self._ranges: list[Tensor] = []

    def hold(self, scale: Tensor) -> None:
        """Makes `scale` part of the state."""
        self.register_buffer("scale", scale)

    def set_scale(self, scale: Tensor) -> None:
        """Sets the scale, in place."""
        self.scale.copy_(scale)

    def quantize(self, x: Tensor, rectify: bool) -> Tensor:
        """Rounds `x` of any shape to its codes; outside the range the gradient is zero.

        Args:
            rectify: what is below 0 becomes 0, as by a ReLU in front.
        """
        place = self.scale, self.zero_point
        result: Tensor = _FakeQuantize.apply(x, *place, rectify, self.rounds)
        return result

    def forward(self, x: Tensor, rectify: bool = False) -> Tensor:
        """Fake-quantizes `x` of any shape (see `quantize`), or observes it."""
        if self.observing:
            x = x.relu() if rectify else x
            self._ranges.append(torch.stack(torch.aminmax(x.detach())).float())
            return x
        return self.quantize(x, rectify)

    def end_observation(self) -> None:
        """Sets scale and zero point from the batches seen since `observing` was switched on."""
        self.observing = False
        ranges = torch.stack(self._ranges).unflatten(0, (-1, self.calls))  # [batches, calls, 2]
        batches = torch.stack([ranges[..., 0].amin(1), ranges[..., 1].amax(1)], 1)
        low, high = batches.mean(0)
        self._ranges = []
        low, high = low.clamp_max(0), high.clamp_min(0)
        if self.symmetric:
            self.set_scale((torch.maximum(-low, high) / (CODE_MAX - MIDDLE)).clamp_min(TINY))
            return
        self.set_scale(((high - low) / CODE_MAX).clamp_min(TINY))
        self.zero_point.copy_(torch.round(-low / self.scale).clamp(0, CODE_MAX))


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor) -> Tensor:
        return (weight / scale).round_().mul_(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, rectify: bool, rounds: bool
    ) -> Tensor:
        # Whatever made `x` keeps it, or would: saving it costs no memory.
        ctx.save_for_backward(x, scale, zero_point)
        ctx.rectify, ctx.rounds = rectify, rounds
        return quantized(x, scale, code_range(zero_point, rectify), rounds)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        x, scale, zero_point = ctx.saved_tensors
        edge = 0.5 if ctx.rounds else 0.0  # what rounds to a code in [0, 255] lies between these
        low, high = (-edge - zero_point) * scale, (CODE_MAX + edge - zero_point) * scale
        if ctx.rectify:
            low = torch.zeros_like(low)
        return passed(grad, x, low, high), None, None, None, None


def quantized(x: Tensor, scale: Tensor, bounds: tuple[Tensor, Tensor], rounds: bool) -> Tensor:
    """Returns `x` of any shape rounded to codes within bounds, or only clipped to their values."""
    low, high = bounds
    if not rounds:
        low, high = low * scale, high * scale
        return x.clamp(low.item(), high.item()) if eager(x) else x.clamp(low, high)
    # Rounding first, as QuantizeLinear does: round(x / scale) + zero_point, then saturation.
    codes = (x / scale).round_()
    codes = codes.clamp_(low.item(), high.item()) if eager(x) else codes.clamp(low, high)
    return codes.mul_(scale)


def passed(grad: Tensor, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Returns `grad` where `x` is between two bounds, 0 elsewhere; it lies in memory as `x` does.

    A gradient that comes from a pool does not, and all layers before would be slower for it.
    """
    if not eager(x):
        return torch.where((x > low) & (x < high), grad, 0.0)
    bounds = low.item(), high.item()
    out = torch.empty_like(x, dtype=grad.dtype)
    return torch.ops.aten.hardtanh_backward.grad_input(grad, x, *bounds, grad_input=out)


def code_range(zero_point: Tensor, rectify: bool) -> tuple[Tensor, Tensor]:
    """Returns the least and the largest code, less the zero point; 0 is the least of a ReLU."""
    low = torch.zeros_like(zero_point) if rectify else -zero_point
    return low, CODE_MAX - zero_point


def eager(x: Tensor) -> bool:
    """Whether bounds had better be numbers.

    On a CPU one pass then does what takes ten with tensors (bf16, torch 2.13). On a GPU a number
    would have to be waited for, and to the compiler it would be a constant.
    """
    return x.is_cpu and not torch.compiler.is_compiling()


def activation_fake_quants(model: nn.Module) -> dict[str, ActivationFakeQuant]:
    """Returns the activation fake-quantizers of a network by module name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, ActivationFakeQuant)}
