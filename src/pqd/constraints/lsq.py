"""Learned step size quantization: Esser et al. 2020, arXiv 1902.08153.

The step (what other quantizers call scale) of every weight channel and every activation is a
parameter, trained with the weights. Of v_hat = s clip(round(v / s), -Q_N, Q_P) the gradient is

    d v_hat / d s = round(v / s) - v / s    where -Q_N < v / s < Q_P,
                    -Q_N or Q_P             where v / s is below or above          (eq. 3)
    d v_hat / d v = 1 between the two, 0 outside                                    (eq. 5)

and that of a step is multiplied by 1 / sqrt(n Q_P), where n values share the step, so that steps
and weights learn at one pace (section 2.2). Steps are not decayed.

Unlike in the paper, a step stays in an interval. A step that a few large gradients took to 0 would
silence its channel for good; a step larger than the largest weight needs wastes codes.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from pqd.constraints.base import CONSTRAINTS, Write
from pqd.constraints.fake_quant import (
    CODE_MAX,
    ActivationFakeQuant,
    WeightFakeQuant,
    activation_fake_quants,
    code_range,
    passed,
    quantized,
)
from pqd.constraints.parametrization import find, value_before
from pqd.constraints.placement import Quantizers, insert_fake_quants
from pqd.constraints.quantization import FakeQuantization
from pqd.scheme import Scheme

_FREEDOM = 4.0  # how far the step of an activation may move from what it was calibrated to
_INSIDE = 1 + 1e-6  # the largest weight is not clipped, however the division is rounded


class LearnedWeightFakeQuant(WeightFakeQuant):
    """Parametrization of a weight: symmetric, with one learned step per output channel."""

    def __init__(self, code_max: int, weight: Tensor, pace: float = 1.0) -> None:
        """Starts with the step 2 mean |w| / sqrt(Q_P) of the paper, over weights that are not 0.

        Args:
            code_max: codes lie in [-code_max, code_max].
            weight: what is quantized, [K, ...].
            pace: see `LearnedSteps`.
        """
        super().__init__(code_max)
        self.pace = pace
        self.step = nn.Parameter(_first_step(code_max, weight))

    def use(self, code_max: int, weight: Tensor) -> None:
        """See `WeightFakeQuant`."""
        super().use(code_max, weight)
        self.step.detach().copy_(_first_step(code_max, weight))

    def no_weight_decay(self) -> list[str]:
        """Names what must not be pulled to 0."""
        return ["step"]

    def scale(self, weight: Tensor) -> Tensor:
        """Returns the step of each output channel: `[K, C, R, S]` gives `[K, 1, 1, 1]`.

        It is at most what the largest weight of the channel needs. How much less pays depends on
        the bits: of 2, a quarter of it (clipping most weights); of 8, hardly anything, and a few
        clipped weights have gradients that are large against a step.
        """
        largest = super().scale(weight).mul_(_INSIDE)
        return self.step.detach().clamp(largest / (1 + 3 / math.sqrt(self.code_max)), largest)

    def codes(self, weight: Tensor) -> Tensor:
        """Returns the integer codes of `weight` as INT8, same shape."""
        codes = torch.round(weight / self.scale(weight))
        return codes.clamp(-self.code_max, self.code_max).to(torch.int8)

    def forward(self, weight: Tensor) -> Tensor:
        """Returns `weight` rounded to its codes; same shape."""
        gain = self.pace / math.sqrt(weight[0].numel() * self.code_max)
        place = self.scale(weight), self.code_max
        rounded: Tensor = _LearnedRound.apply(weight, self.step, *place, gain)
        return rounded


class LearnedActivationFakeQuant(ActivationFakeQuant):
    """As its base, with a learned step; the zero point is that of the calibration."""

    calibrated: Tensor

    def __init__(
        self, calls: int = 1, symmetric: bool = False, rounds: bool = True, pace: float = 1.0
    ) -> None:
        """See `ActivationFakeQuant`; `pace` as in `LearnedSteps`."""
        super().__init__(calls, symmetric, rounds)
        self.pace = pace

    def hold(self, scale: Tensor) -> None:
        """Makes `scale` a parameter."""
        self.step = nn.Parameter(scale)
        self.register_buffer("calibrated", scale.clone())

    @property
    def scale(self) -> Tensor:  # type: ignore[override]
        """The step: between a quarter and four times what it was calibrated to."""
        return self.step.detach().clamp(self.calibrated / _FREEDOM, self.calibrated * _FREEDOM)

    def set_scale(self, scale: Tensor) -> None:
        """Sets the step, in place, without a gradient."""
        self.step.detach().copy_(scale)
        self.calibrated.copy_(scale)

    def no_weight_decay(self) -> list[str]:
        """Names what must not be pulled to 0."""
        return ["step"]

    def quantize(self, x: Tensor, rectify: bool) -> Tensor:
        """Rounds `x` of shape [B, ...] to its codes.

        The range of images is known and stays: a gradient for it would cost the first layer one
        for all its inputs.
        """
        if not x.requires_grad:
            return super().quantize(x, rectify)
        place = self.scale, self.zero_point
        gain = self.pace / math.sqrt(x[0].numel() * CODE_MAX)
        how = rectify, self.rounds, gain
        result: Tensor = _LearnedFakeQuantize.apply(x, self.step, *place, *how)
        return result


@CONSTRAINTS.register
class LearnedSteps(FakeQuantization):
    """Fake-quantizers whose steps are trained with the weights."""

    name = "lsq"

    def __init__(
        self,
        code_max: int | Mapping[str, int],
        scheme: Scheme = Scheme(),
        pace: float = 1.0,
    ) -> None:
        """Takes what `FakeQuantization` does, and how fast steps learn.

        Args:
            code_max: of weight codes.
            scheme: of the activations.
            pace: factor of the gradients of steps, and so of their learning rate; 1 is the paper's.
        """
        super().__init__(code_max, scheme)
        self.pace = pace

    def attach(self, model: fx.GraphModule) -> None:
        """Starts with steps that fit the weights; activations are uncalibrated, in [0, 1].

        Raises:
            UserError: a layer cannot be deployed as integers.
        """
        weight = partial(LearnedWeightFakeQuant, pace=self.pace)
        activation = partial(LearnedActivationFakeQuant, pace=self.pace)
        learned = Quantizers(weight, activation)
        insert_fake_quants(model, self.code_max, self.scheme, learned)

    def describe(self, model: fx.GraphModule) -> dict[str, Any]:
        """Names the pace, too: later stages train the steps on."""
        return super().describe(model) | {"pace": self.pace}

    @classmethod
    def rebuild(cls, description: dict[str, Any]) -> "LearnedSteps":
        """Returns the constraint of a description; in older ones steps have the paper's pace."""
        found = super().rebuild(description)
        assert isinstance(found, cls)
        found.pace = description.get("pace", 1.0)
        return found

    @torch.no_grad()
    def before_step(self, model: fx.GraphModule, step: int, steps: int, write: Write) -> None:
        """Moves the steps back into their intervals, once for all places that share one."""
        for quantizer in activation_fake_quants(model).values():
            if isinstance(quantizer, LearnedActivationFakeQuant):
                quantizer.step.copy_(quantizer.scale)
        for name, learned in find(model, LearnedWeightFakeQuant).items():
            weight = value_before(model.get_submodule(name), LearnedWeightFakeQuant)
            learned.step.copy_(learned.scale(weight))


class _LearnedRound(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, step: Tensor, scale: Tensor, code_max: int, gain: float
    ) -> Tensor:
        """Computes with the scale, the step in its interval; the gradient is the step's."""
        ratio = weight / scale
        ctx.save_for_backward(ratio)
        ctx.code_max, ctx.gain = code_max, gain
        return ratio.round().clamp_(-code_max, code_max).mul_(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (ratio,), bound = ctx.saved_tensors, ctx.code_max
        inside = torch.ops.aten.hardtanh_backward(grad, ratio, -bound, bound)
        slopes = grad * ratio.round().clamp_(-bound, bound) - inside * ratio
        grad_step = slopes.sum(tuple(range(1, ratio.ndim)), keepdim=True)
        return inside, grad_step * ctx.gain, None, None, None


class _LearnedFakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        step: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        rectify: bool,
        rounds: bool,
        gain: float,
    ) -> Tensor:
        """As `_LearnedRound`."""
        result = quantized(x, scale, code_range(zero_point, rectify), rounds)
        # Both are kept by the layers before and behind: saving them costs no memory.
        ctx.save_for_backward(x, result, scale, zero_point)
        ctx.rectify, ctx.gain = rectify, gain
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None, None, None]:
        x, result, scale, zero_point = ctx.saved_tensors
        low, high = (bound * scale for bound in code_range(zero_point, ctx.rectify))
        inside = passed(grad, x, low, high)
        # Eq. 3 times s: clipped values are codes -Q_N and Q_P, the others differ by their rounding.
        grad_step = _difference(grad, result, inside, x) / scale
        return inside, (grad_step * ctx.gain).to(scale.dtype), None, None, None, None, None


def _first_step(code_max: int, weight: Tensor) -> Tensor:
    """Returns the step that a weight [K, C, R, S] starts with, [K, 1, 1, 1]."""
    magnitudes = weight.detach().abs().flatten(1)
    mean = magnitudes.sum(1) / magnitudes.count_nonzero(1).clamp_min(1)
    step = 2 * mean / math.sqrt(code_max)
    return step.view(-1, *[1] * (weight.ndim - 1))


def _difference(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Returns sum(a b) - sum(c d) of tensors [B, ...] in float32, in as few passes as there are."""
    if a.dtype == torch.float32:
        return torch.dot(*map(_flat, (a, b))) - torch.dot(*map(_flat, (c, d)))
    products = (a * b).addcmul_(c, d, value=-1)  # before they are summed: both sums are large
    return _flat(products).view(len(a), -1).sum(1).float().sum()


def _flat(x: Tensor) -> Tensor:
    """Returns the values of a tensor as they lie in memory, if its channels are last."""
    return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).reshape(-1)
